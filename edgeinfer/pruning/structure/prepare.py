"""Bringing a graph into the state that pruning reads: constants folded and lifted, shapes inferred."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeinfer.graph.fold_constants import ConstantFolder
from edgeinfer.graph.infer_shapes import infer_shapes
from edgeinfer.pruning.structure.fix_sizes import fix_sizes

__all__ = ["prepare"]

_MAX_FOLDED = 1 << 20
_SMALL = 64
_MAX_ROUNDS = 40


def prepare(model: ir.Model) -> None:
    """Fold constants, so that pads, shapes and slices are literal; infer shapes. Changes `model` in place.

    Large weights behind a Cast (stored in half precision) stay as they are: folding would double them.
    """
    common_passes.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version or 4, 4)  # weights need not be inputs from version 4 on
    _fold_and_infer(model)
    for _ in range(_MAX_ROUNDS):  # a block at a time, where every block reads its own sizes
        if not fix_sizes(model.graph):
            break
        _fold_and_infer(model)
    common_passes.TopologicalSortPass()(model)


def _fold_and_infer(model: ir.Model) -> None:
    ConstantFolder(_may_grow, _may_fold)(model)
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common_passes.RemoveUnusedNodesPass()(model)
    infer_shapes(model, data_prop=True)


def _may_grow(node: ir.Node) -> bool:
    """Fold shapes that are made of constants, and what is of moderate size."""
    sizes = [0 if v is None or v.const_value is None else v.const_value.size for v in node.inputs]
    return node.op_type == "ConstantOfShape" or max(sizes) <= _MAX_FOLDED


def _may_fold(node: ir.Node) -> bool:
    """Keep Casts of stored weights."""
    value = node.inputs[0] if node.op_type == "Cast" else None
    return value is None or value.const_value is None or value.const_value.size <= _SMALL
