"""Equalizing the ranges of an activation's channels, so that one scale for all of them wastes least.

A runtime quantizes activations with one scale a tensor: a channel with a tenth of the tensor's range gets a
tenth of the levels. Where channels may be scaled freely (see `channel_scales`), `x_i / s_i` with `s_i =
(r_i / r)^alpha`, r_i the range of the channel and r that of the tensor, gives each its share. The layer in
front takes `1 / s_i` in its output channels, which have scales of their own; the layer behind takes `s_i` in
its input channels. With the activation's rounding alone in mind `alpha = 1` is never worse: the noise behind
the next layer is `Σ ‖W_i‖² r_i²` in place of `r² Σ ‖W_i‖²`. But it makes the weights of the next layer less
alike, which a smaller alpha balances. It is SmoothQuant's idea (Xiao et al. 2023) for convolutions; the
equalization of Nagel et al. (2019) looks at weights alone, and serves weights with one scale a tensor.
"""

from __future__ import annotations

from typing import Any, final

import attrs
import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeinfer.calibration.calibration import as_calibration, observe
from edgeinfer.calibration.channel_observers import ChannelRangeObserver
from edgeinfer.errors import CalibrationError
from edgeinfer.graph.channels.scales import FIXED, ChannelScales, Layer
from edgeinfer.graph.weights import constant, set_constant
from edgeinfer.model.model import Model
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder

__all__ = ["EqualizeActivations"]

_ROUNDS = 20
# What was seldom seen is not known well: no channel is taken to be smaller than this part of the greatest.
_LEAST = 0.25
_NEGLIGIBLE = 1e-2


@final
@attrs.frozen
class EqualizeActivations(GraphTransform):
    """Scale the channels between layers so that they use the range of their tensor alike.

    Args:
        calibration: Representative feeds.
        alpha: How far, 0 to 1; 1 gives all channels one range.
    """

    calibration: Any = attrs.field(default=None, eq=False)
    alpha: float = attrs.field(default=0.5, validator=[attrs.validators.gt(0), attrs.validators.le(1)])

    # After the first time the channels are alike, as far as alpha goes.
    idempotent = False

    names_layers = True
    reports_on = frozenset(("Conv", "Gemm", "MatMul"))

    def rewrite(self, model: ir.Model, report: ReportBuilder, /) -> None:
        """Measure and scale."""
        if self.calibration is None:
            raise CalibrationError(
                "EqualizeActivations needs calibration data.", hint="EqualizeActivations(calibration=feeds)"
            )
        inferred = model.clone()
        common_passes.ShapeInferencePass()(inferred)
        scales = ChannelScales(inferred.graph)
        ranges = self._ranges(inferred, scales)
        factors = _solve(scales, ranges) ** self.alpha
        own = dict(zip(inferred.graph, model.graph, strict=True))
        for layer in scales.layers:
            _scale(layer, own[layer.linear.node], scales, factors, report)

    def _ranges(self, model: ir.Model, scales: ChannelScales) -> dict[ir.Value, np.ndarray]:
        """Return the greatest magnitude of each channel of the tensors that a quantizer may stand on."""
        stored = [value for value in scales.tensors() if not _is_inner(value)]
        observers = {}
        axes = {}
        for value in stored:
            shape = scales.numbers(value).shape
            varying = [axis for axis, size in enumerate(shape) if size > 1]
            if len(varying) == 1:
                axes[value] = varying[0]
                observers[str(value.name)] = ChannelRangeObserver(varying[0])
        frozen = Model(model.clone())
        if observers:
            observe(frozen, as_calibration(self.calibration, frozen.signature), observers, progress=False)
        found = {}
        for value in axes:
            low, high = observers[str(value.name)].range()
            magnitude = np.maximum(-low, high).astype(np.float64)
            if not magnitude.any():
                continue
            found[value] = np.maximum(magnitude, magnitude.max(initial=0.0) * _LEAST)
        return found


def _is_inner(value: ir.Value) -> bool:
    """Whether only an activation function reads the tensor, which the kernel takes in."""
    users = value.consumers()
    return len(users) == 1 and users[0].op_type in ("LeakyRelu", "Relu")


def _solve(scales: ChannelScales, ranges: dict[ir.Value, np.ndarray]) -> np.ndarray:
    """Return the factor of each number: for one tensor, its ranges over their greatest.

    Numbers that several tensors share get the geometric mean of what each tensor would want.
    """
    numbers = {value: scales.numbers(value).reshape(-1) for value in ranges}
    logs = np.zeros(scales.count)
    for _ in range(_ROUNDS):
        total, count = np.zeros(scales.count), np.zeros(scales.count)
        for value, magnitude in ranges.items():
            own = numbers[value]
            log = np.log(magnitude)
            scaled, fixed = log - logs[own], own == FIXED
            level = scaled[fixed].max() if fixed.any() else scaled.mean()
            np.add.at(total, own, log - level)
            np.add.at(count, own, 1)
        new = np.where(count > 0, total / np.maximum(count, 1), 0.0)
        new[FIXED] = 0.0
        if np.abs(new - logs).max(initial=0.0) < 1e-3:
            break
        logs = new
    factors: np.ndarray = np.exp(logs)
    return factors


def _scale(
    layer: Layer, node: ir.Node, scales: ChannelScales, factors: np.ndarray, report: ReportBuilder
) -> None:
    """Scale the weights of `node`, the copy of the layer's node in the graph that is changed."""
    linear = layer.linear
    inputs = factors[scales.resolve(layer.inputs)]
    outputs = np.ones(linear.channels) if layer.outputs is None else factors[scales.resolve(layer.outputs)]
    largest = float(np.abs(np.log(np.concatenate([inputs, outputs]))).max())
    if largest < _NEGLIGIBLE:
        report.skip(node, "its channels are equalized already, or cannot be scaled")
        return
    weight = node.inputs[1]
    assert weight is not None
    array = constant(weight)
    rows = array.shape[linear.channel_axis] // linear.groups
    per_input = np.repeat(inputs.reshape(linear.groups, -1), rows, axis=0)  # (outputs, inputs of a group)
    factor = per_input / outputs[:, None]
    factor = factor if linear.channel_axis == 0 else factor.T
    factor = factor.reshape(*factor.shape, *[1] * (array.ndim - 2))
    set_constant(weight, (array * factor).astype(array.dtype))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and layer.outputs is not None:
        shifted = constant(bias)
        set_constant(bias, (shifted / outputs).astype(shifted.dtype))
    report.apply(node, f"channels scaled by up to {np.exp(largest):.3g}")
