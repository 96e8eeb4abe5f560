"""Shape inference that goes as far as it can, quietly, and leaves the signature as it was declared."""

from __future__ import annotations

import onnx_ir as ir

from edgeinfer.model.onnx_inference import run_inference

__all__ = ["infer_shapes"]


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
    run_inference(model, data_prop=data_prop)
    for value, shape in declared if not outputs else ():
        value.shape = shape
