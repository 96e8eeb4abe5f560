"""`benchmark_in_turns`: several sessions on the same inputs, so that a busy machine is fair to all."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping
from time import perf_counter
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.charts import Bar, bars
from edgeinfer.display import Table
from edgeinfer.errors import OptionsError
from edgeinfer.feeds.shapes import Shapes, describe_inputs
from edgeinfer.runtime.benchmark import calls_for, check_numbers, chosen_for, timed_in_turns
from edgeinfer.runtime.benchmark_report import BenchmarkReport
from edgeinfer.runtime.machine import describe_machine
from edgeinfer.runtime.session import Session

__all__ = ["TurnsReport", "benchmark_in_turns"]


@final
@attrs.frozen(kw_only=True)
class TurnsReport:
    """The latencies of several sessions that took turns.

    Attributes:
        reports: One for each session, by its name. The first is what the others are compared with.
    """

    reports: Mapping[str, BenchmarkReport]

    def speedup(self, name: str) -> float:
        """Return how many times faster a session is than the first: the median over the turns."""
        first = next(iter(self.reports.values()))
        return float(np.median(first.latencies_ms / self.reports[name].latencies_ms))

    def to_dict(self) -> dict[str, object]:
        """Return the figures as JSON-compatible values, without the single latencies."""
        return {
            name: report.to_dict() | {"speedup": self.speedup(name)} for name, report in self.reports.items()
        }

    def table(self) -> Table:
        """Return one row a session."""
        rows = [
            (
                name,
                f"{report.backend}:{report.device or 'default'}",
                *(f"{report.percentile_ms(p):.3f}" for p in (50, 90, 99, 99.9)),
                f"{report.jitter:.2f}",
                f"{self.speedup(name):.2f}x",
            )
            for name, report in self.reports.items()
        ]
        first = next(iter(self.reports.values()))
        inputs = dict.fromkeys(describe_inputs(report.inputs) for report in self.reports.values())
        notes = dict.fromkeys(note for report in self.reports.values() for note in report.notes)
        return Table(
            title=f"Latency in ms: {first.n} turns after {first.warmup} to warm up, {first.mode}",
            columns=("", "runs on", "p50", "p90", "p99", "p99.9", "p99/p50", "speed-up"),
            rows=rows,
            footer="; ".join(("inputs: " + " | ".join(inputs), first.machine, *notes)),
        )

    def __str__(self) -> str:
        return str(self.table())

    def picture(self) -> str:
        """Return the median latencies as inline SVG."""
        items = [Bar(name=name, value=report.p50_ms) for name, report in self.reports.items()]
        return bars(items, title="p50 latency", unit="ms")

    def _repr_html_(self) -> str:
        return self.table().to_html() + self.picture()


def benchmark_in_turns(
    sessions: Mapping[str, Session],
    feeds: Any = None,
    *,
    warmup: int = 10,
    runs: int | None = None,
    seconds: float | None = None,
    bound: bool = False,
    shapes: Shapes | None = None,
    batch: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> TurnsReport:
    """Measure the latency of several sessions, one inference of each in turn.

    What else the machine does, and how warm it is, then concerns all of them alike.

    Args:
        sessions: Open sessions by a name for the report; the others are compared with the first.
        feeds: As for `benchmark`; read once for each session.
        warmup: Runs of each beforehand that are not counted.
        runs: How many turns to measure. With `seconds`, whichever ends first.
        seconds: How long to measure, in all. With neither, 2 seconds for each and at least 100 turns.
        bound: Measure the bound mode on the first feed.
        shapes: As for `benchmark`.
        batch: As for `benchmark`.
        seed: For made-up feeds.
        progress: Show a progress bar. None: in a terminal or a notebook only.

    Raises:
        OptionsError: A number is out of range, or there is no session.
        InputError: The feeds do not fit.
    """
    check_numbers(warmup, runs, seconds)
    if not sessions:
        raise OptionsError("There is no session to measure.", expected="at least one")
    chosen = {
        name: chosen_for(session, feeds, shapes=shapes, batch=batch, count=int(bound), seed=seed)
        for name, session in sessions.items()
    }
    with contextlib.ExitStack() as stack:
        calls = {name: calls_for(session, chosen[name], bound, stack) for name, session in sessions.items()}
        for own in calls.values():
            for call in itertools.islice(itertools.cycle(own), warmup):
                call()
        started = perf_counter()
        latencies = timed_in_turns(calls, runs, seconds, progress)
        elapsed = perf_counter() - started
    total = sum(sum(own) for own in latencies.values())
    return TurnsReport(
        reports={
            name: BenchmarkReport(
                backend=session.backend,
                device=session.device,
                mode="bound" if bound else "infer",
                latencies_ms=np.array(latencies[name], np.float64) / 1e6,
                seconds=elapsed * sum(latencies[name]) / total,  # its share
                warmup=warmup,
                machine=describe_machine(),
                inputs=chosen[name].inputs,
                notes=chosen[name].notes,
            )
            for name, session in sessions.items()
        }
    )
