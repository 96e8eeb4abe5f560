"""Fitting the placement of quantizers to the machine: by measurement, where the target is here.

A dialect's kernel costs were fitted to one CPU. So what they leave in float is tried in int8, and what the
profiler finds slower in int8 is tried in float; each is kept only if the whole model is faster, timed in
turns. The ranges do not matter for speed, so a few feeds are enough to calibrate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.devices.profile import Target
from edgeinfer.measure.speedup import Speedup, measure_speedup
from edgeinfer.model.model import Model
from edgeinfer.quantization.methods.quantize_static import QuantizeStatic
from edgeinfer.quantization.placement.dialects import dialect_of
from edgeinfer.quantization.qdq.marks import quantized_for
from edgeinfer.quantization.search.layer_gains import LayerGain, LayerGains, layer_gains
from edgeinfer.transforms.contract import Skipped
from edgeinfer.values import as_tuple

__all__ = ["Fit", "fit_placement"]

_FEEDS = 2
_SECONDS = 0.5  # of each comparison
_FASTER = 1.02  # of two equal models one is measured this much faster now and then


@final
@attrs.frozen(kw_only=True)
class Fit:
    """Where the quantizers go on this machine.

    Attributes:
        dialect: The target's, without its kernel costs where they were shown to be wrong.
        slower: Layers that stay in float because the whole model is faster so, and why.
        gains: What the others gain, where that can be measured.
    """

    dialect: QDQDialect
    slower: tuple[Skipped, ...] = attrs.field(default=(), converter=as_tuple)
    gains: LayerGains | None = None


def fit_placement(
    model: Model,
    feeds: Sequence[Mapping[str, np.ndarray]],
    target: Target | str | None,
    *,
    keep_float: Collection[str] = (),
) -> Fit:
    """Find the placement that is fastest on this machine.

    Args:
        model: The float model.
        feeds: Its inputs; the first ones are used.
        target: Where it will run; None for ONNX Runtime.
        keep_float: Names of nodes that stay in float in any case.

    Returns:
        The placement; that of the dialect alone, where the target cannot be measured here.
    """
    trial = _Trial(model, list(feeds[:_FEEDS]), target, keep_float)
    dialect = dialect_of(target)
    best = trial.quantized(dialect)
    if dialect.costs is not None:
        everything = attrs.evolve(dialect, costs=None)
        candidate = trial.quantized(everything)
        if candidate.digest != best.digest and trial.faster(best, candidate):
            dialect, best = everything, candidate
    if quantized_for(best.ir) is None:
        return Fit(dialect=dialect)
    gains = layer_gains(model, best, trial.feeds[0], target=target)
    if gains is None:
        return Fit(dialect=dialect)
    slow = sorted((layer for layer in gains.layers if layer.slower), key=lambda layer: layer.gain_us)
    # All of them, or those that lose most: a float layer among int8 ones needs quantizers around it.
    sizes = dict.fromkeys((len(slow), (len(slow) + 1) // 2, min(len(slow), 1)))
    found: tuple[Speedup, list[LayerGain]] | None = None
    for size in filter(None, sizes):
        speed = trial.faster(best, trial.quantized(dialect, {layer.node for layer in slow[:size]}))
        if speed is not None and (found is None or speed.ratio > found[0].ratio):
            found = speed, slow[:size]
    if found is None:
        return Fit(dialect=dialect, gains=gains)
    speed, layers = found
    which = "it" if len(layers) == 1 else f"{len(layers)} such layers"
    slower = [
        Skipped(
            layer.node,
            f"slower in int8 here: {layer.int8_us:.1f} µs against {layer.float_us:.1f} in float; "
            f"with {which} in float the model is {speed.ratio:.2f}x as fast",
        )
        for layer in layers
    ]
    kept = [layer for layer in gains.layers if layer not in layers]
    return Fit(dialect=dialect, slower=slower, gains=attrs.evolve(gains, layers=kept))


@attrs.frozen
class _Trial:
    model: Model
    feeds: list[Mapping[str, np.ndarray]]
    target: Target | str | None
    keep_float: Collection[str]

    def quantized(self, dialect: QDQDialect, slow: Collection[str] = ()) -> Model:
        """Return the model as it would run with some layers in float."""
        feeds: Any = self.feeds
        step = QuantizeStatic(
            calibration=feeds, target=dialect, method="minmax", keep_float={*self.keep_float, *slow}
        )
        return step.apply(self.model).model

    def faster(self, best: Model, candidate: Model) -> Speedup | None:
        """Return how much faster a candidate is, found so twice, or None when it is not."""
        for _ in range(2):
            speed = measure_speedup(best, candidate, self.feeds[0], target=self.target, seconds=_SECONDS)
            if speed is None or speed.ratio <= _FASTER:
                return None
        return speed
