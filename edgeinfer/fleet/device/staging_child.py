"""The child process in which a new model is loaded for the first time: `staging` starts it and watches it.

It reads one JSON request on stdin and writes one JSON event a line on stdout. Whatever the model does here (a
crash, a loop without end, memory without end) ends with this process, and it ends with the agent.

Requests: `facts` (does a runtime work?), `stage` (golden outputs, latency, memory), `shadow` (live inputs).
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeinfer.artifact.artifact import Artifact
from edgeinfer.artifact.golden import compare_golden
from edgeinfer.backends.registry import backends
from edgeinfer.errors import ArtifactError, EdgeInferError, GoldenMismatchError
from edgeinfer.feeds.choose import choose_feeds
from edgeinfer.fleet.device.agreement import agreement
from edgeinfer.fleet.device.golden import read_golden
from edgeinfer.fleet.device.histogram import Histogram
from edgeinfer.fleet.device.live_inputs import Sample, read_sample, take_samples
from edgeinfer.runtime.open import load
from edgeinfer.runtime.session import Session

__all__: list[str] = []

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_WARMUP = 10
# At least so many runs before growth is looked at: allocators and caches fill in the first ones.
_SETTLED = 50


def main() -> int:
    """Serve the request. The exit code is 0 if it came to a result, good or bad."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a runtime prints must not stand among the events

    def tell(event: str, **values: object) -> None:
        events.write(json.dumps({"event": event, **values}) + "\n")
        events.flush()

    tell("started")
    request = json.load(sys.stdin)
    _end_with_parent(int(request["parent"]))
    with contextlib.suppress(OSError):
        os.nice(int(request.get("nice", 0)))
    try:
        _MODES[request["mode"]](request, tell)
    except GoldenMismatchError as error:
        tell("failed", code="golden", what=str(error))
    except ArtifactError as error:
        tell("failed", code="artifact", what=str(error))
    except EdgeInferError as error:
        tell("failed", code="load" if request.get("loading", True) else "inference", what=str(error))
    except MemoryError as error:
        tell("failed", code="memory", what=f"MemoryError: {error}")
    return 0


def _facts(request: Mapping[str, Any], tell: Callable[..., None]) -> None:
    found = backends()[request["backend"]].capabilities()
    tell("facts", version=found.version if found.available else None)


def _stage(request: dict[str, Any], tell: Callable[..., None]) -> None:
    artifact = Artifact.open(request["artifact"])
    with load(artifact) as session:
        request["loading"] = False
        tell("loaded", rss_bytes=_resident("VmRSS"))
        feeds = _check_golden(request, artifact, session)
        tell("golden", checked=feeds is not None)
        chosen = choose_feeds(feeds, artifact.signature).feeds
        _measure(session, chosen, int(request["runs"]), tell)


def _check_golden(request: Mapping[str, Any], artifact: Artifact, session: Session) -> Any:
    """Return the golden inputs that gave the golden outputs, or None of a release that has none."""
    if request.get("golden"):
        cases = read_golden(request["golden"], artifact.signature)
        for case in cases:
            compare_golden(case, session.infer(case.inputs))
        return [dict(case.inputs) for case in cases] or None
    if artifact.manifest.golden is not None:
        session.check_golden()
        return [dict(artifact.manifest.golden.inputs)]
    return None


def _measure(
    session: Session, feeds: tuple[dict[str, np.ndarray], ...], runs: int, tell: Callable[..., None]
) -> None:
    for index in range(min(_WARMUP, runs)):
        session.infer(feeds[index % len(feeds)])
    latencies: list[float] = []
    resident: list[int] = []
    for index in range(runs):
        started = time.perf_counter_ns()
        session.infer(feeds[index % len(feeds)])
        latencies.append((time.perf_counter_ns() - started) / 1e6)
        if index % 10 == 9:
            resident.append(_resident("VmRSS"))
            tell("ran", count=index + 1)
    p50, p99 = (float(value) for value in np.percentile(latencies, (50, 99), method="higher"))
    tell(
        "measured",
        latency_p50_ms=p50,
        latency_p99_ms=p99,
        latency=Histogram(latencies).to_dict(),
        peak_bytes=_resident("VmHWM"),
        growth_bytes_per_run=_growth(resident),
        runs=runs,
    )


def _growth(resident: list[int]) -> float:
    """Return how many bytes each run adds, once it has settled: the least slope of three stretches."""
    settled = resident[_SETTLED // 10 :]
    third = len(settled) // 3
    if third < 2:
        return 0.0
    ends = [settled[0], settled[third], settled[2 * third], settled[-1]]
    return min(after - before for before, after in itertools.pairwise(ends)) / (third * 10)


def _shadow(request: dict[str, Any], tell: Callable[..., None]) -> None:
    new, old = Artifact.open(request["artifact"]), Artifact.open(request["reference"])
    with load(new) as candidate, load(old) as running:
        request["loading"] = False
        tell("loaded", rss_bytes=_resident("VmRSS"))
        ours, theirs = Histogram(), Histogram()
        agreed, count, errors = 0.0, 0, 0
        for path in take_samples(Path(request["inputs"]), end=time.monotonic() + request["timeout_s"]):
            sample = read_sample(path, old.signature)
            path.unlink(missing_ok=True)
            if sample is None:
                continue
            count += 1
            try:
                outputs = _timed_pair(candidate, running, sample, ours, theirs, first=count % 2 == 0)
                agreed += agreement(outputs, sample.outputs)
            except EdgeInferError as error:
                errors += 1
                tell("error", what=str(error))
            tell(
                "compared",
                count=count,
                errors=errors,
                agreement=agreed / count,
                latency=ours.to_dict(),
                reference=theirs.to_dict(),
                peak_bytes=_resident("VmHWM"),
            )
            if count >= int(request["requests"]):
                return


def _timed_pair(
    candidate: Session,
    running: Session,
    sample: Sample,
    ours: Histogram,
    theirs: Histogram,
    *,
    first: bool,
) -> Mapping[str, np.ndarray]:
    """Run both on the same inputs, in turn, so that neither always comes behind the other."""
    outputs: Mapping[str, np.ndarray] = {}
    pairs = ((candidate, ours), (running, theirs))
    for session, histogram in pairs if first else reversed(pairs):
        started = time.perf_counter_ns()
        found = session.infer(sample.inputs)
        histogram.add((time.perf_counter_ns() - started) / 1e6)
        if session is candidate:
            outputs = found
    return outputs


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the agent ends, however it ends."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had ended before
        sys.exit(1)


_MODES: dict[str, Callable[[dict[str, Any], Callable[..., None]], None]] = {
    "facts": _facts,
    "stage": _stage,
    "shadow": _shadow,
}

if __name__ == "__main__":
    sys.exit(main())
