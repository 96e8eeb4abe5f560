"""The Q/DQ dialect of OpenVINO."""

from __future__ import annotations

from edgeinfer.backends.base import QDQDialect

__all__ = ["DIALECT"]

# A convolution takes a residual and any activation in, so that nothing is quantized between it and them.
# Measured on 2026.4: ReduceMax, ReduceMin and what is computed value by value from them give garbage (0 to
# 20 dB) when the CPU plugin fuses the FakeQuantize behind them into the reduction.
# With dynamic shapes, an integer convolution without a bias whose output goes into a pooling and into the
# product with what is computed from that (squeeze and excite) is scaled wrongly (5 to 10 dB); with one it is
# not, as long as it is not 0, which OpenVINO would drop.
DIALECT = QDQDialect(
    name="openvino",
    activation_dtype="uint8",
    quantize_bias=False,
    residual_only=True,
    integer_ops={"Conv", "ConvTranspose", "Gemm", "MatMul"},
    epilogue={"Add", "Clip", "Elu", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "SiLU", "Tanh"},
    requantizing={"AveragePool", "Concat", "GlobalAveragePool"},
    wrong_before={"ReduceMax", "ReduceMin"},
    bias_where_shared=True,
)
