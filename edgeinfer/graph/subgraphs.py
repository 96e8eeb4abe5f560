"""What a node reads and holds beyond its inputs: the bodies of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

__all__ = ["read_values", "subgraphs_of"]


def subgraphs_of(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs that a node's attributes hold."""
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type is ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def read_values(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node reads, the outer values that its subgraphs read or give back included."""
    yield from (value for value in node.inputs if value is not None)
    for graph in subgraphs_of(node):
        for inner in graph.all_nodes():
            yield from (value for value in inner.inputs if value is not None)
        yield from graph.outputs
