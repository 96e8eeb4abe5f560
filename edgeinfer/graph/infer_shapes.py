"""Shape inference that goes as far as it can, quietly, and leaves the signature as it was declared."""

from __future__ import annotations

import logging

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

__all__ = ["infer_shapes"]

_LOGGER = logging.getLogger("onnx_ir.passes.common.shape_inference")
_SEQUENCES = frozenset(
    {
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceMap",
        "SplitToSequence",
    }
)


def infer_shapes(model: ir.Model, *, data_prop: bool = False, outputs: bool = False) -> None:
    """Fill in dtypes and shapes of values, in place.

    What cannot be inferred stays unknown: a branch of an If that does not fit the others, say, must not cost
    all other nodes their shapes.

    Args:
        model: The model; it is changed.
        data_prop: Follow the values of small integer tensors, too.
        outputs: Infer the shapes of the model's outputs, too; else they stay as they are declared.
    """
    declared = [(value, value.shape) for value in model.graph.outputs]
    # onnx-ir reads the type of a sequence as that of its elements.
    sequences = [
        (value, value.type) for n in model.graph.all_nodes() if n.op_type in _SEQUENCES for value in n.outputs
    ]
    quiet, _LOGGER.disabled = _LOGGER.disabled, True  # it would print a traceback
    try:
        common_passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=data_prop)(model)
    finally:
        _LOGGER.disabled = quiet
    for value, kind in sequences:
        value.type = kind
    for value, shape in declared if not outputs else ():
        value.shape = shape
