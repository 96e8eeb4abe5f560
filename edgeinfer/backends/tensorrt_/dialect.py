"""The Q/DQ dialect of TensorRT and TensorRT-RTX."""

from __future__ import annotations

from edgeinfer.backends.dialect import MOVING_OPS, QDQDialect
from edgeinfer.backends.tensorrt_.timed_models import TIMED

__all__ = ["DIALECT"]

# int8 activations with zero point 0, float biases (anything else is a parse error), a residual quantized on
# its own branch, ReLU kept in front of the quantizer. Concat runs on integers when all scales are one.
DIALECT = QDQDialect(
    name="tensorrt",
    activation_dtype="int8",
    activation_symmetric=True,
    quantize_bias=False,
    fold_relu=False,
    integer_ops={"Conv", "ConvTranspose", "Gemm", "MatMul"},
    epilogue={"Add", "Clip", "LeakyRelu", "Relu", "Sigmoid", "SiLU"},
    requantizing={"AveragePool", "GlobalAveragePool"},
    moving=MOVING_OPS | {"Concat"},
    known_to_pay=True,  # every GPU that it takes has integer tensor cores or dp4a
    timed=TIMED,
)
