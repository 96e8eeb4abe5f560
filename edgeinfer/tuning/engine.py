"""The loop of a tuning run: ask the planner, do it, write down what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, final

import attrs

from edgeinfer.artifact.artifact import Artifact
from edgeinfer.devices.probe.tree import Tree
from edgeinfer.devices.profile import Target
from edgeinfer.errors import EdgeInferError, RemoteError, TuningError
from edgeinfer.graph.build import compile_model
from edgeinfer.model.model import Model
from edgeinfer.tuning.actions import (
    Action,
    Evaluate,
    Make,
    MeasureMemory,
    MeasureSensitivity,
    Prepare,
    Problem,
    Time,
)
from edgeinfer.tuning.candidate import Candidate
from edgeinfer.tuning.fork_server import ForkServer
from edgeinfer.tuning.journal import Journal
from edgeinfer.tuning.planner import next_action
from edgeinfer.tuning.processes import ChildError, memory_limit, run_task
from edgeinfer.tuning.state import PRESSURE_PERCENT, State
from edgeinfer.tuning.turns import wait_for_calm

__all__ = ["Engine", "Timer"]

# When a task counts as hung. On a machine that ten others use, an honest one takes ten times as long.
_TASK_S = 900.0
_MOST_ATTEMPTS = 2  # of an evaluation that ends with the process
_WAIT_S, _WAIT_PART = 20.0, 0.05  # for a calm machine: at most so long, and such a part of the time


class Timer(Protocol):
    """What times candidates: `Bench` here, `RemoteBench` on a device."""

    def time(self, trials: Any, runs: int) -> dict[int, dict[str, Any]]:
        """Return the fields of a `Timing` for each candidate."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


@final
@attrs.define(kw_only=True)
class Engine:
    """Does what the planner says until it says that all is done.

    Args:
        problem: What decisions are made by.
        journal: Open.
        folder: Where models, recipes and feeds are kept.
        target: The target.
        evaluate: The user's metric.
        shapes: The shapes of one feed.
        timer: Times candidates.
        here: Whether the target's backend runs on this machine.
        peak_bytes: Measures the memory of an artifact with a batch; None where it cannot be measured.
        on_action: Called before each action with a line for people.
        server: What child processes are forked from; None: each one is a new interpreter.
    """

    problem: Problem
    journal: Journal
    folder: Path
    target: Target
    evaluate: Callable[[Model], float] | None
    shapes: Mapping[str, tuple[int, ...]]
    timer: Timer
    here: bool
    peak_bytes: Callable[[Artifact, int | None], int] | None = None
    on_action: Callable[[str], None] = attrs.field(default=lambda _: None)
    server: ForkServer | None = None

    def run(self) -> State:
        """Go on until the end; returns what is known then.

        Raises:
            TuningError: The model cannot be prepared, or the journal cannot be written.
        """
        while True:
            state = State.of(self.journal.records)
            if state.ended:
                return state
            action = next_action(state, self.problem)
            started = time.monotonic()
            record = self._do(action, state)
            self.journal.append({**record, "seconds": round(time.monotonic() - started, 3)})

    def time_layers(self, trial: int, candidate: Candidate) -> None:
        """Time the layers of a candidate, for the report. What cannot be timed is noted as no layers."""
        started = time.monotonic()
        try:
            us = self._task({"task": "layers", "candidate": candidate.to_dict()}, "layers")["us"]
        except ChildError:
            us = {}
        seconds = round(time.monotonic() - started, 3)
        self.journal.append({"kind": "layers", "trial": trial, "us": us, "seconds": seconds})

    def _do(self, action: Action, state: State) -> dict[str, Any]:
        if isinstance(action, Prepare):
            self.on_action("preparing the model")
            return self._prepare()
        if isinstance(action, Make):
            self.on_action(f"making candidate {action.trial}: {action.candidate.describe()}")
            return self._make(action.trial, action.candidate)
        if isinstance(action, Time):
            self.on_action(f"timing {len(action.trials)} candidates in turns ({action.name})")
            return self._time(action, state)
        if isinstance(action, MeasureSensitivity):
            self.on_action("measuring the sensitivity of each layer")
            return self._sensitivity()
        if isinstance(action, Evaluate):
            self.on_action(f"evaluating candidate {action.trial}: {action.candidate.describe()}")
            return self._evaluate(action.trial, action.candidate, state)
        if isinstance(action, MeasureMemory):
            self.on_action(f"measuring the memory of candidate {action.trial}")
            return self._memory(action.trial, action.candidate)
        return {"kind": "end"}

    def _task(self, task: Mapping[str, Any], log: str) -> dict[str, Any]:
        return run_task(
            {**task, "folder": str(self.folder), "target": str(self.target)},
            log=self.folder / f"{log}.log",
            timeout_s=_TASK_S,
            max_bytes=memory_limit(),
            server=self.server,
        )

    def _prepare(self) -> dict[str, Any]:
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        try:
            answer = self._task({"task": "prepare", "shapes": shapes}, "prepare")
        except ChildError as failure:
            raise TuningError(
                f"The model cannot be prepared: {failure.reason}", found=failure.outcome
            ) from failure
        return {**answer, "kind": "prepared"}

    def _make(self, trial: int, candidate: Candidate) -> dict[str, Any]:
        record = {"kind": "made", "trial": trial, "candidate": candidate.to_dict()}
        task = {"task": "make", "candidate": candidate.to_dict(), "here": self.here}
        try:
            return {**record, **self._task(task, f"make-{trial}")}
        except ChildError as failure:
            return {**record, "outcome": failure.outcome, "reason": failure.reason}

    def _time(self, action: Time, state: State) -> dict[str, Any]:
        before, waited = wait_for_calm(Tree(), most_s=self._patience_s(state)) if self.here else (None, 0.0)
        timings = self.timer.time(action.trials, action.runs)
        return {
            "kind": "rung",
            "name": action.name,
            "timings": {str(index): timing for index, timing in timings.items()},
            "pressure": before,
            "waited_s": round(waited, 1) if before is not None and before > PRESSURE_PERCENT else 0.0,
        }

    def _patience_s(self, state: State) -> float:
        """How long to wait for a calm machine: not again where it was in vain, and not most of the time."""
        if state.pressed and any(rung.waited_s for rung in state.rungs):
            return 0.0
        seconds = self.problem.seconds
        return _WAIT_S if seconds is None else min(_WAIT_S, _WAIT_PART * seconds)

    def _sensitivity(self) -> dict[str, Any]:
        record: dict[str, Any] = {"kind": "sensitivity", "layers": []}
        try:
            return {**record, **self._task({"task": "sensitivity"}, "sensitivity")}
        except ChildError as failure:
            return {**record, "outcome": failure.outcome, "reason": failure.reason}

    def _evaluate(self, trial: int, candidate: Candidate, state: State) -> dict[str, Any]:
        record: dict[str, Any] = {"kind": "evaluated", "trial": trial, "metric": None}
        if state.attempts.get(trial, 0) >= _MOST_ATTEMPTS:
            return {**record, "reason": f"crashed: the process ended {_MOST_ATTEMPTS} times in `evaluate`"}
        self.journal.append({"kind": "evaluating", "trial": trial})  # counted before it begins
        assert self.evaluate is not None
        try:
            metric = float(self.evaluate(self.model_of(candidate)))
        except Exception as error:  # the user's own function
            return {**record, "reason": f"failed: {type(error).__name__}: {error}"}
        if metric != metric or metric in (float("inf"), float("-inf")):
            return {**record, "reason": f"failed: the metric is {metric}"}
        return {**record, "metric": metric}

    def _memory(self, trial: int, candidate: Candidate) -> dict[str, Any]:
        record: dict[str, Any] = {"kind": "memory", "trial": trial, "peak_bytes": None}
        if self.peak_bytes is None:
            return record
        try:
            return {**record, "peak_bytes": self.peak_bytes(self.artifact_of(candidate), candidate.batch)}
        except (EdgeInferError, RemoteError) as error:
            return {**record, "reason": str(error)}

    def model_of(self, candidate: Candidate) -> Model:
        """Return a candidate's model; it remembers what it was tuned for."""
        model = Model.load(self.folder / f"{candidate.model_key}.onnx")
        return model.tuned_for(str(self.target), candidate.run_options)

    def artifact_of(self, candidate: Candidate) -> Artifact:
        """Compile a candidate."""
        return compile_model(self.model_of(candidate), trial=False)
