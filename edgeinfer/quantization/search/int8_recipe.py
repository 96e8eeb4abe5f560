"""Making a model int8 step by step, each step kept only when it brings the outputs closer to float.

None of these steps costs time at inference, except SmoothQuant where it inserts a Mul, which is timed. Which
of them help depends on the model: on some nets clipped ranges are the better ones, on others bias correction
does harm. So none is believed: each is tried, and the outputs are compared with float on the judged feeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import attrs

from edgeinfer.quantization.methods.equalize_activations import EqualizeActivations
from edgeinfer.quantization.methods.equalize_weights import EqualizeWeights
from edgeinfer.quantization.methods.quantize_static import QuantizeStatic
from edgeinfer.quantization.methods.round_weights import RoundWeights
from edgeinfer.quantization.methods.smooth_quant import SmoothQuant
from edgeinfer.quantization.search.effort import Effort
from edgeinfer.quantization.search.workbench import Attempt, Recipe, Workbench
from edgeinfer.transforms.contract import GraphTransform

__all__ = ["best_recipe"]

# A step that changes the float graph must win more than chance may.
_PREPARATION_DB = 0.5
_HOPELESS_DB = 3.0  # more than rounding weights makes good of a difference


def best_recipe(
    bench: Workbench,
    effort: Effort,
    *,
    method: str | None = None,
    step: Callable[[str], None] = lambda _: None,
    pays: Callable[[Attempt, Attempt], bool] = lambda _, __: True,
) -> Attempt:
    """Find the steps that bring a model's int8 outputs closest to float.

    Args:
        bench: Makes and judges attempts.
        effort: How much to try.
        method: How ranges are found; None to try those of the effort.
        step: Told of what begins.
        pays: Whether the second attempt, which is closer and has more nodes, is worth its time.

    Returns:
        The attempt of the best recipe.
    """
    search = _Search(bench, effort, (method,) if method else effort.methods, step, pays)
    search.announce()
    step("ranges")
    bare = [bench.attempt(Recipe(method=name), f"ranges by {name}") for name in search.methods]
    best = max(bare, key=lambda attempt: attempt.rank_db)
    if not best.is_int8:
        return best
    if effort.prepares:
        step("equalized weights, smooth activations")
        best = search.smoothed(best)
    unrounded = best
    if effort.rounds:
        step("rounding weights")
        best = search.closer(best, bench.rounded(best, "weights rounded by their effect", tried=True))
    if effort.prepares:
        step("equalized activations")
        best = search.equalized(best, unrounded)
        step("other ranges")
        best = search.other_methods(best, {attempt.recipe.method: attempt for attempt in bare})
    if effort.prepares:
        step("all feeds")
    if best.recipe.before:
        whole = bench.attempt(best.recipe, "the same from all feeds")
        best = whole if whole.rank_db > best.rank_db - _PREPARATION_DB else best
    step("correcting biases")
    best = search.closer(best, bench.corrected(best, "biases corrected"))
    bench.note(best, "the closest to float")
    return best


@final
@attrs.frozen
class _Search:
    bench: Workbench
    effort: Effort
    methods: tuple[str, ...]
    step: Callable[[str], None]
    pays: Callable[[Attempt, Attempt], bool]

    def announce(self) -> None:
        """Let the first pass over the feeds gather what all methods need of the float model."""
        bench = self.bench
        statistics, model = bench.statistics, bench.model
        quantize = QuantizeStatic(
            calibration=statistics, target=bench.dialect, keep_float=bench.keep_float, method=self.methods[0]
        )
        statistics.announce(model, quantize.declare(model))
        if self.effort.rounds:
            statistics.announce(model, RoundWeights(calibration=statistics).declare(model))
        if self.effort.prepares:
            statistics.announce(model, EqualizeActivations(calibration=statistics).declare(model))
            smooth = self.smooth_quant()
            smooth.calibration.announce(model, smooth.declare(model))

    def smooth_quant(self) -> SmoothQuant:
        # Factors from few feeds suit these feeds only: a feature that they hardly show may be ten times as
        # large elsewhere. So half of them make the factors, and the ranges, from all, show the harm.
        half = self.bench.statistics.every_other()
        known = {str(node.name) for node in self.bench.model.ir.graph}
        keep = self.bench.keep_float & known
        return SmoothQuant(calibration=half, alpha=None, insert=True, keep_float=keep)

    def smoothed(self, best: Attempt) -> Attempt:
        """Try what changes the float model before its weights are rounded."""
        for transform in (EqualizeWeights(), self.smooth_quant()):
            before = (*best.recipe.before, transform)
            if not self.changes(before):
                continue
            recipe = attrs.evolve(best.recipe, before=before)
            attempt = self.bench.attempt(recipe, f"with {type(transform).__name__}", tried=True)
            if attempt.rank_db <= best.rank_db + _PREPARATION_DB:
                continue
            if len(attempt.model.ir.graph) <= len(best.model.ir.graph) or self.pays(best, attempt):
                best = attempt
        return best

    def equalized(self, best: Attempt, unrounded: Attempt) -> Attempt:
        """Try equalized activations, which may make weights harder to round, with rounded weights.

        Args:
            best: The best so far.
            unrounded: What it was before its weights were rounded. Where equalized activations are behind
                that, rounding never brought them half a decibel ahead: on seven models in two runtimes.
        """
        transform = EqualizeActivations(calibration=self.bench.statistics)
        before = (transform, *best.recipe.before)
        if not self.changes((transform,)):
            return best
        recipe = attrs.evolve(best.recipe, before=before, rounds=False)
        return self.rounded_if_better(best, unrounded, recipe, "with EqualizeActivations", behind_db=0.0)

    def other_methods(self, best: Attempt, bare: dict[str, Attempt]) -> Attempt:
        """Try the other ranges, which may be better only where weights are rounded well."""
        for method in self.methods:
            if method == best.recipe.method:
                continue
            recipe = attrs.evolve(best.recipe, method=method, rounds=False)
            known = bare.get(best.recipe.method) if not recipe.before else None
            best = self.rounded_if_better(best, known, recipe, f"ranges by {method}", bare.get(method))
        return best

    def rounded_if_better(
        self,
        best: Attempt,
        bare: Attempt | None,
        recipe: Recipe,
        what: str,
        made: Attempt | None = None,
        *,
        behind_db: float = _HOPELESS_DB,
    ) -> Attempt:
        """Return the attempt of a recipe with rounded weights, if it is closer than the best.

        Args:
            best: The best so far.
            bare: What it was before its weights were rounded, if that is known: what is behind that without
                rounding will be behind with it, too.
            recipe: The recipe, without rounding.
            what: What is tried, for people.
            made: The recipe's attempt, if there is one already and nothing was done before quantizing.
            behind_db: How far behind is too far.
        """
        attempt = made if made is not None and not recipe.before else None
        attempt = attempt or self.bench.attempt(recipe, what, tried=True)
        if bare is not None and attempt.rank_db <= bare.rank_db - behind_db:
            return best
        if self.effort.rounds:
            rounded = self.bench.rounded(attempt, f"{what}, weights rounded", tried=True)
            attempt = self.closer(attempt, rounded)
        return attempt if attempt.rank_db > best.rank_db + _PREPARATION_DB else best

    def changes(self, before: tuple[GraphTransform, ...]) -> bool:
        """Whether the last of the steps does anything to the float model."""
        return self.bench.prepared(before)[1][-1].modified

    @staticmethod
    def closer(best: Attempt, other: Attempt) -> Attempt:
        """Return the attempt that is closer to float."""
        return other if other.rank_db > best.rank_db else best
