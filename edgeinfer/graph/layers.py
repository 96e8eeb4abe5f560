"""All layers of a graph, as pruning sees them: with weights that are shared, or stored behind a Cast."""

from __future__ import annotations

import attrs
import onnx_ir as ir

from edgeinfer.graph.channels.labels import dims, is_weight
from edgeinfer.graph.weights import LINEAR_OPS, Linear, linear_of

__all__ = ["find_layers"]

_KINDS = (*LINEAR_OPS, "ConvTranspose")


def find_layers(graph: ir.Graph) -> list[Linear]:
    """Return the layers of the main graph in topological order; float weights only."""
    return [layer for node in graph if (layer := _layer(node)) is not None]


def _layer(node: ir.Node) -> Linear | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in _KINDS:
        return None
    x, weight = node.inputs[0], node.inputs[1]
    source = None if weight is None else _behind_cast(weight)
    if x is None or weight is None or source is None or x.const_value is not None:
        return None
    if node.op_type == "MatMul" and (len(dims(source)) != 2 or len(dims(x)) < 2):
        return None
    layer = linear_of(node, source)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    add = _bias_add(layer) if bias is None and node.op_type != "Gemm" else None
    shared = len(list(source.uses())) > 1 or (source is not weight and len(list(weight.uses())) > 1)
    return attrs.evolve(layer, bias_add=add, shared=shared)


def _bias_add(layer: Linear) -> ir.Node | None:
    """Return the Add behind a node that adds one number a channel."""
    y = layer.node.outputs[0]
    uses = list(y.uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add" or y.is_graph_output():
        return None
    other = uses[0].node.inputs[1 - uses[0].idx]
    if other is None or not is_weight(other) or len(list(other.uses())) != 1:
        return None
    trailing = len(dims(y)) - 2 if layer.is_conv else 0
    wanted, shape = [layer.channels, *[1] * trailing], dims(other)
    return uses[0].node if [1] * (len(shape) - len(wanted)) + wanted == shape else None


def _behind_cast(value: ir.Value) -> ir.Value | None:
    while not is_weight(value):
        producer = value.producer()
        if producer is None or producer.op_type not in ("Cast", "Identity") or producer.inputs[0] is None:
            return None
        value = producer.inputs[0]
    return value
