"""MLPerf's load generator (`mlcommons-loadgen`): SingleStream with early stopping.

In SingleStream one query is issued as soon as the last one is answered. The generator's own result is not
the 90th percentile that was seen but the "early stopping estimate" of it: the least latency of which it can
be said, with 99 % confidence, that 90 % of all queries stay below it (MLPerf Inference rules).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any, final

import attrs

from edgeinfer.errors import BackendUnavailableError, InferenceError

__all__ = ["SingleStream", "run_single_stream"]


@final
@attrs.frozen(kw_only=True)
class SingleStream:
    """The load generator's verdict.

    Attributes:
        valid: Whether it accepts the run: long enough, enough queries, early stopping satisfied.
        p90_ms: The 90th percentile latency that was seen.
        early_stopping_p90_ms: The early stopping estimate of it, or None when there were too few queries.
        queries: How many queries it issued.
        summary: Its summary, as it wrote it.
    """

    valid: bool
    p90_ms: float
    early_stopping_p90_ms: float | None
    queries: int
    summary: str = attrs.field(repr=False)

    def describe(self) -> str:
        """Return one line for people."""
        estimate = self.early_stopping_p90_ms
        tail = f"early stopping estimate {estimate:.3f} ms" if estimate is not None else "too few queries"
        verdict = "valid" if self.valid else "INVALID"
        return f"{verdict}, p90 {self.p90_ms:.3f} ms, {tail}, {self.queries} queries"


def _import() -> Any:
    try:
        import mlperf_loadgen  # type: ignore[import-not-found]
    except ImportError as error:
        raise BackendUnavailableError(
            "MLPerf's load generator is not installed.",
            found=str(error),
            hint='pip install "edgeinfer[bench]" (the package is mlcommons-loadgen)',
        ) from error
    return mlperf_loadgen


def run_single_stream(
    calls: Sequence[Callable[[], object]], *, min_queries: int, min_seconds: float
) -> tuple[list[int], float, SingleStream]:
    """Let the load generator issue the queries.

    Args:
        calls: The samples: each runs one inference.
        min_queries: The generator goes on until it has issued this many,
        min_seconds: and until this time has passed.

    Returns:
        Latencies in nanoseconds as the query function saw them, the wall time in seconds, the verdict.

    Raises:
        BackendUnavailableError: `mlcommons-loadgen` is not installed.
        InferenceError: An inference failed, or the generator wrote no result.
    """
    lg = _import()
    latencies: list[int] = []
    failures: list[Exception] = []

    def issue(samples: Sequence[Any]) -> None:
        for sample in samples:
            # An exception must not cross the generator's C++ frames; it is raised when the test is over.
            if not failures:
                started = perf_counter_ns()
                try:
                    calls[sample.index]()
                except Exception as error:
                    failures.append(error)
                latencies.append(perf_counter_ns() - started)
            lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, 0, 0)])

    settings = lg.TestSettings()
    settings.scenario = lg.TestScenario.SingleStream
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_query_count = min_queries
    settings.min_duration_ms = max(1, round(min_seconds * 1000))
    # The generator allocates a schedule for the duration from this expectation, so it must not be far off.
    started_ns = perf_counter_ns()
    calls[0]()
    settings.single_stream_expected_latency_ns = max(1000, (perf_counter_ns() - started_ns) // 2)

    with tempfile.TemporaryDirectory(prefix="edgeinfer-loadgen-") as folder:
        logs = lg.LogSettings()
        logs.log_output.outdir = folder
        logs.log_output.copy_summary_to_stdout = False
        logs.enable_trace = False
        sut = lg.ConstructSUT(issue, lambda: None)
        qsl = lg.ConstructQSL(len(calls), len(calls), lambda _: None, lambda _: None)
        started = perf_counter()
        try:
            # It looks for audit.config in the working directory; a name inside the folder keeps it from one.
            lg.StartTestWithLogSettings(sut, qsl, settings, logs, str(Path(folder) / "audit.config"))
        finally:
            elapsed = perf_counter() - started
            lg.DestroyQSL(qsl)
            lg.DestroySUT(sut)
        if failures:
            raise InferenceError(f"An inference failed under load: {failures[0]}") from failures[0]
        summary_file = Path(folder) / "mlperf_log_summary.txt"
        summary = summary_file.read_text(encoding="utf-8") if summary_file.is_file() else ""
    return latencies, elapsed, _parse(summary, len(latencies))


def _parse(summary: str, queries: int) -> SingleStream:
    p90 = re.search(r"90\.00 percentile latency \(ns\)\s*:\s*(\d+)", summary)
    estimate = re.search(r"Early stopping 90(?:\.0)?th percentile estimate:\s*(\d+)", summary)
    verdict = re.search(r"Result is\s*:\s*(\w+)", summary)
    if p90 is None or verdict is None:
        raise InferenceError("The load generator wrote no result.", found=summary[:500] or "no summary")
    return SingleStream(
        valid=verdict[1] == "VALID",
        p90_ms=int(p90[1]) / 1e6,
        early_stopping_p90_ms=int(estimate[1]) / 1e6 if estimate else None,
        queries=queries,
        summary=summary,
    )
