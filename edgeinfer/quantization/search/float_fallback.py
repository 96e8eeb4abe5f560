"""Which layers run in float: the one place where a search decides it.

There is one list of candidates (`Candidate`): every layer that could run in integers, with the time that
int8 saves in it and the noise that it makes. There is one price (`Price`), what a decibel is worth in time,
and one measure: the whole model, timed on the target and scored against float. Figures by layer only put the
candidates in an order.

In the order of a search:

1. `place`: what a kernel-cost model leaves in float is tried in int8, and what the profiler finds slower in
   int8 is tried in float. Time alone decides.
2. `meet`: where a tolerance is not met, the fewest layers go back that meet it, by noise per time. Noise of
   different layers nearly adds up (Zhou et al. 2018), so that a prefix of that order is found by bisection.
3. `bargain`: where it is met, cheap and noisy layers go back that buy more decibels than their time is worth.
4. `outputs`: layers that make outputs of the model run in integers where that saves more than it costs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import accumulate
from typing import final

import attrs

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.measure.speedup import NotMeasured, Speedup, Stopwatch
from edgeinfer.model.model import Model
from edgeinfer.quantization.placement.output_layers import output_layers
from edgeinfer.quantization.placement.placement import place
from edgeinfer.quantization.search.candidates import Candidate, by_noise_per_time, candidates
from edgeinfer.quantization.search.layer_gains import LayerGain, LayerGains, integer_nodes, layer_gains
from edgeinfer.quantization.search.ledger import Trial
from edgeinfer.quantization.search.model_runs import Feed
from edgeinfer.quantization.search.price import AS_FAST, HOPELESS, SAME, Price
from edgeinfer.quantization.search.workbench import Attempt, Recipe, Workbench

__all__ = ["FloatFallback"]

_MOST_GUESSES = 4  # before the search halves what is left
# Where not the fewest layers are looked for: what is aimed at above the tolerance, and what is near enough.
_MARGIN_DB, _ENOUGH_DB = 0.5, 4.0
# A trial that took so long by itself and did not help, as where an engine is built for it, is not followed by
# smaller ones of its kind.
_DEAR_S = 15.0


@final
class FloatFallback:
    """Decides, and says why.

    Args:
        bench: Makes attempts. What `place` decides is added to what each of them leaves in float.
        dialect: The target's, with its kernel costs.
        feeds: What models are timed on.
        price: What a decibel is worth.
        stopwatch: Measures time; None where speed may not be measured.
        noise_of: Returns the noise of layers at the outputs, as a share of the signal, by node; see `Judge`.
        meets: Whether an attempt keeps the tolerance.
        least_db: The decibels of the tolerance, where it has any: a first guess at how many layers it takes.
        fewest: Whether to look for the fewest layers that meet it; else the first number found is taken.
        seconds: How long two models are timed against each other.
        shapes: The shapes of tensors for one feed, to judge kernel costs by.

    Attributes:
        reasons: Why each layer that went to float did.
        gains: What int8 saves by layer, once `place` has measured it.
        unmeasured: Why speed was not measured, or an empty text.
        cut_short: What was left out for the time that it would take, or an empty text.
    """

    def __init__(
        self,
        bench: Workbench,
        dialect: QDQDialect,
        feeds: Sequence[Feed],
        price: Price,
        stopwatch: Stopwatch | None,
        *,
        noise_of: Callable[[Attempt, Collection[str], bool], Mapping[str, float]],
        meets: Callable[[Attempt], bool],
        least_db: float | None = None,
        fewest: bool = True,
        seconds: float = 0.5,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.bench, self.dialect, self.feeds = bench, dialect, feeds
        self.price, self.stopwatch, self.seconds = price, stopwatch, seconds
        self.noise_of, self.meets = noise_of, meets
        self.least_db, self.fewest = least_db, fewest
        self.shapes = shapes
        self.reasons: dict[str, str] = {}
        self.gains: LayerGains | None = None
        self.unmeasured = "" if stopwatch is not None else "measuring is off"
        self.cut_short = ""
        self._candidates: list[Candidate] | None = None

    # ---- time alone: the placement ----

    def place(self, *, fit: bool = True) -> None:
        """Decide what stays in float for its time alone; `bench.keep_float` and `reasons` get it.

        Args:
            fit: Measure; else the dialect's kernel costs decide, unless they leave no layer in int8.
        """
        costly = self._costly()
        plain = Recipe(method="minmax")  # the ranges do not matter for speed
        whole = None
        if costly and self.stopwatch is not None:
            without, _ = self.bench.quantized(plain, costly)
            # Without `fit` the costs decide, unless they leave no layer in int8: that is worth a measurement.
            if fit or not integer_nodes(without.ir):
                whole, _ = self.bench.quantized(plain)
                number = f"{len(costly)} layers that kernel costs leave in float, in int8"
                if self._faster(without, whole, number):
                    costly = {}
                else:
                    whole = without
        self._leave(costly)
        if not fit or self.stopwatch is None:
            return
        if whole is None:
            whole, _ = self.bench.quantized(plain)
        if not integer_nodes(whole.ir):
            return
        gains = layer_gains(self.bench.model, whole, self.feeds[0], self.stopwatch, self.dialect)
        if isinstance(gains, NotMeasured):
            self.unmeasured = gains.reason
            return
        self.gains = gains
        self._slower(whole, plain, gains)

    def hopeless(self, given: Model) -> Speedup | None:
        """Return how fast int8 is where it is far from paying; None where it may pay, or is not measured.

        What comes after the placement makes int8 closer to float, not faster.
        """
        return self._slower_than(given, HOPELESS, "int8, against the given model")

    def behind(self, rival: Model) -> Speedup | None:
        """Return how fast int8 is where it is no faster than its rival; None where it is, or not measured."""
        return self._slower_than(rival, 1.0, "int8, against its rival")

    def _slower_than(self, other: Model, ratio: float, what: str) -> Speedup | None:
        """Return the speed of int8 against another model, found below a ratio twice; else None."""
        plain, _ = self.bench.quantized(Recipe(method="minmax"))
        if not integer_nodes(plain.ir):
            return None
        speed = None
        for _ in range(2):
            speed = self._compare(other, plain, what)
            if speed is None or speed.ratio >= ratio:
                return None
        return speed

    def pays(self, best: Attempt, closer: Attempt) -> bool:
        """Whether an attempt that is closer to float, and may be slower, is worth its time."""
        gained_db = closer.rank_db - best.rank_db
        ratio = self._ratio(best.model, closer.model, f"{gained_db:.1f} dB closer, with nodes inserted")
        return ratio >= 1.0 - max(self.price.spend * gained_db, SAME)

    def _costly(self) -> dict[str, str]:
        """Return what the dialect's kernel costs leave in float, with the reasons."""
        if self.dialect.costs is None:
            return {}
        said: dict[str, str] = {}

        def skip(node: object, reason: str) -> None:
            said[str(getattr(node, "name", ""))] = reason

        keep, model = self.bench.keep_float, self.bench.model.ir
        every = place(model, self.bench.dialect, keep_float=keep)
        chosen = place(model, self.dialect, keep_float=keep, skip=skip, shapes=self.shapes)
        left = {str(region.node.name) for region in every.regions}
        left -= {str(region.node.name) for region in chosen.regions}
        return {name: said.get(name, "kernel costs") for name in sorted(left)}

    def _slower(self, whole: Model, plain: Recipe, gains: LayerGains) -> None:
        """Leave layers in float that are slower in int8, if the whole model is faster so."""
        slow = sorted((layer for layer in gains.layers if layer.slower), key=lambda layer: layer.gain_us)
        # All of them, or those that lose most: a float layer among int8 ones needs quantizers around it.
        sizes = dict.fromkeys((len(slow), (len(slow) + 1) // 2, min(len(slow), 1)))
        found: tuple[Speedup, list[LayerGain]] | None = None
        started = time.perf_counter()
        for trial, size in enumerate(filter(None, sizes)):
            if trial and found is None and time.perf_counter() - started > _DEAR_S:
                break
            candidate, _ = self.bench.quantized(plain, [layer.node for layer in slow[:size]])
            speed = self._faster(whole, candidate, f"{size} layers in float that are slower in int8")
            if found is not None and (speed is None or speed.ratio <= found[0].ratio):
                break
            found = (speed, slow[:size]) if speed is not None else None
            if found is None and self._was_dear(started):
                break
        if found is None:
            return
        speed, layers = found
        which = "it" if len(layers) == 1 else f"{len(layers)} such layers"
        gain = f"with {which} in float the model is {speed.ratio:.2f}x as fast"
        for layer in layers:
            times = f"{layer.int8_us:.1f} µs against {layer.float_us:.1f} in float"
            self._leave({layer.node: f"slower in int8 here: {times}; {gain}"})
        kept = [layer for layer in gains.layers if layer not in layers]
        self.gains = attrs.evolve(gains, layers=kept)

    # ---- decibels against time ----

    def meet(self, whole: Attempt) -> Attempt | None:
        """Return the attempt with the fewest layers in float, in one order, that meets the tolerance.

        Returns:
            None where none does, so that the model is better left in float.
        """
        ranked = self._ranked(whole, None, summed=True)
        order = [each.node for each in ranked]
        order += sorted(integer_nodes(whole.model.ir) - set(order))  # those whose noise is not known
        # The noise of the layers behind each number of the ranked, 0 behind the last.
        behind = [*accumulate((each.noise for each in reversed(ranked)), initial=0.0)][::-1]
        low, high = 0, len(order)  # with the first `high` in float it is met, with the first `low` it is not
        found, below = None, whole
        guesses = 0
        while high - low > 1 and (found is None or self._too_fine(found)):
            middle = self._guess(behind, low, below) if guesses < _MOST_GUESSES else None
            guesses += 1
            if middle is None:
                # Few layers usually do, so the first steps are small: 1, 2, 4, …
                middle = (low + high) // 2 if high < len(order) else max(1, 2 * low)
            middle = min(max(middle, low + 1), high - 1)
            attempt = self._attempt(whole, order[:middle], f"{middle} layers in float for the tolerance")
            if self.meets(attempt):
                high, found = middle, attempt
            else:
                low, below = middle, attempt
        self._leave(dict.fromkeys(order[:high], "given back to float to meet the tolerance"), fixed=False)
        return found

    def _too_fine(self, found: Attempt) -> bool:
        """Whether to look for fewer layers in float than an attempt has that meets the tolerance."""
        beyond_db = found.score.lower_db - self.least_db if self.least_db is not None else math.inf
        return self.fewest or beyond_db > _ENOUGH_DB

    def _guess(self, behind: Sequence[float], low: int, below: Attempt) -> int | None:
        """Return how many layers in float meet the tolerance if noise adds up, or None.

        Args:
            behind: The noise that is left with each number of layers in float.
            low: With so many of them in float it is not met.
            below: That attempt.
        """
        if self.least_db is None or low >= len(behind) or not math.isfinite(below.score.lower_db):
            return None
        missing_db = self.least_db - below.score.lower_db + (0.0 if self.fewest else _MARGIN_DB)
        allowed = behind[low] * 10.0 ** (-missing_db / 10)
        return next(number for number, noise in enumerate(behind) if noise <= allowed)

    def bargain(self, whole: Attempt) -> Attempt:
        """Return the attempt with cheap, noisy layers in float if that is worth its time, else `whole`."""
        if not self.price.spend:
            return whole
        affordable = None
        if self.gains is not None:
            affordable = self.gains.nodes_within(self.price.spend * self.gains.int8_us)
        ranked = self._ranked(whole, affordable)
        left = self.price.spend * (
            self.gains.int8_us if self.gains is not None else sum(each.cost for each in ranked)
        )
        cheap = []
        for candidate in ranked:
            if not candidate.cost or candidate.cost > left:
                break
            left -= candidate.cost
            cheap.append(candidate.node)
        cheap, ratio = self._as_fast(whole, cheap)
        if not cheap:
            return whole
        attempt = self._attempt(whole, cheap, f"{len(cheap)} cheap, noisy layers in float", speed=ratio)
        if not attempt.is_int8 or not self.price.buys(attempt.rank_db - whole.rank_db, ratio):
            return whole
        why = "given back to float: it buys more accuracy than its time is worth"
        self._leave(dict.fromkeys(cheap, why), fixed=False)
        self.bench.note(attempt, "cheap, noisy layers in float")
        return attempt

    def outputs(self, best: Attempt) -> Attempt:
        """Return the attempt whose outputs come from integer kernels if that is worth it, else `best`."""
        dialect = attrs.evolve(self.bench.dialect, quantize_outputs=True)
        layers = output_layers(self.bench.model, dialect) - self.bench.keep_float
        if not layers or not self.price.spend:
            return best
        candidate, _ = self.bench.quantized(best.recipe, best.keep_float, dialect=dialect)
        bare, _ = self.bench.quantized(best.recipe, best.keep_float)
        ratio = self._ratio(bare, candidate, "outputs from integer kernels")
        if ratio - 1.0 < max(self.price.spend, SAME):
            return best
        what = "outputs from integer kernels"
        attempt = self.bench.attempt(best.recipe, what, best.keep_float, dialect=dialect)
        if not self.price.buys(min(attempt.rank_db - best.rank_db, 0.0), ratio) or not self.meets(attempt):
            return best
        self.bench.note(attempt, what)
        return attempt

    def without(self, whole: Attempt, nodes: Collection[str], why: str) -> Attempt:
        """Return the attempt with certain layers in float, such as those that a target computes wrongly."""
        self._leave(dict.fromkeys(nodes, why), fixed=False)
        return self._attempt(whole, list(nodes), why)

    # ---- what the decisions have in common ----

    def _ranked(
        self, whole: Attempt, nodes: Collection[str] | None, *, summed: bool = False
    ) -> list[Candidate]:
        """Return the layers in integers, or some of them, by noise per time, most first."""
        integer = integer_nodes(whole.model.ir)
        if self._candidates is None:
            self._candidates = candidates(self.bench.model, self.feeds[0], self.gains)
        listed = [each for each in self._candidates if each.node in integer]
        wanted = [each for each in listed if nodes is None or each.node in nodes]
        noise = self.noise_of(whole, [each.node for each in wanted], summed)
        known = [attrs.evolve(each, noise=noise[each.node]) for each in wanted if each.node in noise]
        return by_noise_per_time(known)

    def _as_fast(self, whole: Attempt, cheap: list[str]) -> tuple[list[str], float]:
        """Return the first of the layers, all or a half or a quarter, that hardly cost time in float.

        Returns:
            The layers, and how fast the model is with them.
        """
        bare, _ = self.bench.quantized(whole.recipe, whole.keep_float)
        while cheap:
            started = time.perf_counter()
            candidate, _ = self.bench.quantized(whole.recipe, {*whole.keep_float, *cheap})
            ratio = self._ratio(bare, candidate, f"{len(cheap)} cheap layers in float")
            if ratio >= AS_FAST:
                return cheap, ratio
            cheap = cheap[: len(cheap) // 2]
            if cheap and self._was_dear(started):
                break
        return [], 0.0

    def _was_dear(self, started: float) -> bool:
        """Whether a trial took too long to be followed by smaller ones; `cut_short` says so."""
        took = time.perf_counter() - started
        if took > _DEAR_S:
            self.cut_short = f"a trial took {took:.0f} s and did not help: smaller ones were left out"
        return took > _DEAR_S

    def _ratio(self, reference: Model, candidate: Model, what: str) -> float:
        """Return how many times as fast a candidate is; 1 where that is not to be measured."""
        speed = self._compare(reference, candidate, what)
        return speed.ratio if speed is not None else 1.0

    def _faster(self, best: Model, candidate: Model, what: str) -> Speedup | None:
        """Return how much faster a candidate is, found so twice, or None when it is not."""
        if best.digest == candidate.digest:
            return None
        speed = None
        for _ in range(2):
            speed = self._compare(best, candidate, what)
            if speed is None or speed.ratio <= 1.0 + SAME:
                return None
        return speed

    def _compare(self, reference: Model, candidate: Model, what: str) -> Speedup | None:
        if self.stopwatch is None:
            return None
        speed = self.stopwatch.compare(reference, candidate, self.feeds, seconds=self.seconds)
        if isinstance(speed, NotMeasured):
            self.unmeasured = speed.reason
            return None
        self.bench.ledger.record(Trial(what=what, speed=speed.ratio, against="the best so far"))
        return speed

    def _attempt(
        self, whole: Attempt, nodes: Collection[str], what: str, *, speed: float | None = None
    ) -> Attempt:
        attempt = self.bench.attempt(whole.recipe, what, {*whole.keep_float, *nodes})
        if speed is not None:
            self.bench.ledger.record(
                Trial(
                    what=what,
                    keep_float=sorted(nodes),
                    score=attempt.score,
                    speed=speed,
                    against="without it",
                )
            )
        return attempt

    def _leave(self, reasons: Mapping[str, str], *, fixed: bool = True) -> None:
        """Note why layers are in float; `fixed` for those that every later attempt has in float."""
        self.reasons |= reasons
        if fixed:
            self.bench.keep_float |= reasons.keys()
