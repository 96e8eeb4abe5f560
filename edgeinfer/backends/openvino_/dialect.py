"""The Q/DQ dialect of OpenVINO."""

from __future__ import annotations

from edgeinfer.backends.dialect import MOVING_OPS, QDQDialect

__all__ = ["DIALECT"]

# A convolution takes a residual and any activation in, so that nothing is quantized between it and them.
# A quantizer behind a Reshape, Split, … runs as a kernel of its own, and keeps OpenVINO from fusing a channel
# shuffle: NanoDet took 1.4 times as long with them.
# Measured on 2026.4: ReduceMax, ReduceMin and what is computed value by value from them give garbage (0 to
# 20 dB) when the CPU plugin fuses the FakeQuantize behind them into the reduction.
# With dynamic shapes, an integer convolution without a bias whose output goes into a pooling and into the
# product with what is computed from that (squeeze and excite) is scaled wrongly (5 to 10 dB); with one it is
# not, as long as it is not 0, which OpenVINO would drop.
DIALECT = QDQDialect(
    name="openvino",
    activation_dtype="uint8",
    quantize_bias=False,
    integer_ops={"Conv", "ConvTranspose", "Gemm", "MatMul"},
    epilogue={"Add", "Clip", "Elu", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "SiLU", "Tanh"},
    # SpaceToDepth runs in float, and so would a convolution behind it. A Concat whose inputs have scales of
    # their own is requantized, by kernels of their own and at the cost of rounding twice.
    moving=(MOVING_OPS - {"SpaceToDepth"}) | {"Concat"},
    requantize_moved=False,
    requantizing={"AveragePool", "GlobalAveragePool"},
    wrong_before={"ReduceMax", "ReduceMin"},
    bias_where_shared=True,
)
