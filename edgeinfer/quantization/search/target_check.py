"""Int8 models where they will run: whether the target takes them, and computes what the graph says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import final

import attrs

from edgeinfer.backends.registry import get_backend, reference_backend
from edgeinfer.devices.profile import Target
from edgeinfer.errors import EdgeInferError
from edgeinfer.model.model import Model
from edgeinfer.quantization.search.model_runs import Feed, Loop, run_outputs
from edgeinfer.quantization.search.output_score import Score, Scorer
from edgeinfer.quantization.search.workbench import Attempt, Workbench

__all__ = ["DIFFERS_DB", "NotRun", "TargetCheck"]

DIFFERS_DB = 3.0  # rounding alone makes much less of a difference between runtimes
_FEEDS = 4  # a layer that a target computes wrongly stands out in a few feeds


@final
@attrs.frozen(kw_only=True)
class NotRun:
    """That a model did not run on a target.

    Attributes:
        reason: Why, as a sentence without its stop.
        refused: Whether the target refused this model; else it is not here.
    """

    reason: str
    refused: bool


@final
class TargetCheck:
    """Runs versions of one model on a target.

    Args:
        target: The target; None for the reference backend, as it would be deployed.
        feeds: The judged feeds.
        scorer: Knows the float outputs for them.
        tensors: The scored tensors; None for the outputs.
        loop: Feed outputs back into inputs.
    """

    def __init__(
        self,
        target: Target | str | None,
        feeds: Sequence[Feed],
        scorer: Scorer,
        *,
        tensors: Sequence[str] | None = None,
        loop: Loop | None = None,
    ) -> None:
        self.target = Target.parse(target if target is not None else reference_backend().name)
        self._feeds, self._scorer, self._tensors, self._loop = feeds, scorer, tensors, loop
        self._last: tuple[str, Score] | None = None  # a model's digest, and its score on all feeds

    def absent(self) -> str | None:
        """Return why nothing can be run on the target here, or None."""
        found = get_backend(self.target.backend).capabilities()
        if not found.available:
            return f"{self.target} is not here: {found.reason}"
        if self.target.profile is not None and not self.target.device:
            return None
        names = [device.name for device in found.devices]
        wanted = self.target.device
        if wanted and not any(name.split(".")[0] == wanted.split(".")[0] for name in names):
            return f"{self.target} is not here: there is {', '.join(names) or 'no device'}"
        return None

    def score(self, model: Model, only: Sequence[int] | None = None) -> Score | NotRun:
        """Return how close a model is to float on the target.

        Args:
            model: The model.
            only: The numbers of some feeds, to run no others.
        """
        absent = self.absent()
        if absent is not None:
            return NotRun(reason=absent, refused=False)
        if only is None and self._last is not None and self._last[0] == model.digest:
            return self._last[1]
        feeds = self._feeds if only is None else [self._feeds[number] for number in only]
        try:
            outputs = run_outputs(model, feeds, self.target, tensors=self._tensors, loop=self._loop)
        except EdgeInferError as error:
            line = str(error.what).splitlines()[0].rstrip(".")
            return NotRun(reason=f"{self.target} refuses it: {line}", refused=True)
        if only is not None:
            return self._scorer.only(only).score(outputs)
        self._last = model.digest, self._scorer.score(outputs)
        return self._last[1]

    def refuses_float(self, model: Model) -> bool:
        """Whether the target does not even take the float model, so that nothing can be said of int8."""
        return isinstance(self.score(model, [0]), NotRun)

    def singles(
        self,
        bench: Workbench,
        whole: Attempt,
        nodes: Collection[str],
        every: Collection[str],
        feeds: Sequence[int] | None = None,
    ) -> Mapping[str, Score | NotRun]:
        """Return the scores on the target with each layer alone in integers.

        Args:
            bench: Makes the models.
            whole: The attempt that they are variants of.
            nodes: The layers.
            every: All layers that the attempt has in integers.
            feeds: The numbers of the feeds to run; None for a few.
        """
        feeds = range(min(_FEEDS, len(self._feeds))) if feeds is None else feeds
        found: dict[str, Score | NotRun] = {}
        for node in nodes:
            others = {*whole.keep_float, *every} - {node}
            model, _ = bench.quantized(whole.recipe, others)
            found[node] = self.score(model, feeds)
        return found
