"""Taking Q/DQ out of a graph, and keeping what they knew."""

from __future__ import annotations

from typing import final

import attrs
import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeinfer.errors import PreconditionError
from edgeinfer.numerics.qparams import QParams

__all__ = ["Stripped", "strip_qdq"]


@final
@attrs.frozen(kw_only=True)
class Stripped:
    """What the quantizers of a graph knew.

    Attributes:
        ranges: The lowest and highest value of each quantized activation that its quantizer can hold.
        weights: The scales of each constant that was stored in integers, by the name that it has now.
    """

    ranges: dict[str, tuple[float, float]]
    weights: dict[str, QParams]


def strip_qdq(model: ir.Model) -> Stripped:
    """Turn a Q/DQ graph into the float graph that it approximates, in place.

    Weights and biases become the float values that their integers stand for, so that quantizing them again
    with the same scales gives the same integers.

    Raises:
        PreconditionError: A quantizer is not of a kind that can be taken out, such as one whose integers
            are read by something else than DequantizeLinear, or whose scale is computed.
    """
    ranges: dict[str, tuple[float, float]] = {}
    weights: dict[str, QParams] = {}
    for node in list(model.graph):
        if node.op_type == "QuantizeLinear":
            ranges[_open(node)] = _range(node)
        elif node.op_type == "DequantizeLinear":
            source = node.inputs[0]
            array = _array(source)
            if array is None:
                maker = source.producer() if source is not None else None
                if maker is None or maker.op_type != "QuantizeLinear":
                    raise _refused(node, "it dequantizes what no QuantizeLinear made")
                continue  # its quantizer takes it out
            value, qparams = _dequantized(model.graph, node, array)
            if qparams is not None:
                weights[str(value.name)] = qparams
    common_passes.RemoveUnusedNodesPass()(model)
    return Stripped(ranges=ranges, weights=weights)


def _open(node: ir.Node) -> str:
    """Let the readers of a quantizer's values read the float tensor; return that tensor's name."""
    source, quantized = node.inputs[0], node.outputs[0]
    assert source is not None
    for user in quantized.consumers():
        if user.op_type != "DequantizeLinear":
            raise _refused(user, "it reads integers, so the model is not a pure Q/DQ graph")
        dequantized = user.outputs[0]
        if dequantized.is_graph_output():
            _keep_output(dequantized, source)
        for reader, index in list(dequantized.uses()):
            reader.replace_input_with(index, source)
    return str(source.name)


def _keep_output(dequantized: ir.Value, source: ir.Value) -> None:
    """Let a float tensor take over the name of the model's output that stood behind its quantizer."""
    graph = dequantized.graph
    assert graph is not None
    name = dequantized.name
    if source.is_graph_output() or source.is_graph_input():
        node = ir.node("Identity", [source], name=f"{name}_Identity")
        graph.append(node)
        replacement = node.outputs[0]
    else:
        replacement = source
    replacement.type, replacement.shape = dequantized.type, dequantized.shape
    graph.outputs[list(graph.outputs).index(dequantized)] = replacement
    dequantized.name = f"{name}_dequantized"
    replacement.name = name


def _range(node: ir.Node) -> tuple[float, float]:
    scale, zero_point = _array(node.inputs[1]), _array(node.inputs[2] if len(node.inputs) > 2 else None)
    if scale is None or scale.size != 1:
        raise _refused(node, "its scale is computed, or there is one for each channel")
    if zero_point is None:
        zero_point = np.zeros((), np.uint8)
    if zero_point.dtype.kind not in "iu":
        raise _refused(node, f"its values are {zero_point.dtype}")
    ends = np.iinfo(zero_point.dtype)
    zero, step = int(zero_point.reshape(())), float(scale.reshape(()))
    low = -ends.max if zero == 0 and ends.min < 0 else ends.min
    return (low - zero) * step, (ends.max - zero) * step


def _dequantized(graph: ir.Graph, node: ir.Node, array: np.ndarray) -> tuple[ir.Value, QParams | None]:
    """Replace a constant behind DequantizeLinear by its float values; an int32 bias has no QParams."""
    if "block_size" in node.attributes and node.attributes["block_size"].as_int():
        raise _refused(node, "its weights have a scale for each block")
    scale, zero_point = _array(node.inputs[1]), _array(node.inputs[2] if len(node.inputs) > 2 else None)
    if scale is None:
        raise _refused(node, "its scale is computed")
    if zero_point is None:
        zero_point = np.zeros(scale.shape, array.dtype)
    attribute = node.attributes.get("axis")
    axis = (attribute.as_int() if attribute is not None else 1) if scale.size > 1 else None
    axis = axis if axis is None else axis % array.ndim
    shape = [1] * array.ndim
    if axis is not None:
        shape[axis] = -1
    step, zero = scale.reshape(shape), zero_point.reshape(shape)
    values = ((array.astype(np.float64) - zero) * step).astype(scale.dtype)
    old = node.outputs[0]
    name = str(old.name)
    old.name = f"{name}_dq"
    tensor = ir.tensor(values, name=name.removesuffix("_dequantized"))
    value = ir.Value(
        name=tensor.name, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.initializers.pop(str(tensor.name), None)
    graph.register_initializer(value)
    for reader, index in list(old.uses()):
        reader.replace_input_with(index, value)
    if array.dtype == np.int32:
        return value, None
    if axis is None:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    return value, QParams(scale=scale, zero_point=zero_point, dtype=str(array.dtype), axis=axis)


def _array(value: ir.Value | None) -> np.ndarray | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def _refused(node: ir.Node, why: str) -> PreconditionError:
    return PreconditionError(
        f"The quantizers of this model cannot be taken out: {why}.",
        where=f"node {node.name!r} ({node.op_type})",
        expected="QuantizeLinear and DequantizeLinear with constant scales, in pairs",
        hint="Quantize the float model that this one was made from, with QuantizeStatic(target=...).",
    )
