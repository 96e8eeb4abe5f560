"""Tensors whose size depends on the data: what NonMaxSuppression finds, and all that follows from it.

Such tensors of two models, or of one model before and after a change, cannot be compared element by element.
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["data_dependent_sizes"]

_COUNTING = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
_FLOW = frozenset({"If", "Loop", "Scan"})
# The inputs that say how large the output is.
_SIZED_BY = {
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Upsample": (1,),
}


def data_dependent_sizes(graph: ir.Graph) -> dict[ir.Value, str]:
    """Return the tensors of a graph whose size depends on the data, with the node that it depends on.

    Args:
        graph: The main graph in topological order, its shapes inferred: a tensor whose sizes are
            numbers, or named as those of inputs are, is none.
    """
    found: dict[ir.Value, str] = {}
    given = {size.value for value in graph.inputs for size in value.shape or () if not isinstance(size, int)}
    # What follows from constants and from the shapes of tensors of a known size, not from the data.
    settled = set(graph.initializers.values())
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        source = next((found[value] for value in inputs if value in found), "")
        if not source:
            sizes = [node.inputs[i] for i in _SIZED_BY.get(node.op_type, ()) if i < len(node.inputs)]
            computed = any(value is not None and value not in settled for value in sizes)
            if computed or (node.op_type in (*_COUNTING, *_FLOW) and node.domain in ("", "ai.onnx")):
                source = node.name or node.op_type
            elif node.op_type in ("Shape", "Size") or all(value in settled for value in inputs):
                settled.update(node.outputs)
        if source:
            trusted = given if node.op_type not in _COUNTING else set()
            found.update((value, source) for value in node.outputs if not _is_known(value, trusted))
    return found


def _is_known(value: ir.Value, given: set[str | None]) -> bool:
    """Tell whether each size is a number, or one that an input has, too."""
    return value.shape is not None and all(
        isinstance(size, int) or (size.value is not None and size.value in given) for size in value.shape
    )
