"""Bias correction (Nagel et al. 2019, "Data-Free Quantization", section 4.2; empirical form).

Quantization shifts the mean of a layer's output. The shift of each channel, `E[y_float - y_quantized]`, is
added to its bias, which costs nothing at run time. A layer's shift depends on the corrections before it,
which would take a pass of the calibration data for each layer. Here the correction is made inside the graph
while it is measured: each layer's mean is set right for the batch at hand, so that the layers behind it see
corrected inputs, and one pass does for all.
"""

from __future__ import annotations

from typing import Any, cast, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.calibration.channel_observers import SampleObserver
from edgeinfer.calibration.statistics import Statistics, as_statistics
from edgeinfer.errors import CalibrationError
from edgeinfer.graph.infer_shapes import infer_shapes
from edgeinfer.graph.weights import (
    LINEAR_OPS,
    Linear,
    add_initializer,
    constant,
    find_linear,
    graph_of,
    set_constant,
)
from edgeinfer.model.model import Model, ModelSource
from edgeinfer.quantization.methods.float_pair import Layer, Twin, find_reference, is_quantized, reduce_mean
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder

__all__ = ["CorrectBias"]


@final
@attrs.frozen
class CorrectBias(GraphTransform):
    """Add the mean error of each output channel of a Q/DQ graph to its bias.

    Conv and Gemm are corrected; those without a bias get one.

    Args:
        calibration: Representative feeds.
        reference: The float model; None for the one that QuantizeStatic left in memory.
    """

    calibration: Any = attrs.field(default=None, eq=False)
    reference: ModelSource | None = attrs.field(default=None, kw_only=True, eq=False)

    # The correction is an estimate; applying it again estimates what is left.
    idempotent = False

    names_layers = True
    reports_on = frozenset(("Conv", "Gemm", "MatMul"))

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Measure the shifts and correct them."""
        if not is_quantized(model):
            for node in model.graph:
                if node.op_type in LINEAR_OPS:
                    report.skip(node, "the graph is float: there is no quantization error to correct")
            return
        if self.calibration is None:
            raise CalibrationError(
                "CorrectBias needs calibration data.", hint="CorrectBias(calibration=feeds)"
            )
        twin = Twin(model, find_reference(model, self.reference, wanted_by="CorrectBias"), report)
        infer_shapes(twin.model, data_prop=True)
        shifts = {}
        for layer in twin.layers:
            shift = _measured(twin, layer, report)
            if shift is not None:
                shifts[layer.quantized.node.name or ""] = shift
        means = _means(twin, shifts, as_statistics(self.calibration, Model(model.clone()).signature))
        nodes = {node.name or "": node for node in model.graph}
        corrected = []
        for name, mean in means.items():
            linear = find_linear(nodes[name])
            assert not isinstance(linear, str)
            done = _correct(linear, mean, int32=_int32_biases(model))
            if done is None:
                report.apply(name, f"mean error of up to {np.abs(mean).max():.3g} added to the bias")
                corrected.append(name)
            else:
                report.skip(name, done)
        report.data["mean_error"] = {name: means[name] for name in corrected}


def _measured(twin: Twin, layer: Layer, report: ReportBuilder) -> ir.Value | None:
    """Insert the measurement of a layer's shift, and its correction within the batch."""
    node = layer.quantized.node
    graph = twin.model.graph
    output, wanted = layer.quantized.output, layer.reference.output
    if node.op_type == "MatMul":
        # Measured on a BERT with clipped ranges: 18.9 dB before, -3 dB after correcting every MatMul.
        report.skip(node, "a few outlier tokens make the mean error of a MatMul, and the others would pay")
        return None
    if output.shape is None:
        report.skip(node, "the rank of its output is not known")
        return None
    rank = len(output.shape)
    axis = 1 if node.op_type == "Conv" else rank - 1
    uses = list(output.uses())
    error = _append(graph, "Sub", [wanted, output], f"{node.name}_error")
    opset = twin.model.opset_imports[""]
    # (batch, channels) leaves the runtime; the mean over the batch corrects within the graph.
    inner = [other for other in range(1, rank) if other != axis]
    samples = reduce_mean(graph, error, inner, opset=opset, name=f"{node.name}_shift") if inner else error
    mean = reduce_mean(graph, samples, [0], opset=opset, name=f"{node.name}_mean_shift")
    corrected = _append(graph, "Add", [output, mean], f"{node.name}_corrected")
    for user, index in uses:
        user.replace_input_with(index, corrected)
    return samples


def _append(graph: ir.Graph, op_type: str, inputs: list[ir.Value], name: str) -> ir.Value:
    node = ir.node(op_type, inputs, name=name)
    node.outputs[0].name = f"{name}_out"
    node.outputs[0].type, node.outputs[0].shape = inputs[0].type, inputs[0].shape
    graph.append(node)
    return node.outputs[0]


def _means(twin: Twin, shifts: dict[str, ir.Value], statistics: Statistics) -> dict[str, np.ndarray]:
    """Return each layer's mean shift `(channels,)`, shrunk by what chance explains.

    The mean of n samples with variance v has an error of v / n of its own; the positive-part James-Stein
    factor `1 - v / (n mean²)` takes it out, so that noise is not written into the biases.
    """
    needs = {str(value.name): [SampleObserver()] for value in shifts.values()}
    # What nothing here needs is left out of the joined graph, such as a NonMaxSuppression at its end, whose
    # boxes are as many in one half as in the other only by chance.
    found = statistics.gather(twin.expose(list(shifts.values())), needs, keep=False)
    means = {}
    for name, value in shifts.items():
        seen = cast("SampleObserver", found[str(value.name)][0])
        means[name] = _shrunk(seen.total, seen.squares, seen.count)
    return means


def _shrunk(total: np.ndarray, squares: np.ndarray, count: int) -> np.ndarray:
    mean = total / count
    if count == 1:
        return mean
    chance = np.maximum(squares / count - mean**2, 0.0) / (count - 1)
    factor: np.ndarray = np.clip(1.0 - chance / np.maximum(mean**2, 1e-300), 0.0, 1.0)
    shrunk: np.ndarray = mean * factor
    return shrunk


def _int32_biases(model: ir.Model) -> bool:
    """Whether biases of this graph are int32 behind DequantizeLinear.

    A runtime whose graphs have uint8 activations fuses only those; TensorRT, which refuses them, has int8
    ones.
    """
    for node in model.graph:
        if node.op_type == "QuantizeLinear" and node.outputs[0].dtype is ir.DataType.UINT8:
            return True
        value = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if value is not None and value.dtype is ir.DataType.INT32:
            return True
    return False


def _correct(linear: Linear, shift: np.ndarray, *, int32: bool) -> str | None:
    """Add the shift to the layer's bias; returns the reason where that cannot be done."""
    node = linear.node
    if not np.isfinite(shift).all():
        return "its error is not finite"
    bias = linear.bias
    if bias is None:
        _add_bias(linear, shift, int32=int32)
        return None
    producer = bias.producer()
    if producer is None and bias.const_value is not None and bias.is_initializer():
        array = constant(bias)
        new = add_initializer(graph_of(node), f"{bias.name}_corrected", (array + shift).astype(array.dtype))
        node.replace_input_with(2, new)
        _drop(bias)
        return None
    if producer is None or producer.op_type != "DequantizeLinear":
        return "its bias is computed by the graph"
    stored, scale = producer.inputs[0], constant(producer.inputs[1]).astype(np.float64)
    if stored is None or stored.const_value is None or len(list(stored.uses())) > 1:
        return "its bias is shared with another node"
    change = np.rint(constant(stored) + shift / scale)
    if np.array_equal(change, constant(stored)):
        return "its mean error is smaller than a step of its bias"
    set_constant(stored, np.clip(change, -(2**31) + 1, 2**31 - 1).astype(np.int32))
    return None


def _add_bias(linear: Linear, shift: np.ndarray, *, int32: bool) -> None:
    node = linear.node
    graph = graph_of(node)
    name = f"{node.name}_bias"
    activation = linear.input.producer()
    if int32 and activation is not None and activation.op_type == "DequantizeLinear" and linear.dequantize:
        scale = constant(activation.inputs[1]) * constant(linear.dequantize.inputs[1]).astype(np.float32)
        stored = add_initializer(graph, f"{name}_quantized", np.rint(shift / scale).astype(np.int32))
        scales = add_initializer(graph, f"{name}_scale", np.asarray(scale, np.float32))
        attributes = {"axis": 0} if scale.ndim else {}
        made = ir.node("DequantizeLinear", [stored, scales], attributes, name=f"{name}_DequantizeLinear")
        made.outputs[0].name = name
        graph.insert_before(node, made)
        value = made.outputs[0]
    else:
        value = add_initializer(graph, name, shift.astype(np.float32))
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, value)


def _drop(value: ir.Value) -> None:
    graph = value.graph
    if graph is not None and not value.uses() and not value.is_graph_output() and value.name:
        del graph.initializers[value.name]
