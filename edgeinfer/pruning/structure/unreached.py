"""Layers that pruning does not reach: inside control flow and functions, and unknown operators."""

from __future__ import annotations

import onnx_ir as ir

from edgeinfer.graph.layers import find_layers
from edgeinfer.graph.macs import works
from edgeinfer.graph.subgraphs import subgraphs_of
from edgeinfer.transforms.refusal import Refusal

__all__ = ["unreached_layers"]


def unreached_layers(model: ir.Model) -> list[Refusal]:
    """Return what has weights to multiply with and is no layer of the main graph, with the reason."""
    known = {layer.node for layer in find_layers(model.graph)}
    found = []
    for node in model.graph:
        name = node.name or node.op_type
        inner = sum(works(part) for graph in subgraphs_of(node) for part in graph.all_nodes())
        function = model.functions.get(node.op_identifier())
        if function is not None:
            inner += sum(works(part) for part in function.all_nodes())
        if inner:
            where = "function" if function is not None else "subgraph"
            found.append(Refusal(name, f"{inner} layers in its {where} stay as they are"))
        elif node not in known and works(node) and _has_weight(node):
            found.append(Refusal(name, f"{node.op_type} with this weight is no layer that is pruned"))
    return found


def _has_weight(node: ir.Node) -> bool:
    return any(value is not None and value.const_value is not None for value in node.inputs)
