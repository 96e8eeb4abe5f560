"""Trading time for accuracy, and back, once it is known which steps make a model int8.

Let N be the noise power at the output (signal power over SQNR). Quantization noise of different layers
nearly adds up, so giving the layers of a set S back to float leaves about N - sum of N_i over S, with N_i
from the sensitivity table. The time that giving layer i back costs is what int8 gains there by the runtime's
own profiler, or where it has none, is taken to grow with its multiply-accumulates. Greedy by noise per time
gives one order of the layers; bisection on real candidates finds the shortest prefix of it that meets the
tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import final

import attrs
import numpy as np

from edgeinfer.calibration.calibration import Calibration
from edgeinfer.devices.profile import Target
from edgeinfer.measure.speedup import measure_speedup
from edgeinfer.model.model import Model
from edgeinfer.quantization.placement.dialects import dialect_of
from edgeinfer.quantization.placement.output_layers import output_layers
from edgeinfer.quantization.qdq.marks import quantized_for, ranges_of
from edgeinfer.quantization.search.int8_recipe import Attempt, Recipe
from edgeinfer.quantization.search.layer_gains import LayerGains, costs_of_float, integer_nodes
from edgeinfer.quantization.search.output_score import Score
from edgeinfer.quantization.search.sensitivity import LayerSensitivity, Sensitivity, sensitivity
from edgeinfer.transforms.contract import Pipeline, TransformResult

__all__ = ["Trades"]

_BARGAIN_FEEDS = 4  # enough to rank layers by
_CHANCE_DB = 0.25  # less is chance; unless it saves time, too, a bargain must buy more
_BARGAIN_DB = 1.0
_BARGAIN_TRIES = 5  # one by one, where all of them together cost time
_SAME = 0.02  # of a ratio of times: less is chance
_AS_FAST = 0.97  # of two equal models one is measured this much slower now and then


@final
@attrs.define(kw_only=True)
class Trades:
    """What one model and target allow.

    Attributes:
        model: The float model.
        calibration: Feeds that ranges come from.
        judged: Feeds that the outputs are compared on, the first of which is timed.
        target: Where the model will run.
        on_target: Whether layers are judged on the target, which computes something else than ONNX Runtime.
        measure: Whether speed may be measured.
        spend: The share of the time that a decibel is worth, and the most that is spent on decibels unasked.
        gains: What int8 gains by layer, where that was measured.
        judge: Scores a version of the model.
        meets: Whether an attempt keeps the tolerance.
        table: The sensitivity table, when one was made.
    """

    model: Model
    calibration: Calibration
    judged: Sequence[Mapping[str, np.ndarray]]
    target: Target | str | None
    on_target: bool
    measure: bool
    spend: float
    gains: LayerGains | None
    judge: Callable[[Model], Score]
    meets: Callable[[Attempt], bool]
    table: Sensitivity | None = None

    def search(self, recipe: Recipe, whole: Attempt) -> tuple[Attempt, tuple[str, ...]]:
        """Return the attempt with the fewest layers in float, in greedy order, that meets the tolerance."""
        # A layer that the target computes wrongly stands out in a few feeds.
        feeds = _BARGAIN_FEEDS if self.on_target else len(self.judged)
        known, prepared, layers, _ = self.ranked(recipe, whole, feeds)
        order = [layer.node for layer in layers]
        low, high = 0, len(order)  # with the first `high` in float it is met, with the first `low` it is not
        found = self.attempt(known, prepared, order)
        while high - low > 1:
            # Few layers usually do, so the first steps are small: 1, 2, 4, …
            middle = (low + high) // 2 if high < len(order) else min(high - 1, max(1, 2 * low))
            attempt = self.attempt(known, prepared, order[:middle])
            if self.meets(attempt):
                high, found = middle, attempt
            else:
                low = middle
        return found, tuple(order[:high])

    def bargain(self, recipe: Recipe, whole: Attempt) -> tuple[Attempt, tuple[str, ...]]:
        """Return the attempt with cheap, noisy layers in float if that is worth its time, else `whole`."""
        spend, affordable = self.spend, None
        if self.gains is not None:
            affordable = self.gains.nodes_within(spend * self.gains.int8_us)
        known, prepared, layers, costs = self.ranked(recipe, whole, _BARGAIN_FEEDS, affordable)
        left = spend * (self.gains.int8_us if self.gains is not None else sum(costs.values()))
        cheap = []
        for layer in layers:
            cost = costs[layer.node]
            if not cost or cost > left:
                break
            left -= cost
            cheap.append(layer.node)

        ratio = self.speed(whole, known, prepared, cheap) if cheap else 0.0
        if ratio < _AS_FAST:
            found: list[str] = []
            for name in cheap[:_BARGAIN_TRIES]:
                each = self.speed(whole, known, prepared, [*found, name])
                if each >= max(ratio - _SAME, _AS_FAST):
                    found.append(name)
                    ratio = each
            cheap = found
        if not cheap:
            return whole, ()
        attempt = self.attempt(known, prepared, cheap)
        closer = attempt.rank_db - whole.rank_db
        least_db = _CHANCE_DB if ratio > 1.0 + _SAME else _BARGAIN_DB
        worth = closer >= least_db and closer * spend >= 1.0 - ratio
        if not worth or quantized_for(attempt.model.ir) is None:
            return whole, ()
        return attempt, tuple(cheap)

    def ranked(
        self, recipe: Recipe, whole: Attempt, samples: int, nodes: Collection[str] | None = None
    ) -> tuple[Recipe, TransformResult, list[LayerSensitivity], dict[str, float]]:
        """Rank layers for giving them back to float.

        Returns:
            The rest of the recipe with its ranges known, what it is to be applied to, the layers by noise per
            time, most first, and their times.
        """
        known, prepared = self.prepared(recipe, whole)
        table = sensitivity(
            prepared.model,
            self.calibration,
            target=self.target,
            samples=samples,
            method=recipe.quantize.method,
            ranges=known.quantize.ranges,
            on_target=self.on_target,
            nodes=nodes,
        )
        self.table = table
        integer = integer_nodes(whole.model.ir)
        layers = [layer for layer in table.layers if layer.node in integer]
        costs = costs_of_float({layer.node: float(layer.macs or 0) for layer in layers}, self.gains)

        def noise_per_time(layer: LayerSensitivity) -> float:
            return float(10.0 ** (-layer.rank_db / 10) / max(costs[layer.node], 1e-9))

        return known, prepared, sorted(layers, key=noise_per_time, reverse=True), costs

    def with_outputs(self, recipe: Recipe, best: Attempt, given_back: Collection[str]) -> Attempt:
        """Return the attempt whose outputs come from integer kernels if that is worth its noise, else `best`.

        It is where a decibel that it costs saves more time than may be spent on one.
        """
        dialect = attrs.evolve(dialect_of(recipe.quantize.target), quantize_outputs=True)
        layers = output_layers(self.model, dialect) - {*recipe.quantize.keep_float}
        if not layers or not self.spend:
            return best
        known, prepared = self.prepared(recipe, best)
        known = attrs.evolve(known, quantize=attrs.evolve(known.quantize, target=dialect))
        gained = self.speed(best, known, prepared, given_back) - 1.0
        if gained < max(self.spend, _SAME):
            return best
        attempt = self.attempt(known, prepared, given_back)
        lost = best.rank_db - attempt.rank_db
        return attempt if lost * self.spend <= gained and self.meets(attempt) else best

    def prepared(self, recipe: Recipe, whole: Attempt) -> tuple[Recipe, TransformResult]:
        """Return the rest of a recipe, with the ranges that are known, and what its first steps made."""
        quantize = attrs.evolve(recipe.quantize, ranges=ranges_of(whole.model.ir))
        return attrs.evolve(recipe, before=(), quantize=quantize), Pipeline(recipe.before).apply(self.model)

    def speed(
        self, whole: Attempt, known: Recipe, prepared: TransformResult, keep_float: Collection[str]
    ) -> float:
        """Return how many times as fast as `whole` a variant is; 1 where that is not to be measured."""
        if not self.measure:
            return 1.0
        quantize = attrs.evolve(known.quantize, keep_float={*known.quantize.keep_float, *keep_float})
        candidate = quantize.apply(prepared.model).model
        speed = measure_speedup(whole.model, candidate, self.judged[0], target=self.target)
        return speed.ratio if speed is not None else 1.0

    def attempt(self, known: Recipe, prepared: TransformResult, keep_float: Collection[str]) -> Attempt:
        """Apply the rest of a recipe to what its first steps made, with some layers in float."""
        attempt = known.apply(prepared.model, self.judge, keep_float=keep_float)
        return attrs.evolve(attempt, steps=(*prepared.report.steps, *attempt.steps))
