"""Making a model int8 step by step, each step kept only when it brings the outputs closer to float.

None of these steps costs time at inference, except SmoothQuant where it inserts a Mul. Which of them help
depends on the model: on some nets clipped ranges are the better ones, on others bias correction does harm.
So none is believed: each is tried, and the outputs are compared with float on the judged feeds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, final

import attrs

from edgeinfer.backends.base import QDQDialect
from edgeinfer.devices.profile import Target
from edgeinfer.model import Model
from edgeinfer.quantization.calibration import as_calibration
from edgeinfer.quantization.correct_bias import CorrectBias
from edgeinfer.quantization.equalize_activations import EqualizeActivations
from edgeinfer.quantization.equalize_weights import EqualizeWeights
from edgeinfer.quantization.quantize_static import QuantizeStatic
from edgeinfer.quantization.round_weights import RoundWeights
from edgeinfer.quantization.smooth_quant import SmoothQuant
from edgeinfer.quantization.state import quantized_for
from edgeinfer.transforms.base import Pipeline, Transform, TransformReport

__all__ = ["Attempt", "Recipe", "best_recipe"]

# A step that changes the float graph must win more than chance may.
_PREPARATION_DB = 0.5
_HOPELESS_DB = 3.0  # more than rounding weights makes good
_METHODS = ("mse", "minmax")


@final
@attrs.frozen(kw_only=True)
class Attempt:
    """One int8 model that was tried.

    Attributes:
        model: The model; the float one when nothing could be quantized.
        steps: What was done.
        sqnr_db: How close its worst output is to float.
    """

    model: Model
    steps: tuple[TransformReport, ...]
    sqnr_db: float


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
        self, model: Model, sqnr_db: Callable[[Model], float], *, keep_float: Collection[str] = ()
    ) -> Attempt:
        """Apply all steps to a float model, with some layers left in float.

        Args:
            model: The float model.
            sqnr_db: Judges a model against float.
            keep_float: Names of nodes that stay in float.
        """
        quantize = attrs.evolve(self.quantize, keep_float={*self.quantize.keep_float, *keep_float})
        return _attempt(model, (*self.before, quantize, *self.after), sqnr_db)


def best_recipe(
    model: Model,
    calibration: Any,
    target: Target | str | QDQDialect | None,
    sqnr_db: Callable[[Model], float],
    *,
    keep_float: Collection[str] = (),
    method: str | None = None,
) -> tuple[Recipe, Attempt]:
    """Find the steps that bring a model's int8 outputs closest to float.

    Args:
        model: The float model.
        calibration: Representative feeds.
        target: Where the model will run.
        sqnr_db: Judges a model against float.
        keep_float: Names of nodes that stay in float.
        method: How ranges are found; None to try the usual ones.

    Returns:
        The recipe, and the model that it makes.
    """
    plain = QuantizeStatic(calibration=calibration, target=target, keep_float=keep_float)
    candidates = [
        Recipe(before=(), quantize=attrs.evolve(plain, method=name), after=())
        for name in ((method,) if method else _METHODS)
    ]
    recipe, best = _better(model, candidates, sqnr_db)
    if quantized_for(best.model.ir) is None:
        return recipe, best
    # Factors from few feeds suit these feeds only: a feature that they hardly show may be ten times as large
    # elsewhere. So half of them make the factors, and the ranges, which are from all, show the harm.
    half = as_calibration(calibration, model.signature).every_other()
    smooth = SmoothQuant(calibration=half, alpha=0.65, insert=True, keep_float=keep_float)
    for step in (EqualizeWeights(), smooth):
        if not step.apply(model).report.modified:
            continue
        changed = attrs.evolve(recipe, before=(*recipe.before, step))
        attempt = changed.apply(model, sqnr_db)
        if attempt.sqnr_db > best.sqnr_db + _PREPARATION_DB:
            recipe, best = changed, attempt
    mended = _mended(recipe, best, calibration, sqnr_db)
    # It makes weights harder to round, so it is judged with RoundWeights behind it.
    equalize = EqualizeActivations(calibration=calibration)
    equalized = Pipeline((equalize,)).apply(model)
    if equalized.report.modified:
        attempt = recipe.apply(equalized.model, sqnr_db)
        if attempt.sqnr_db > best.sqnr_db - _HOPELESS_DB:
            attempt = attrs.evolve(attempt, steps=(*equalized.report.steps, *attempt.steps))
            changed = attrs.evolve(recipe, before=(equalize, *recipe.before))
            other = _mended(changed, attempt, calibration, sqnr_db)
            if other[1].sqnr_db > mended[1].sqnr_db + _PREPARATION_DB:
                return other
    return mended


def _mended(
    recipe: Recipe, best: Attempt, calibration: Any, sqnr_db: Callable[[Model], float]
) -> tuple[Recipe, Attempt]:
    """Return the recipe and its model with weights rounded anew and biases corrected, where that helps."""
    for mend in (RoundWeights(calibration=calibration), CorrectBias(calibration=calibration)):
        attempt = _attempt(best.model, (mend,), sqnr_db)
        if attempt.sqnr_db > best.sqnr_db:
            recipe = attrs.evolve(recipe, after=(*recipe.after, mend))
            best = attrs.evolve(attempt, steps=(*best.steps, *attempt.steps))
    return recipe, best


def _better(
    model: Model, candidates: list[Recipe], sqnr_db: Callable[[Model], float]
) -> tuple[Recipe, Attempt]:
    attempts = [(recipe, recipe.apply(model, sqnr_db)) for recipe in candidates]
    return max(attempts, key=lambda pair: pair[1].sqnr_db)


def _attempt(model: Model, steps: tuple[Transform, ...], sqnr_db: Callable[[Model], float]) -> Attempt:
    result = Pipeline(steps).apply(model)
    return Attempt(model=result.model, steps=result.report.steps, sqnr_db=sqnr_db(result.model))
