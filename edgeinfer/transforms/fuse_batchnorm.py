"""`FuseBatchNorm`: batch normalization and constant affine nodes go into the weights beside them.

Batch normalization in inference is affine in each channel k (Ioffe and Szegedy 2015, algorithm 2):

    BN(y)_k = a_k · y_k + c_k,     a = gamma / √(σ² + ε),     c = beta - a · μ

*After* a linear layer y = W x + b, with a and c along the output channels:

    a · (W x + b) + c = (a · W) x + (a · b + c)

so W' = a · W and b' = a · b + c. This holds for Conv (output channels are axis 0 of W, for any group), for
ConvTranspose (W is (C_in, C_out/g, ...), so output channel k lies in block k // (C_out/g) of axis 0 and at
k % (C_out/g) of axis 1), for Gemm (y = alpha A B + beta C; beta is multiplied into C and set to 1)
and for MatMul (the last axis; its bias is the Add that follows it).

*Before* a convolution, with a and c along the input channels:

    W (a · x + c) + b = (W · a) x + (b + Σ W · c)

Padding puts zeros where the affine node would have given c, so c must be 0 or the convolution unpadded.

A constant Mul, Div, Add or Sub is the same with a or c given, and so are alpha and beta of a Gemm, which keep
runtimes and quantization from taking it as a plain layer. All arithmetic is done in float64 and the
results are rounded once to the weights' dtype.
"""

from __future__ import annotations

from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.graph.affine import Affine, NotAffineError, data_input, read_affine
from edgeinfer.graph.fused_patterns import fused_patterns
from edgeinfer.graph.linear import Linear
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder

__all__ = ["FuseBatchNorm"]


@final
@attrs.frozen
class FuseBatchNorm(GraphTransform):
    """Fuse BatchNormalization and per-channel arithmetic with constants into the linear layers beside them.

    What is left alone is in `report.skipped` with the reason; that includes arithmetic that is part of a GELU
    or another group that runtimes fuse. A weight that other nodes use, too, is copied.
    """

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Fuse until nothing fuses any more, so that entire chains vanish."""
        opset = model.opset_imports.get("", 0)
        used = _used_constants(model)
        groups = fused_patterns(model.graph)
        fused = True
        while fused:
            fused = False
            reasons: dict[ir.Node, str] = {}
            for node in list(model.graph.all_nodes()):
                if data_input(node) is None or node.graph is None:
                    continue
                if node in groups:
                    reasons[node] = f"it is part of {groups[node].name}, which runtimes fuse"
                    continue
                try:
                    what = _fuse(node, opset)
                except NotAffineError as error:
                    reasons[node] = str(error)
                else:
                    if what:
                        report.apply(node, what)
                        fused = True
        reasons |= _fold_factors(model, report)
        if report.applied:
            model.ir_version = max(model.ir_version, 4)  # before it, every initializer had to be an input
            _remove_unused(used)
        for node, reason in reasons.items():
            report.skip(node, f"{node.op_type} is not fused: {reason}")


def _fold_factors(model: ir.Model, report: ReportBuilder) -> dict[ir.Node, str]:
    """Make alpha and beta of every Gemm 1, and return the reasons where that is not possible."""
    reasons: dict[ir.Node, str] = {}
    for node in model.graph.all_nodes():
        if (node.domain, node.op_type) != ("", "Gemm"):
            continue
        if all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta")):
            continue
        try:
            Linear.ending_at(node).fold_factors()
        except NotAffineError as error:
            reasons[node] = f"its alpha and beta stay: {error}"
        else:
            report.apply(node, "folded alpha and beta of Gemm into its weight and bias")
    return reasons


def _used_constants(model: ir.Model) -> list[ir.Value]:
    """Return the initializers and the outputs of Constant nodes that something uses."""
    graphs = [model.graph, *model.graph.subgraphs()]
    values = [value for graph in graphs for value in graph.initializers.values()]
    values += [node.outputs[0] for node in model.graph.all_nodes() if node.op_type == "Constant"]
    return [value for value in values if value.uses()]


def _remove_unused(values: list[ir.Value]) -> None:
    """Drop those of the constants whose last use was fused away."""
    for value in values:
        if value.uses() or value.is_graph_output() or value.is_graph_input() or value.graph is None:
            continue
        producer = value.producer()
        if producer is not None:
            value.graph.remove(producer, safe=True)
        else:
            assert isinstance(value.graph, ir.Graph)
            del value.graph.initializers[value.name or ""]


def _fuse(node: ir.Node, opset: int) -> str:
    """Fuse `node` into the layer before or after it and say so; "" when it is a layer's own bias."""
    try:
        return _fuse_after(node, opset)
    except NotAffineError as after:
        try:
            return _fuse_before(node, opset)
        except NotAffineError as before:
            raise NotAffineError(f"{after}; {before}") from None


def _fuse_after(node: ir.Node, opset: int) -> str:
    index = data_input(node)
    assert index is not None
    data = node.inputs[index]
    assert data is not None
    producer = data.producer()
    if producer is None:
        raise NotAffineError("nothing comes before it")
    layer = Linear.ending_at(producer)
    if data.is_graph_output():
        raise NotAffineError(f"{producer.name}, before it, is an output of the graph")
    if len(data.uses()) > 1:
        raise NotAffineError(f"{producer.name}, before it, has other consumers")
    if node.graph is not producer.graph:
        raise NotAffineError(f"{producer.name}, before it, is in another graph")
    affine = read_affine(node, opset, channels=layer.channels, axis=layer.axis, rank=layer.rank)
    kind = node.op_type
    if not layer.takes_shift and affine.shift.any():
        if kind in ("Add", "Sub"):
            return ""  # a MatMul's bias, where it belongs
        layer.rounded(affine.shift)  # raises before anything is changed
        layer.fuse_after(Affine(affine.scale, np.zeros_like(affine.shift)))
        _become_add(node, affine, layer)
        return f"fused the scale of {kind} into {producer.op_type} {producer.name}; its shift stays as Add"
    layer.fuse_after(affine)
    _remove(node, data)
    return f"fused {kind} into {layer.node.op_type} {layer.node.name}"


def _fuse_before(node: ir.Node, opset: int) -> str:
    output = node.outputs[0]
    uses = list(output.uses())
    if output.is_graph_output() or len(uses) != 1 or uses[0].idx != 0:
        raise NotAffineError("what follows it is not one convolution")
    consumer = uses[0].node
    if consumer.op_type != "Conv" or consumer.domain or consumer.graph is not node.graph:
        raise NotAffineError(f"{consumer.op_type}, after it, takes no affine map of its input")
    layer = Linear.ending_at(consumer)
    affine = read_affine(node, opset, channels=layer.in_channels, axis=1, rank=layer.rank)
    if affine.shift.any() and layer.is_padded:
        raise NotAffineError(f"{consumer.name}, after it, pads with zeros, which the shift would move")
    index = data_input(node)
    assert index is not None
    layer.fuse_before(affine)
    consumer.replace_input_with(0, node.inputs[index])
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    return f"fused {node.op_type} into {consumer.op_type} {consumer.name}"


def _remove(node: ir.Node, data: ir.Value) -> None:
    """Take the node out; the layer's output gets the name of the node's, which has the same values now."""
    output = node.outputs[0]
    name = output.name
    data.type, data.shape = output.type, output.shape
    output.replace_all_uses_with(data, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    output.name = None
    data.name = name


def _become_add(node: ir.Node, affine: Affine, layer: Linear) -> None:
    index = data_input(node)
    assert index is not None
    data = node.inputs[index]
    shift = layer.new_weight(f"{node.name}_shift", affine.shift)
    node.op_type = "Add"
    node.attributes.clear()
    node.resize_outputs(1)
    node.resize_inputs(2)
    node.replace_input_with(0, data)
    node.replace_input_with(1, shift)
