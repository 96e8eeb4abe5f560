"""Constant folding whose results are exact, and the same on every machine.

The folder of onnxscript finds out what shapes and conditions say (Shape, Reshape, If, ...). Entire nodes of
constants are computed here, and only these operators:

- those that move numbers, compare them, or compute with integers,
- arithmetic and functions of single float numbers, and sums. They are computed in float64 and rounded once,
  so that neither the instruction set nor the order of a vectorized loop shows in the result,
- products of matrices, added up in the order of the inner axis: what a BLAS library gives depends on the
  processor and on the number of threads.

What draws random numbers is never folded, and neither is what runtimes do not agree on: division of an
integer by zero, a Cast of a number that does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import onnx.reference.ops
import onnx_ir as ir
from onnxscript.optimizer import _constant_folding

from edgeinfer.graph.no_ops import constant_of

__all__ = ["SMALL_ELEMENTS", "ConstantFolder", "is_foldable"]

Array: TypeAlias = "np.ndarray[Any, Any]"

# A folded result up to this many elements is always stored: shapes, axes, small tables.
SMALL_ELEMENTS = 1024
_NO_LIMIT = 1 << 62


def _operators(names: str) -> frozenset[str]:
    return frozenset(names.split())


_MOVING = _operators(
    """Compress Concat ConstantOfShape DepthToSpace Expand EyeLike Flatten Gather GatherElements GatherND
    Identity NonZero OneHot Pad Range Reshape ReverseSequence ScatterElements ScatterND Shape Size Slice
    SpaceToDepth Squeeze Tile Transpose Trilu Unsqueeze Where"""
)
_COMPARING = _operators(
    """And BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Equal Greater GreaterOrEqual IsInf IsNaN Less
    LessOrEqual Not Or Xor"""
)
_ARITHMETIC = _operators("Abs Add Ceil Clip Div Floor Max Min Mod Mul Neg Relu Round Sign Sub")
_FUNCTIONS = _operators(
    """Acos Acosh Asin Asinh Atan Atanh Cos Cosh Elu Erf Exp HardSigmoid LeakyRelu Log Mean Pow Reciprocal
    Sigmoid Sin Sinh Softplus Softsign Sqrt Sum Tan Tanh"""
)
_REDUCING = _operators(
    """CumSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare"""
)
_PRODUCTS = frozenset(("Gemm", "MatMul"))
_OPERATORS = _MOVING | _COMPARING | _ARITHMETIC | _FUNCTIONS | _REDUCING | _PRODUCTS | {"Cast"}
# Of these, the integer forms have one answer, too.
_INTEGER = _COMPARING | _ARITHMETIC | _operators("Cast CumSum ReduceMax ReduceMin ReduceProd ReduceSum Sum")

_NARROW = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16))
_FLOATS = (*_NARROW, np.dtype(np.float64))


class ConstantFolder(_constant_folding.FoldConstantsPass):  # type: ignore[misc]  # untyped package
    """The folder of onnxscript with the evaluation of entire nodes replaced.

    Args:
        may_grow: Whether a node may be folded though its result needs more room than its inputs.
        may_fold: Whether a node may be folded at all.
    """

    def __init__(
        self,
        may_grow: Callable[[ir.Node], bool],
        may_fold: Callable[[ir.Node], bool] = lambda _: True,
    ) -> None:
        super().__init__(
            shape_inference=True,
            input_size_limit=_NO_LIMIT,
            output_size_limit=_NO_LIMIT,
            should_fold=lambda _: False,
        )
        self._may_grow, self._may_fold = may_grow, may_fold

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold in place; the inputs and outputs stay as they are declared."""
        inputs = [(value, value.type, value.shape) for value in model.graph.inputs]
        outputs = [(value.type, value.shape) for value in model.graph.outputs]
        result: ir.passes.PassResult = super().call(model)
        for value, kind, shape in inputs:
            value.type, value.shape = kind, shape
        for value, (kind, shape) in zip(model.graph.outputs, outputs, strict=True):
            value.type, value.shape = kind, shape
        return result

    def process_node(self, node: ir.Node, is_function: bool) -> _constant_folding.Replacement | None:
        """Return what replaces the node, or None."""
        known = super().process_node(node, is_function)
        if known is not None or not is_foldable(node) or not self._may_fold(node):
            return known
        result = _evaluate(node, self._opset_imports.get("", 0))
        if result is None or (_grows(node, result) and not self._may_grow(node)):
            return None
        if is_function:
            constant = self.new_constant(node, result)
            return _constant_folding.Replacement(constant.outputs, [constant])
        value = self.new_initializer(node, result)
        assert isinstance(node.graph, ir.Graph)
        node.graph.register_initializer(value)
        return _constant_folding.Replacement([value], [])


def is_foldable(node: ir.Node) -> bool:
    """Whether the node has constant inputs and computes what is known to the last bit."""
    if node.domain or node.op_type not in _OPERATORS or len(node.outputs) != 1 or not node.inputs:
        return False
    arrays = [constant_of(value) for value in node.inputs if value is not None]
    if not arrays or any(array is None for array in arrays):
        return False
    known = [array for array in arrays if array is not None]
    if node.op_type in _MOVING:
        return node.op_type != "Range" or all(np.all(array == np.rint(array)) for array in known)
    if not any(array.dtype in _FLOATS for array in known) and node.op_type not in _INTEGER:
        return False
    return all(array.dtype in _FLOATS or array.dtype.kind in "iub" for array in known)


def _grows(node: ir.Node, result: Array) -> bool:
    """Whether the result is no small table and needs more room than the inputs that only the node uses."""
    if result.size <= SMALL_ELEMENTS:
        return False
    freed = [value for value in set(node.inputs) if value is not None and len(value.uses()) == 1]
    return result.nbytes > sum(array.nbytes for value in freed if (array := constant_of(value)) is not None)


def _evaluate(node: ir.Node, opset: int) -> Array | None:
    """Return what the node gives, or None when it cannot be known here."""
    arrays = [constant_of(value) for value in node.inputs]
    kind = node.op_type
    floats = [a.dtype for a in arrays if a is not None and a.dtype in _FLOATS]
    if kind in _REDUCING and any(a is not None and a.size == 0 for a in arrays[:1]):
        return None
    if kind in ("Div", "Mod") and not floats and not all(a is None or a.all() for a in arrays[1:]):
        return None  # division by zero
    if kind in (*_FUNCTIONS, *_REDUCING) and np.dtype(np.float64) in floats:
        return None  # its last bit depends on the machine, and nothing wider is there to round from
    if kind == "Cast":
        return _cast(node, arrays)
    if kind in _PRODUCTS and floats:
        return _product(node, arrays)
    if kind in _MOVING or not floats:
        return _reference(node, arrays, opset)
    wide = [a.astype(np.float64) if a is not None and a.dtype in _NARROW else a for a in arrays]
    result = _reference(node, wide, opset)
    return result.astype(floats[0]) if result is not None and result.dtype == np.float64 else result


def _cast(node: ir.Node, arrays: Sequence[Array | None]) -> Array | None:
    (source, *_) = arrays
    to = ir.DataType(node.attributes.get_int("to", 0))
    if source is None or to is ir.DataType.STRING:
        return None
    dtype = np.dtype(to.numpy())
    if dtype not in _FLOATS and dtype.kind not in "iub":
        return None  # narrow formats, whose rounding and saturation are a matter of quantization
    if dtype.kind in "iu" and source.size:
        wide = source.astype(np.float64) if source.dtype in _FLOATS else source
        info = np.iinfo(dtype)
        if source.dtype in _FLOATS and not np.isfinite(wide).all():
            return None
        if int(wide.min()) < info.min or int(wide.max()) > info.max:
            return None
        return wide.astype(dtype)
    with np.errstate(over="ignore"):
        return source.astype(dtype)


def _product(node: ir.Node, arrays: Sequence[Array | None]) -> Array | None:
    """Multiply matrices with the terms of each sum added in order."""
    left, right, *rest = arrays
    if left is None or right is None or left.dtype not in _NARROW or min(left.ndim, right.ndim) < 2:
        return None
    get = node.attributes.get_float
    if node.op_type == "Gemm":
        left = left.T if node.attributes.get_int("transA", 0) else left
        right = right.T if node.attributes.get_int("transB", 0) else right
    a, b = left.astype(np.float64), right.astype(np.float64)
    total = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]))
    for k in range(a.shape[-1]):
        total += a[..., :, k : k + 1] * b[..., k : k + 1, :]
    if node.op_type == "Gemm":
        total *= get("alpha", 1.0)
        if rest and rest[0] is not None:
            total += get("beta", 1.0) * rest[0].astype(np.float64)
    with np.errstate(over="ignore"):
        return total.astype(left.dtype)


def _reference(node: ir.Node, arrays: Sequence[Array | None], opset: int) -> Array | None:
    """Evaluate by the reference implementation of the `onnx` package."""
    attributes = {
        name: ir.serde.serialize_tensor(attr.as_tensor())
        if attr.type is ir.AttributeType.TENSOR
        else attr.value
        for name, attr in node.attributes.items()
    }
    try:
        with np.errstate(all="ignore"):
            operator = onnx.reference.ops.load_op("", node.op_type, opset)
            result = operator.eval(*arrays, **attributes)
    except Exception:
        return None  # the node stays and is reported as one that cannot be folded
    if isinstance(result, (tuple, list)):
        result = result[0] if len(result) == 1 else None
    return np.asarray(result) if isinstance(result, (np.ndarray, np.generic)) else None
