"""All layers of a graph, as pruning sees them: with weights that are shared, or stored behind a Cast."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs
import onnx_ir as ir

from edgeinfer.graph.channels.labels import dims, is_weight
from edgeinfer.graph.im2col import Layout, layout_of_node
from edgeinfer.graph.initializers import constant
from edgeinfer.graph.weights import LINEAR_OPS, Linear, linear_of

__all__ = ["find_layers", "layout_of", "positions_of"]

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


def layout_of(layer: Linear) -> Layout:
    """Return how a layer reads X."""
    shape = constant(layer.weight).shape
    if layer.kind != "ConvTranspose":
        return layout_of_node(layer.node, shape)
    # Before its taps are scattered, a transposed convolution multiplies like one with a 1x1 kernel.
    ones, rank = (1,) * (len(shape) - 2), len(shape) - 2
    return Layout(
        op_type="Conv",
        groups=layer.groups,
        rows=shape[0] // layer.groups,
        outputs=shape[0],
        kernel=ones,
        strides=ones,
        dilations=ones,
        pads=(0,) * (2 * rank),
    )


def positions_of(layer: Linear, shapes: Mapping[str, Sequence[int]]) -> int:
    """Return how many output positions one sample has, given the shapes of activations by name."""
    x, y = shapes.get(layer.input.name or ""), shapes.get(layer.node.outputs[0].name or "")
    if layer.kind == "ConvTranspose":
        return 1 if x is None else math.prod(x[2:])
    if y is None or layer.kind == "Gemm":
        return 1
    return math.prod(y[2:] if layer.kind == "Conv" else y[1:-1])
