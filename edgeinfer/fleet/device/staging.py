"""Loads a new model for the first time: in a child process, beside the running one, and watches it.

A crash, a hang or memory without end of the child is a result: the model is refused. Only what has nothing to
do with the model (no process can be started) is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, final

import attrs

from edgeinfer.backends.registry import backends
from edgeinfer.budget import Budget
from edgeinfer.fleet.device.child_process import ChildFailed, Seen, child_events
from edgeinfer.fleet.device.histogram import Histogram
from edgeinfer.fleet.device.probe import Probe
from edgeinfer.fleet.device.verdicts import Verdict, check_budget

__all__ = ["Checker", "ProcessChecker", "ShadowRequest", "StagingRequest", "StagingResult"]

# How far above the budget's peak a child may grow before it is ended; above the limit it is refused anyway.
_MEMORY_SLACK = 1.5
_LEAK_BYTES_PER_RUN = 4096.0
_FACTS_S = 120.0


@final
@attrs.frozen(kw_only=True)
class StagingRequest:
    """What to check before a model may run.

    Attributes:
        model: Its name.
        artifact: The folder of the artifact.
        golden: The file of golden feeds, or None for the artifact's own.
        budget: The limits.
        runs: How many inferences are timed.
        timeout_s: How long all of it may take.
        silence_s: How long the child may tell nothing: a single inference hangs, or a load.
    """

    model: str
    artifact: Path
    golden: Path | None
    budget: Budget
    runs: int = 200
    timeout_s: float = 300.0
    silence_s: float = 60.0


@final
@attrs.frozen(kw_only=True)
class ShadowRequest:
    """What to compare on live inputs.

    Attributes:
        model: Its name.
        artifact: The folder of the new artifact.
        reference: The folder of the running one.
        inputs: The folder to which applications write live inputs and answers.
        requests: How many to compare.
        timeout_s: How long to wait for them.
    """

    model: str
    artifact: Path
    reference: Path
    inputs: Path
    requests: int
    timeout_s: float


@final
@attrs.frozen(kw_only=True)
class StagingResult:
    """What was found.

    Attributes:
        verdict: Whether the model may go on, and why not.
        metrics: What was measured: figures by the names of the budget's limits, and distributions.
    """

    verdict: Verdict
    metrics: Mapping[str, Histogram | float] = attrs.field(factory=dict)


class Checker(Protocol):
    """Tries a model before it may serve."""

    def facts(self) -> Mapping[str, str]:
        """Return the version of each runtime that works here."""
        ...

    def stage(self, request: StagingRequest, alive: Callable[[], None]) -> StagingResult:
        """Load a model and check it. `alive` is called again and again; what it raises ends the check."""
        ...

    def shadow(self, request: ShadowRequest, alive: Callable[[], None]) -> StagingResult:
        """Compare a model with the running one on live inputs."""
        ...


@final
class ProcessChecker:
    """Tries a model in a child process. Agents of one machine may share one.

    Args:
        probe: Reads temperature, power and the child's memory meanwhile.
        may_lack: Limits of the budget that are let pass where the device has no sensor for them.
        nice: How far the child steps back behind what serves (see nice(2)).
        versions: Runtime -> version of those that work here, where that is known already: as to the second of
            several agents on one machine. None asks them.
    """

    def __init__(
        self,
        probe: Probe,
        *,
        may_lack: frozenset[str] = frozenset(),
        nice: int = 0,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        self._probe = probe
        self._may_lack = may_lack
        self._nice = nice
        self._versions = versions

    def facts(self) -> Mapping[str, str]:
        """Ask each runtime, once, in a process of its own: together they need the memory of all."""
        if self._versions is None:
            versions = {name: self._version(name) for name in backends()}
            self._versions = {name: version for name, version in versions.items() if version is not None}
        return self._versions

    def _version(self, backend: str) -> str | None:
        asked = {"mode": "facts", "backend": backend}
        try:
            for event in self._events(asked, _FACTS_S, _FACTS_S, Seen()):
                if event.get("event") == "facts" and isinstance(event.get("version"), str):
                    return str(event["version"])
        except ChildFailed:  # a runtime that crashes or hangs does not work here
            return None
        return None

    def stage(self, request: StagingRequest, alive: Callable[[], None]) -> StagingResult:
        """See `Checker`."""
        seen = Seen(max_bytes=_most(request.budget), alive=alive)
        asked = {
            "mode": "stage",
            "artifact": str(request.artifact),
            "golden": str(request.golden) if request.golden is not None else None,
            "runs": request.runs,
        }
        measured: Mapping[str, Any] | None = None
        try:
            for event in self._events(asked, request.timeout_s, request.silence_s, seen):
                if event.get("event") == "failed":
                    return StagingResult(verdict=Verdict.fail(str(event["code"]), str(event["what"])))
                if event.get("event") == "measured":
                    measured = event
        except ChildFailed as error:
            return StagingResult(verdict=Verdict.fail(error.code, str(error)), metrics=seen.metrics())
        if measured is None:
            return StagingResult(verdict=Verdict.fail("crash", "the child ended before it had measured"))
        return self._judged(request.budget, measured, seen)

    def shadow(self, request: ShadowRequest, alive: Callable[[], None]) -> StagingResult:
        """See `Checker`. The verdict is about crashes alone: figures are judged by the caller."""
        seen = Seen(alive=alive)
        asked = {
            "mode": "shadow",
            "artifact": str(request.artifact),
            "reference": str(request.reference),
            "inputs": str(request.inputs),
            "requests": request.requests,
            "timeout_s": request.timeout_s,
        }
        last: Mapping[str, Any] = {}
        verdict = Verdict.passed()
        try:
            # It is silent while no requests come, and it ends by itself at the time-out.
            for event in self._events(asked, request.timeout_s + 60, request.timeout_s + 60, seen):
                if event.get("event") == "failed":
                    verdict = Verdict.fail(str(event["code"]), str(event["what"]))
                if event.get("event") == "compared":
                    last = event
        except ChildFailed as error:
            verdict = Verdict.fail(error.code, str(error))
        metrics: dict[str, Histogram | float] = dict(seen.metrics())
        if last:
            metrics["shadow_requests"] = float(last["count"])
            metrics["shadow_errors"] = float(last["errors"])
            metrics["shadow_agreement"] = float(last["agreement"])
            metrics["shadow_latency_ms"] = Histogram.from_dict(last["latency"])
            metrics["shadow_reference_ms"] = Histogram.from_dict(last["reference"])
        return StagingResult(verdict=verdict, metrics=metrics)

    def _judged(self, budget: Budget, measured: Mapping[str, Any], seen: Seen) -> StagingResult:
        figures = {name: float(measured[name]) for name in ("latency_p50_ms", "latency_p99_ms", "peak_bytes")}
        figures |= seen.metrics()
        metrics: dict[str, Histogram | float] = {
            **figures,
            "latency_ms": Histogram.from_dict(measured["latency"]),
        }
        growth = float(measured["growth_bytes_per_run"])
        if growth > _LEAK_BYTES_PER_RUN:
            what = f"each inference keeps {growth / 1e3:.0f} kB more"
            return StagingResult(verdict=Verdict.fail("leak", what), metrics=metrics)
        return StagingResult(verdict=check_budget(budget, figures, self._may_lack), metrics=metrics)

    def _events(
        self, request: dict[str, Any], timeout_s: float, silence_s: float, seen: Seen
    ) -> Iterator[Mapping[str, Any]]:
        return child_events(
            request, timeout_s=timeout_s, silence_s=silence_s, seen=seen, probe=self._probe, nice=self._nice
        )


def _most(budget: Budget) -> float | None:
    return None if budget.peak_bytes is None else budget.peak_bytes * _MEMORY_SLACK
