"""What placement needs of a graph: named values, with dtypes and shapes."""

from __future__ import annotations

import onnx_ir as ir

from edgeinfer.graph.infer_shapes import infer_shapes

__all__ = ["prepare"]


def prepare(model: ir.Model) -> None:
    """Name every value of the main graph, and infer dtypes and shapes; the signature stays as it is."""
    for node in model.graph:
        for index, value in enumerate(node.outputs):
            if value.name is None:
                value.name = f"{node.name}_output_{index}"
    values = [value for node in model.graph for value in node.outputs]
    if all(
        value.type is not None and value.shape is not None and value.shape.is_static() for value in values
    ):
        return
    infer_shapes(model, data_prop=True)
