"""Equalizing the ranges of an activation's channels, so that one scale for all of them wastes least.

A runtime quantizes activations with one scale a tensor: a channel with a tenth of the tensor's range gets a
tenth of the levels. Where channels may be scaled freely (see `graph.channels.scales`), `x_i / s_i` with `s_i
= (r_i / r)^alpha`, r_i the range of the channel and r that of the tensor, gives each its share. The layer in
front takes `1 / s_i` in its output channels, which have scales of their own; the layer behind takes `s_i` in
its input channels. With the activation's rounding alone in mind `alpha = 1` is never worse: the noise behind
the next layer is `Σ ‖W_i‖² r_i²` in place of `r² Σ ‖W_i‖²`. But it makes the weights of the next layer less
alike, which a smaller alpha balances. It is SmoothQuant's idea (Xiao et al. 2023) for convolutions; the
equalization of Nagel et al. (2019) looks at weights alone, and serves weights with one scale a tensor.
"""

from __future__ import annotations

from typing import Any, cast, final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.calibration.channel_observers import ChannelRangeObserver
from edgeinfer.calibration.statistics import Needs, as_statistics
from edgeinfer.errors import CalibrationError
from edgeinfer.graph.channels.scales import FIXED, ChannelScales, ScaledLayer, rescale
from edgeinfer.graph.rescaled import note_rescaled
from edgeinfer.graph.weights import find_linear
from edgeinfer.model.model import Model
from edgeinfer.numerics.fixed_order import round_bits
from edgeinfer.quantization.placement.prepare import prepare
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
        prepare(inferred)
        scales = ChannelScales(inferred.graph)
        ranges = self._ranges(Model(inferred), scales)
        factors = round_bits(_solve(scales, ranges) ** self.alpha)
        # Exactly 1, so that the layers on both sides of a channel agree on leaving it alone.
        factors[np.abs(np.log(factors)) < _NEGLIGIBLE] = 1.0
        own = dict(zip(inferred.graph, model.graph, strict=True))
        for layer in scales.layers:
            _scale(layer, own[layer.linear.node], scales, factors, report)
        if report.applied:
            note_rescaled(
                model, {str(value.name): factors[scales.numbers(value)] for value in scales.tensors()}
            )

    def declare(self, model: Model, /) -> Needs:
        """Return what the ranges of channels are found from; see `Declares`."""
        graph = model.copy_ir()
        prepare(graph)
        return {str(value.name): [ChannelRangeObserver(axis)] for value, axis in _axes(graph.graph).items()}

    def _ranges(self, model: Model, scales: ChannelScales) -> dict[ir.Value, np.ndarray]:
        """Return the greatest magnitude of each channel of the tensors that a quantizer may stand on."""
        axes = _axes(model.ir.graph, scales)
        needs = {str(value.name): [ChannelRangeObserver(axis)] for value, axis in axes.items()}
        gathered = as_statistics(self.calibration, model.signature).gather(model, needs)
        found = {}
        for value in axes:
            low, high = cast("ChannelRangeObserver", gathered[str(value.name)][0]).range()
            magnitude = np.maximum(-low, high).astype(np.float64)
            if not magnitude.any():
                continue
            found[value] = np.maximum(magnitude, magnitude.max(initial=0.0) * _LEAST)
        return found


def _axes(graph: ir.Graph, scales: ChannelScales | None = None) -> dict[ir.Value, int]:
    """Return the tensors that a quantizer may stand on and whose channels may be scaled, with their axes."""
    found = scales or ChannelScales(graph)
    axes = {}
    for value in found.tensors():
        varying = [axis for axis, size in enumerate(found.numbers(value).shape) if size > 1]
        if len(varying) == 1 and not _is_inner(value):
            axes[value] = varying[0]
    return axes


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
    layer: ScaledLayer, node: ir.Node, scales: ChannelScales, factors: np.ndarray, report: ReportBuilder
) -> None:
    """Scale the weights of `node`, the copy of the layer's node in the graph that is changed."""
    linear = layer.linear
    inputs = factors[scales.resolve(layer.inputs)]
    outputs = np.ones(linear.channels) if layer.outputs is None else factors[scales.resolve(layer.outputs)]
    largest = float(np.abs(np.log(np.concatenate([inputs, outputs]))).max())
    if not largest:
        report.skip(node, "its channels are equalized already, or cannot be scaled")
        return
    own = find_linear(node)
    assert not isinstance(own, str)
    rescale(own, inputs=inputs, outputs=None if layer.outputs is None else outputs)
    report.apply(node, f"channels scaled by up to {np.exp(largest):.3g}")
