"""`Workbench`: makes and judges int8 versions of one model, and writes down each in the ledger.

Within a search the checks of the transforms' contract are left out, which cost more than the transforms do on
graphs of thousands of nodes: what the search gives back is checked once, as the result of one transform.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import final

import attrs
import numpy as np

from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.calibration.statistics import Statistics
from edgeinfer.model.model import Model
from edgeinfer.quantization.methods.correct_bias import CorrectBias
from edgeinfer.quantization.methods.quantize_static import QuantizeStatic
from edgeinfer.quantization.methods.round_weights import RoundWeights
from edgeinfer.quantization.placement.prepare import INFERRED_KEY
from edgeinfer.quantization.qdq.marks import quantized_for
from edgeinfer.quantization.search.ledger import Ledger, Trial
from edgeinfer.quantization.search.output_score import Score
from edgeinfer.transforms.contract import GraphTransform, ReportBuilder, TransformReport
from edgeinfer.values import as_frozenset, as_tuple

__all__ = ["Attempt", "Recipe", "Workbench"]


@final
@attrs.frozen(kw_only=True)
class Recipe:
    """How one model is made int8.

    Attributes:
        before: What makes the float model easier to quantize.
        method: How ranges are found.
        rounds: Whether weights are rounded by their effect (`RoundWeights`).
        corrects: Whether biases are corrected (`CorrectBias`).
    """

    before: tuple[GraphTransform, ...] = attrs.field(default=(), converter=as_tuple)
    method: str = "mse"
    rounds: bool = False
    corrects: bool = False

    def steps(self) -> tuple[str, ...]:
        """Return the steps for people."""
        after = [
            name for name, used in (("RoundWeights", self.rounds), ("CorrectBias", self.corrects)) if used
        ]
        return (*(type(step).__name__ for step in self.before), f"QuantizeStatic({self.method})", *after)


@final
@attrs.frozen(kw_only=True)
class Attempt:
    """One int8 version that was made.

    Attributes:
        model: The model; the float one when nothing could be quantized.
        steps: What the transforms said.
        score: How close its outputs are to float.
        recipe: How it was made.
        keep_float: What was left in float for it.
    """

    model: Model
    steps: tuple[TransformReport, ...] = attrs.field(converter=as_tuple)
    score: Score
    recipe: Recipe
    keep_float: frozenset[str] = attrs.field(converter=as_frozenset)

    @property
    def rank_db(self) -> float:
        """What attempts are compared by."""
        return self.score.rank_db

    @property
    def is_int8(self) -> bool:
        """Whether anything is quantized in it."""
        return quantized_for(self.model.ir) is not None


@final
class Workbench:
    """What all attempts of one search have in common.

    Args:
        model: The float model, its values named and with shapes.
        dialect: The target's, without kernel costs.
        statistics: Of all feeds to fit on.
        few: Of some of them, for what is only tried.
        judge: Says how close a version is to float.
        keep_float: What every attempt leaves in float; it may be added to.
        ledger: Where attempts are written down.
    """

    def __init__(
        self,
        model: Model,
        dialect: QDQDialect,
        statistics: Statistics,
        few: Statistics,
        judge: Callable[[Model], Score],
        *,
        keep_float: Collection[str] = (),
        ledger: Ledger | None = None,
    ) -> None:
        self.model = model
        self.dialect = dialect
        self.statistics, self.few = statistics, few
        self.judge = judge
        self.keep_float = frozenset(keep_float)
        self.ledger = ledger if ledger is not None else Ledger()
        self._inferred = frozenset(str(value.name) for node in model.ir.graph for value in node.outputs)
        self._prepared: dict[tuple[GraphTransform, ...], tuple[Model, tuple[TransformReport, ...]]] = {}
        self._memos: dict[
            tuple[tuple[GraphTransform, ...], bool], dict[tuple[str, str, str], np.ndarray]
        ] = {}

    def prepared(self, before: tuple[GraphTransform, ...]) -> tuple[Model, tuple[TransformReport, ...]]:
        """Return the float model after some steps, which is made once."""
        if before not in self._prepared:
            self._prepared[before] = self._rewritten(self.model, before)
        return self._prepared[before]

    def quantized(
        self,
        recipe: Recipe,
        keep_float: Collection[str] = (),
        *,
        dialect: QDQDialect | None = None,
        tried: bool = False,
    ) -> tuple[Model, tuple[TransformReport, ...]]:
        """Return the quantized model of a recipe, without what comes after quantizing.

        Args:
            recipe: The recipe.
            keep_float: What to leave in float beyond what every attempt does.
            dialect: Another one than the workbench's.
            tried: Ranges from the few feeds are enough.
        """
        prepared, reports = self.prepared(recipe.before)
        quantize = QuantizeStatic(
            calibration=self._statistics(recipe, tried=tried),
            target=dialect or self.dialect,
            method=recipe.method,
            keep_float={*self.keep_float, *keep_float},
        )
        model, own = self._rewritten(prepared, (quantize,))
        return model, (*reports, *own)

    def attempt(
        self,
        recipe: Recipe,
        what: str,
        keep_float: Collection[str] = (),
        *,
        dialect: QDQDialect | None = None,
        tried: bool = False,
    ) -> Attempt:
        """Make and judge the version of a recipe; see `quantized`."""
        started = time.perf_counter()
        if recipe.before and recipe.rounds:  # in one pass with the ranges
            prepared, _ = self.prepared(recipe.before)
            statistics = self._statistics(recipe, tried=tried)
            statistics.announce(prepared, RoundWeights(calibration=statistics).declare(prepared))
        model, reports = self.quantized(recipe, keep_float, dialect=dialect, tried=tried)
        if quantized_for(model.ir) is not None:
            statistics = self._statistics(recipe, tried=tried)
            after: list[GraphTransform] = [self._round_weights(recipe, statistics)] if recipe.rounds else []
            # The mean of an error is known well from few feeds.
            after += [CorrectBias(calibration=self.few)] if recipe.corrects else []
            model, more = self._rewritten(model, after)
            reports = (*reports, *more)
        return self._judged(model, reports, recipe, keep_float, what, started)

    def corrected(self, attempt: Attempt, what: str) -> Attempt:
        """Return an attempt with its biases corrected."""
        started = time.perf_counter()
        model, reports = self._rewritten(attempt.model, [CorrectBias(calibration=self.few)])
        recipe = attrs.evolve(attempt.recipe, corrects=True)
        return self._judged(model, (*attempt.steps, *reports), recipe, attempt.keep_float, what, started)

    def rounded(self, attempt: Attempt, what: str, *, tried: bool = False) -> Attempt:
        """Return an attempt with its weights rounded by their effect."""
        started = time.perf_counter()
        statistics = self._statistics(attempt.recipe, tried=tried)
        model, reports = self._rewritten(attempt.model, [self._round_weights(attempt.recipe, statistics)])
        recipe = attrs.evolve(attempt.recipe, rounds=True)
        return self._judged(model, (*attempt.steps, *reports), recipe, attempt.keep_float, what, started)

    def _rewritten(
        self, model: Model, steps: Iterable[GraphTransform]
    ) -> tuple[Model, tuple[TransformReport, ...]]:
        """Apply transforms to a model of the search, without the checks of their contract."""
        reports = []
        for step in steps:
            started = time.perf_counter()
            work, builder = model.copy_ir(), ReportBuilder()
            work.meta[INFERRED_KEY] = self._inferred  # else each step infers all shapes again
            step.rewrite(work, builder)
            del work.meta[INFERRED_KEY]
            model = Model(work, model.path) if builder.applied else model
            reports.append(
                TransformReport(
                    name=type(step).__name__,
                    config=step.config(),
                    applied=builder.applied,
                    skipped=builder.skipped,
                    notes=builder.notes,
                    data=builder.data,
                    modified=bool(builder.applied),
                    digest_before="",
                    digest_after="",
                    seconds=time.perf_counter() - started,
                )
            )
        return model, tuple(reports)

    def note(self, attempt: Attempt, what: str) -> None:
        """Write down that the search goes on with an attempt."""
        self.ledger.record(
            Trial(
                what=what,
                steps=attempt.recipe.steps(),
                keep_float=sorted(attempt.keep_float),
                score=attempt.score,
                kept=True,
                reports=attempt.steps,
            )
        )

    def _round_weights(self, recipe: Recipe, statistics: Statistics) -> RoundWeights:
        # With other layers in float those that stay in integers are rounded as before.
        memo = self._memos.setdefault((recipe.before, statistics is self.few), {})
        return RoundWeights(calibration=statistics, memo=memo)

    def _statistics(self, recipe: Recipe, *, tried: bool) -> Statistics:
        # The float model itself was gone through with all feeds at the start.
        return self.few if tried and recipe.before else self.statistics

    def _judged(
        self,
        model: Model,
        reports: tuple[TransformReport, ...],
        recipe: Recipe,
        keep_float: Collection[str],
        what: str,
        started: float,
    ) -> Attempt:
        score = self.judge(model)
        self.ledger.record(
            Trial(
                what=what,
                steps=recipe.steps(),
                keep_float=sorted(keep_float),
                score=score,
                seconds=time.perf_counter() - started,
                reports=reports,
            )
        )
        return Attempt(model=model, steps=reports, score=score, recipe=recipe, keep_float=keep_float)
