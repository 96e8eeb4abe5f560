"""`Judge`: how close int8 versions of one model are to float, on feeds that nothing is fitted on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, final

import numpy as np

from edgeinfer.calibration.kept_feeds import KeptFeeds
from edgeinfer.calibration.statistics import Statistics
from edgeinfer.devices.profile import Target
from edgeinfer.model.model import Model
from edgeinfer.quantization.search.closed_loop import find_feedback
from edgeinfer.quantization.search.layer_gains import integer_nodes
from edgeinfer.quantization.search.layer_noise import SwitchedModel
from edgeinfer.quantization.search.local_noise import local_noise
from edgeinfer.quantization.search.model_runs import Loop, run_outputs
from edgeinfer.quantization.search.output_score import BROKEN, Score, Scorer
from edgeinfer.quantization.search.scored_tensors import scored_tensors
from edgeinfer.quantization.search.target_check import NotRun, TargetCheck
from edgeinfer.quantization.search.workbench import Attempt, Workbench

__all__ = ["FLOOR_DB", "Judge", "Tolerance"]

# At 20 dB models were measured to lose about two points of their metric, see docs/quantization.md.
FLOOR_DB = 20.0
_LOOP_FEEDS = 4  # in which a state shows the noise of a layer
_IN_A_ROW = 12  # feeds of a loop; what a state forgets meanwhile does not count


class Tolerance(Protocol):
    """What a model may lose; see `QuantizeInt8`."""

    @property
    def evaluate(self) -> Callable[[Model], float] | None:
        """From a Model to a metric of which more is better."""
        ...

    @property
    def max_drop(self) -> float | None:
        """How much of that may be lost."""
        ...

    @property
    def min_sqnr_db(self) -> float | None:
        """The SQNR in dB that the worst output must keep."""
        ...


@final
class Judge:
    """Scores versions of a model.

    Args:
        model: The float model.
        kept: The feeds; some of them are held out here.
        samples: How many.
        target: Where the model will run.
        tolerance: What may be lost.
        feedback: The output of each input that comes back; None to find that.

    Attributes:
        feeds: The feeds that are held out.
        check: Runs models on the target.
        on_target: Whether scores are taken on the target; else they are what the graph says.
        metrics: The caller's metric: `metric_float`, and `metric` of the last model that it was taken of.
    """

    def __init__(
        self,
        model: Model,
        kept: KeptFeeds,
        *,
        samples: int,
        target: Target | str | None,
        tolerance: Tolerance,
        feedback: Mapping[str, str] | None = None,
    ) -> None:
        self._model, self._tolerance = model, tolerance
        self._feedback = find_feedback(model, list(kept.kept.values()), feedback)
        back, in_order = self._feedback.back, self._feedback.in_order
        self.feeds, starts = kept.hold_out(samples, in_a_row=_IN_A_ROW if back and in_order else 1)
        self._loop = Loop(back=back, starts=starts if in_order else frozenset({0})) if back else None
        self._scored = scored_tensors(model)
        self._tensors = None if self._scored.are_outputs else self._scored.names
        self._scorer = Scorer(model, self._outputs(model), self._tensors)
        self.check = TargetCheck(target, self.feeds, self._scorer, tensors=self._tensors, loop=self._loop)
        self.on_target = False
        self.metrics: dict[str, float] = {}

    def score(self, candidate: Model) -> Score:
        """Return how close a candidate's outputs are to float."""
        if self.on_target:
            score = self.check.score(candidate)
            return BROKEN if isinstance(score, NotRun) else score
        return self._scorer.score(self._outputs(candidate))

    @property
    def least_db(self) -> float | None:
        """The decibels of the tolerance; without any tolerance the floor; None where only a metric counts."""
        if self._tolerance.min_sqnr_db is None and self._tolerance.evaluate is None:
            return FLOOR_DB
        return self._tolerance.min_sqnr_db

    def close_enough(self, score: Score) -> bool:
        """Whether a score keeps the tolerance in decibels; without any tolerance, the floor."""
        return self.least_db is None or score.lower_db >= self.least_db

    def meets(self, attempt: Attempt) -> bool:
        """Whether an attempt keeps every tolerance that was given; without any, the floor."""
        evaluate, max_drop = self._tolerance.evaluate, self._tolerance.max_drop
        if not self.close_enough(attempt.score):
            return False
        if evaluate is None or max_drop is None:
            return True
        if "metric_float" not in self.metrics:
            self.metrics["metric_float"] = evaluate(self._model)
        self.metrics["metric"] = evaluate(attempt.model)
        return bool(self.metrics["metric"] >= self.metrics["metric_float"] - max_drop)

    def noise_of(
        self, bench: Workbench, statistics: Statistics, most: int, feeds: int
    ) -> Callable[[Attempt, Collection[str], bool], dict[str, float]]:
        """Return what tells the noise of layers at the outputs, as a share of the signal, by node.

        It is called with an attempt, the names of nodes, and whether noise is summed over the feeds, as a
        tolerance counts it, or averaged in decibels, as attempts are ranked.

        Args:
            bench: Made the attempts.
            statistics: Of the float model.
            most: How many layers to measure one by one. Of more, those whose own rounding is coarsest are
                measured; the others are taken to pass on as much of theirs as those do.
            feeds: How many of the judged feeds to measure a layer on.
        """

        def noise_of(whole: Attempt, names: Collection[str], summed: bool) -> dict[str, float]:
            quantized, _ = bench.quantized(whole.recipe, whole.keep_float)
            own: dict[str, float] = {}
            coarsest = list(names)
            if len(coarsest) > most:
                prepared, _ = bench.prepared(whole.recipe.before)
                own = local_noise(prepared, quantized, bench.dialect, statistics, names)
                coarsest = sorted(own, key=lambda name: -own[name])[:most]
            scores = self._single_layers(
                bench, whole, quantized, coarsest, self._telling(whole, summed, feeds)
            )
            decibels = {name: score.sqnr_db if summed else score.mean_db for name, score in scores.items()}
            noise = {name: float(10.0 ** (-db / 10)) for name, db in decibels.items()}
            passed_on = [noise[name] / own[name] for name in noise if own.get(name)]
            share = float(np.median(passed_on)) if passed_on else 0.0
            return {name: share * its for name, its in own.items()} | noise

        return noise_of

    def _single_layers(
        self,
        bench: Workbench,
        whole: Attempt,
        quantized: Model,
        layers: Collection[str],
        feeds: Sequence[int],
    ) -> dict[str, Score]:
        """Return the scores with each layer alone in integers."""
        if self.on_target:
            singles = self.check.singles(bench, whole, layers, integer_nodes(quantized.ir), feeds)
            return {node: BROKEN if isinstance(each, NotRun) else each for node, each in singles.items()}
        switched = SwitchedModel.of(quantized, bench.dialect)
        known = [name for name in layers if name in switched.of_layer]
        scores = switched.scores(
            [[name] for name in known],
            [self.feeds[number] for number in feeds],
            self._scorer.only(feeds),
            tensors=self._tensors,
            loop=self._loop,
        )
        return dict(zip(known, scores, strict=True))

    def _telling(self, whole: Attempt, summed: bool, count: int) -> list[int]:
        """Return the numbers of the feeds to measure layers on.

        A sum over the feeds is often made by a few of them, in which a layer clips what the others do not
        show. A state is carried from one feed to the next: there the first ones are taken, a few at least.
        """
        every = list(range(len(self.feeds)))
        if self._loop is not None:
            return every[: max(count, _LOOP_FEEDS)]
        if summed and len(whole.score.noise) == len(every):
            every.sort(key=lambda number: -whole.score.noise[number])
        return sorted(every[:count])

    def describe(self) -> list[str]:
        """Return sentences on what is judged."""
        said = list(self._scored.replaced)
        for name, source in self._feedback.back.items():
            how = "as recorded" if self._feedback.in_order else "by their names"
            said.append(
                f"output {source!r} comes back as input {name!r} ({how}): judged in closed loop; "
                "feedback={} if it does not"
            )
        return said

    def describe_score(self, score: Score) -> list[str]:
        """Return sentences on a score, and on what was not checked."""
        where = self.check.target if self.on_target else "the graph's own arithmetic"
        closeness = f"output SQNR {score.sqnr_db:.1f} dB on {len(self.feeds)} feeds ({where}), "
        said = [closeness + f"with 95 % at least {score.lower_db:.1f} dB on others of the kind"]
        if self._tolerance.evaluate is None:
            said.append(
                "the task's own metric was not checked: optimize(..., evaluate=..., max_drop=...) holds the "
                "model to it"
            )
        return said

    def _outputs(self, model: Model) -> list[list[Any]]:
        return run_outputs(model, self.feeds, tensors=self._tensors, loop=self._loop)
