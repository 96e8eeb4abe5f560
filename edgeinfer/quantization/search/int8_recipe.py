"""Making a model int8 step by step, each step kept only when it brings the outputs closer to float.

None of these steps costs time at inference, except SmoothQuant where it inserts a Mul. Which of them help
depends on the model: on some nets clipped ranges are the better ones, on others bias correction does harm.
So none is believed: each is tried, and the outputs are compared with float on the judged feeds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, final

import attrs

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.calibration.calibration import as_calibration
from edgeinfer.devices.profile import Target
from edgeinfer.model.model import Model
from edgeinfer.quantization.methods.correct_bias import CorrectBias
from edgeinfer.quantization.methods.equalize_activations import EqualizeActivations
from edgeinfer.quantization.methods.equalize_weights import EqualizeWeights
from edgeinfer.quantization.methods.quantize_static import QuantizeStatic
from edgeinfer.quantization.methods.round_weights import RoundWeights
from edgeinfer.quantization.methods.smooth_quant import SmoothQuant
from edgeinfer.quantization.qdq.marks import quantized_for
from edgeinfer.quantization.search.output_score import Score
from edgeinfer.transforms.contract import Pipeline, Transform, TransformReport

__all__ = ["Attempt", "Recipe", "best_recipe"]

# A step that changes the float graph must win more than chance may.
_PREPARATION_DB = 0.5
_HOPELESS_DB = 3.0  # more than rounding weights makes good of a difference
_METHODS = ("mse", "minmax")


@final
@attrs.frozen(kw_only=True)
class Attempt:
    """One int8 model that was tried.

    Attributes:
        model: The model; the float one when nothing could be quantized.
        steps: What was done.
        score: How close its outputs are to float.
    """

    model: Model
    steps: tuple[TransformReport, ...]
    score: Score

    @property
    def rank_db(self) -> float:
        """What attempts are compared by."""
        return self.score.rank_db


@final
@attrs.frozen(kw_only=True)
class Recipe:
    """The steps that were found to help one model.

    Attributes:
        before: What makes the float model easier to quantize.
        quantize: The quantizer.
        after: What mends weights and biases of the quantized model.
    """

    before: tuple[Transform, ...]
    quantize: QuantizeStatic
    after: tuple[Transform, ...]

    def apply(
        self, model: Model, judge: Callable[[Model], Score], *, keep_float: Collection[str] = ()
    ) -> Attempt:
        """Apply all steps to a float model, with some layers left in float.

        Args:
            model: The float model.
            judge: Judges a model against float.
            keep_float: Names of nodes that stay in float.
        """
        quantize = attrs.evolve(self.quantize, keep_float={*self.quantize.keep_float, *keep_float})
        return _attempt(model, (*self.before, quantize, *self.after), judge)


def best_recipe(
    model: Model,
    calibration: Any,
    target: Target | str | QDQDialect | None,
    judge: Callable[[Model], Score],
    *,
    keep_float: Collection[str] = (),
    method: str | None = None,
) -> tuple[Recipe, Attempt]:
    """Find the steps that bring a model's int8 outputs closest to float.

    Args:
        model: The float model.
        calibration: Representative feeds.
        target: Where the model will run.
        judge: Judges a model against float.
        keep_float: Names of nodes that stay in float.
        method: How ranges are found; None to try the usual ones.

    Returns:
        The recipe, and the model that it makes.
    """
    search = _Search(model, calibration, judge)
    plain = QuantizeStatic(calibration=calibration, target=target, keep_float=keep_float)
    methods = (method,) if method else _METHODS
    recipes = [Recipe(before=(), quantize=attrs.evolve(plain, method=name), after=()) for name in methods]
    recipe, bare = max(((each, search.bare(each)) for each in recipes), key=lambda pair: pair[1].rank_db)
    if quantized_for(bare.model.ir) is None:
        return recipe, bare
    # Factors from few feeds suit these feeds only: a feature that they hardly show may be ten times as large
    # elsewhere. So half of them make the factors, and the ranges, which are from all, show the harm.
    half = as_calibration(calibration, model.signature).every_other()
    smooth = SmoothQuant(calibration=half, alpha=None, insert=True, keep_float=keep_float)
    for step in (EqualizeWeights(), smooth):
        if not step.apply(model).report.modified:
            continue
        changed = attrs.evolve(recipe, before=(*recipe.before, step))
        attempt = search.bare(changed)
        if attempt.rank_db > bare.rank_db + _PREPARATION_DB:
            recipe, bare = changed, attempt
    found = search.mended(recipe, bare)
    # The rest may make weights harder to round, or be better only where they are rounded well, so it is
    # judged with RoundWeights behind it.
    equalize = EqualizeActivations(calibration=calibration)
    if equalize.apply(model).report.modified:
        found = search.better(found, attrs.evolve(found.recipe, before=(equalize, *found.recipe.before)))
    for name in methods:
        if name != found.recipe.quantize.method:
            other = attrs.evolve(found.recipe.quantize, method=name)
            found = search.better(found, attrs.evolve(found.recipe, quantize=other))
    return attrs.evolve(found.recipe, after=found.after), found.attempt


@attrs.frozen
class _Found:
    """A recipe without and with what mends weights and biases."""

    recipe: Recipe
    bare: Attempt
    after: tuple[Transform, ...]
    attempt: Attempt


@attrs.frozen
class _Search:
    """What all attempts have in common."""

    model: Model
    calibration: Any
    judge: Callable[[Model], Score]

    def bare(self, recipe: Recipe) -> Attempt:
        """Apply a recipe."""
        return recipe.apply(self.model, self.judge)

    def mended(self, recipe: Recipe, bare: Attempt) -> _Found:
        """Round weights anew and correct biases, where that helps."""
        after: tuple[Transform, ...] = ()
        best = bare
        for mend in (RoundWeights(calibration=self.calibration), CorrectBias(calibration=self.calibration)):
            attempt = _attempt(best.model, (mend,), self.judge)
            if attempt.rank_db > best.rank_db:
                after = (*after, mend)
                best = attrs.evolve(attempt, steps=(*best.steps, *attempt.steps))
        return _Found(recipe, bare, after, best)

    def better(self, found: _Found, changed: Recipe) -> _Found:
        """Return what a changed recipe makes if it is closer to float, else what was found before."""
        bare = self.bare(changed)
        if bare.rank_db <= found.bare.rank_db - _HOPELESS_DB:
            return found
        other = self.mended(changed, bare)
        return other if other.attempt.rank_db > found.attempt.rank_db + _PREPARATION_DB else found


def _attempt(model: Model, steps: tuple[Transform, ...], judge: Callable[[Model], Score]) -> Attempt:
    result = Pipeline(steps).apply(model)
    return Attempt(model=result.model, steps=result.report.steps, score=judge(result.model))
