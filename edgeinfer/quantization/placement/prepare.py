"""What placement needs of a graph: named values, with dtypes and shapes."""

from __future__ import annotations

import onnx_ir as ir

from edgeinfer.graph.infer_shapes import infer_shapes

__all__ = ["INFERRED_KEY", "prepare"]

# `ir.Model.meta`, in memory only: the names of values that were inferred already, as far as they can be.
INFERRED_KEY = "edgeinfer.inferred"


def prepare(model: ir.Model) -> None:
    """Name every value of the main graph, and infer dtypes and shapes; the signature stays as it is."""
    for node in model.graph:
        for index, value in enumerate(node.outputs):
            if value.name is None:
                value.name = f"{node.name}_output_{index}"
    values = [value for node in model.graph for value in node.outputs]
    known = model.meta.get(INFERRED_KEY, ())
    if known and all(value.name in known for value in values):
        return
    if all(
        value.type is not None and value.shape is not None and value.shape.is_static() for value in values
    ):
        return
    infer_shapes(model, data_prop=True)
