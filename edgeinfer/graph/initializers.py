"""Reading, writing and adding the constants of a graph."""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx_ir as ir

__all__ = ["add_initializer", "constant", "drop_unused", "graph_of", "set_constant", "set_type"]


def constant(value: ir.Value | None) -> np.ndarray:
    """Return the data of a value that is known to be constant."""
    if value is None or value.const_value is None:
        raise AssertionError(f"{value} is not constant")
    return value.const_value.numpy()


def set_constant(value: ir.Value, array: np.ndarray) -> None:
    """Give an initializer new data."""
    tensor = ir.tensor(np.asarray(array, order="C"), name=value.name)
    value.const_value = tensor
    set_type(value, tensor.dtype, ir.Shape(array.shape))


def set_type(value: ir.Value, dtype: ir.DataType | None, shape: ir.Shape | None) -> None:
    """Set dtype and shape of a tensor; setting `value.dtype` would change the copies of the model, too."""
    value.type = ir.TensorType(dtype) if dtype is not None else None
    value.shape = shape


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add a constant, under this name or a free one like it."""
    while name in graph.initializers:
        name += "_"
    value = ir.Value(name=name)
    set_constant(value, array)
    graph.register_initializer(value)
    return value


def drop_unused(model: ir.Model) -> None:
    """Remove the initializers that nothing reads."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for name, value in list(graph.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del graph.initializers[name]


def graph_of(node: ir.Node) -> ir.Graph:
    """Return the graph that the node stands in."""
    return cast(ir.Graph, node.graph)
