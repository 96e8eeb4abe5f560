"""A quantized graph and the float graph that it came from, side by side.

Corrections compare what a layer makes in both. The two graphs are joined into one with common inputs, so that
one pass of the calibration data gives the statistics of both and only small tensors leave the runtime.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.errors import PreconditionError
from edgeinfer.graph.infer_shapes import infer_shapes
from edgeinfer.graph.opset import convert_opset
from edgeinfer.graph.weights import LINEAR_OPS, Linear, add_initializer, find_linear
from edgeinfer.model.model import Model, ModelSource
from edgeinfer.quantization.placement.pointwise import follow_gemms
from edgeinfer.quantization.qdq.marks import REFERENCE_KEY
from edgeinfer.transforms.contract import ReportBuilder

__all__ = ["Layer", "Twin", "find_reference", "is_quantized", "quantized_layers", "reduce_mean"]

_PREFIX = "float::"


@final
@attrs.frozen(kw_only=True)
class Layer:
    """A layer of the quantized graph and the same layer of the float one."""

    quantized: Linear
    reference: Linear


def is_quantized(model: ir.Model) -> bool:
    """Whether a layer of the graph has quantized weights."""
    return any(node.op_type == "DequantizeLinear" for node in model.graph)


def find_reference(model: ir.Model, given: ModelSource | None, *, wanted_by: str) -> ir.Model:
    """Return a copy of the float model: the one given, or the one that QuantizeStatic left in memory.

    Raises:
        PreconditionError: There is neither.
    """
    if given is not None:
        reference = Model.load(given).copy_ir()
    elif isinstance(model.meta.get(REFERENCE_KEY), ir.Model):
        reference = model.meta[REFERENCE_KEY].clone()
    else:
        raise PreconditionError(
            f"{wanted_by} needs the float model that the quantized one was made from.",
            expected="reference=, or the result of QuantizeStatic in the same process",
            found="neither; the float model is not stored in files",
            hint=f"Pass {wanted_by}(reference='float.onnx', …), or apply it right after QuantizeStatic.",
        )
    opset = model.opset_imports.get("", 0)
    if reference.opset_imports.get("", 0) < opset:
        reference = convert_opset(reference, opset, wanted_by=wanted_by)
    if given is not None:
        infer_shapes(reference, data_prop=True)
        follow_gemms(reference, model)
    return reference


def quantized_layers(quantized: ir.Model, reference: ir.Model, report: ReportBuilder) -> Iterator[Layer]:
    """Yield the quantized layers in topological order; those that cannot be compared are skipped."""
    counterparts = {node.name or "": node for node in reference.graph}
    for node in list(quantized.graph):
        if node.op_type not in LINEAR_OPS:
            continue
        own = find_linear(node)
        if isinstance(own, str):
            report.skip(node, own)
            continue
        if own.dequantize is None:
            report.skip(node, "its weight is not quantized")
            continue
        other = counterparts.get(node.name or "")
        its = find_linear(other) if other is not None else "the float model has no node of that name"
        if isinstance(its, str):
            report.skip(node, its)
        elif its.dequantize is not None or its.array().shape != own.array().shape:
            report.skip(node, "the node of that name in the float model is another layer")
        else:
            yield Layer(quantized=own, reference=its)


@final
class Twin:
    """The quantized graph joined with its reference.

    Args:
        quantized: The quantized graph; it is copied.
        reference: The float graph; it is consumed.
        report: Told of the layers that cannot be compared.

    Attributes:
        model: The joined graph.
        layers: The layers, in topological order.
    """

    def __init__(self, quantized: ir.Model, reference: ir.Model, report: ReportBuilder) -> None:
        self.model = quantized.clone()
        self.layers = tuple(quantized_layers(self.model, reference, report))
        _join(self.model, reference)

    def expose(self, values: list[ir.Value]) -> Model:
        """Return the joined model with these tensors as its outputs."""
        self.model.graph.outputs.clear()
        self.model.graph.outputs.extend(values)
        self.model.graph.sort()
        return Model(self.model)


def reduce_mean(graph: ir.Graph, value: ir.Value, axes: list[int], *, opset: int, name: str) -> ir.Value:
    """Append the mean over the axes, kept as dimensions of 1, and return it."""
    if opset >= 18:
        constant = add_initializer(graph, f"{name}_axes", np.array(axes, np.int64))
        node = ir.node("ReduceMean", [value, constant], {"keepdims": 1}, name=name)
    else:
        node = ir.node("ReduceMean", [value], {"axes": axes, "keepdims": 1}, name=name)
    node.outputs[0].name = f"{name}_out"
    node.outputs[0].type = value.type
    if value.shape is not None:  # spares the session that would measure its size
        node.outputs[0].shape = ir.Shape([1 if axis in axes else dim for axis, dim in enumerate(value.shape)])
    graph.append(node)
    return node.outputs[0]


def _join(model: ir.Model, reference: ir.Model) -> None:
    """Move the reference's nodes and weights into the model, under names of their own."""
    inputs = {value.name: value for value in model.graph.inputs}
    for value in list(reference.graph.inputs):
        own = inputs.get(value.name)
        if own is None:
            if value.is_initializer():
                continue
            raise PreconditionError(
                "The float model has an input that the quantized one has not.", where=f"input {value.name!r}"
            )
        value.replace_all_uses_with(own)
    for value in list(reference.graph.initializers.values()):
        tensor = value.const_value
        moved = ir.Value(
            name=f"{_PREFIX}{value.name}", type=value.type, shape=value.shape, const_value=tensor
        )
        model.graph.register_initializer(moved)
        value.replace_all_uses_with(moved, replace_graph_outputs=True)
    nodes = list(reference.graph)
    reference.graph.outputs.clear()
    reference.graph.remove(nodes)
    for node in nodes:
        node.name = f"{_PREFIX}{node.name}"
        for output in node.outputs:
            output.name = f"{_PREFIX}{output.name}"
    model.graph.extend(nodes)
    for key, function in reference.functions.items():
        model.functions.setdefault(key, function)
    for domain, version in reference.opset_imports.items():
        model.opset_imports.setdefault(domain, version)
