"""What an operator becomes in a runtime: the kind of its kernel, and how much it computes."""

from __future__ import annotations

import math

import onnx_ir as ir

from edgeinfer.estimate.kernel_sizes import dims, integer

__all__ = ["COMPUTE", "COSTLY", "ELEMENTWISE", "FREE", "RECURRENT", "kind_of"]

COMPUTE = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Attention", "Einsum"])
RECURRENT = frozenset(["LSTM", "GRU", "RNN"])
# Change shapes only, or nothing: no kernel at all.
FREE = frozenset(["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Shape", "Size"])
_MOVE = frozenset(
    [
        *("Concat", "Slice", "Split", "Transpose", "Gather", "GatherND", "GatherElements", "Pad"),
        *("Expand", "Tile", "Resize", "Upsample", "DepthToSpace", "SpaceToDepth", "Where"),
        *("ScatterND", "Cast"),
    ]
)
_POOL = frozenset(["MaxPool"])
# Another kernel: runtimes take the maximum of integers as they are, and add up averages in wider ones.
_AVERAGE_POOL = frozenset(["AveragePool", "LpPool"])
_REDUCE = frozenset(
    [
        *("GlobalAveragePool", "GlobalMaxPool", "Softmax", "LogSoftmax", "LayerNormalization"),
        *("ArgMax", "TopK", "InstanceNormalization", "GroupNormalization", "RMSNormalization"),
        *("CumSum",),
    ]
)
ELEMENTWISE = frozenset(
    [
        *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Relu", "Clip", "LeakyRelu", "PRelu"),
        *("Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Exp", "Log", "Sqrt"),
        *("Abs", "Neg", "Reciprocal", "Softplus", "Mish", "Gelu", "Swish", "BatchNormalization"),
        *("Floor", "Ceil", "Round", "Not", "Equal", "Greater", "Less", "GreaterOrEqual"),
        *("LessOrEqual", "And", "Or", "Sin", "Cos"),
    ]
)
# Per element, about as many elementary operations as these count; all others are 1.
COSTLY = {"Sigmoid": 8, "Tanh": 8, "Erf": 8, "Exp": 8, "Gelu": 12, "Mish": 16, "Softmax": 10, "HardSwish": 3}


def kind_of(node: ir.Node, *, weighted: bool) -> str:
    """Return the kind of kernel that a node becomes; `weighted` where it reads a constant."""
    op = node.op_type
    if op in RECURRENT:
        return "recurrent"
    if op == "ConvTranspose":
        return "deconv"
    if op == "Conv":
        weight = dims(node.inputs[1])
        group = integer(node, "group", 1)
        if group > 1:
            return "depthwise" if weight[1] == 1 else "grouped"
        return "pointwise" if math.prod(weight[2:]) == 1 else "conv"
    if op in ("Gemm", "MatMul", "Einsum", "Attention"):
        return "gemm" if op == "Gemm" or (op == "MatMul" and weighted) else "matmul"
    kinds = {
        "elementwise": ELEMENTWISE,
        "move": _MOVE,
        "pool": _POOL,
        "average_pool": _AVERAGE_POOL,
        "reduce": _REDUCE,
    }
    if op.startswith("Reduce"):
        return "reduce"
    return next((kind for kind, names in kinds.items() if op in names), "other")
