"""Tuning for several targets, so that the backend is chosen, too: each on its own, then the best of all."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from edgeinfer.devices.profile import Target
from edgeinfer.errors import OptionsError
from edgeinfer.tuning.result import TuningResult

__all__ = ["tune_each"]


def tune_each(
    targets: Sequence[Target | str],
    tune_one: Callable[[Target, float | None, Path | None], TuningResult],
    *,
    minutes: float | None,
    journal: str | os.PathLike[str] | None,
) -> TuningResult:
    """Tune for each target in an equal part of the time, and return the result of the one that does best.

    That is the most accurate one within the limits, the fastest one of those; where none keeps them, the one
    that comes nearest. Its `others` are the results of the other targets.

    Args:
        targets: At least one.
        tune_one: Tunes for a target, in so many minutes, from a journal.
        minutes: For all of them.
        journal: Each target has its own: `run.jsonl` becomes `run.openvino.jsonl`.

    Raises:
        OptionsError: There is no target, or one is there twice.
    """
    parsed = [Target.parse(target) for target in targets]
    names = [str(target) for target in parsed]
    if not parsed or len(set(names)) < len(names):
        raise OptionsError("Targets are one or more, each once.", where="target", found=", ".join(names))
    part = None if minutes is None else minutes / len(parsed)
    results = [tune_one(target, part, _own(journal, str(target))) for target in parsed]
    first, *others = sorted(results, key=_order)
    return attrs.evolve(first, others=tuple(others), notes=(*first.notes, *map(_summary, others)))


def _own(journal: str | os.PathLike[str] | None, target: str) -> Path | None:
    if journal is None:
        return None
    path = Path(journal)
    return path.with_name(f"{path.stem}.{re.sub(r'[^A-Za-z0-9._-]', '-', target)}{path.suffix}")


def _order(result: TuningResult) -> tuple[float, ...]:
    if result.met:
        return (0.0, -(result.best.accuracy or -math.inf), result.best.row_ms or math.inf)
    return (1.0, _excess(result))


def _excess(result: TuningResult) -> float:
    """Return how many times the limit the worst figure is, of the candidate that comes nearest."""
    worst = [
        max((violation.ratio or math.inf for violation in trial.violations), default=math.inf)
        for trial in result.trials
        if trial.latency_p50_ms is not None
    ]
    return min(worst, default=math.inf)


def _summary(result: TuningResult) -> str:
    if not result.met:
        return f"also tuned for {result.target}: no candidate keeps the budget there"
    best = result.best
    took = "" if best.latency_p50_ms is None else f", {best.latency_p50_ms:.4g} ms"
    close = "" if best.accuracy is None else f", accuracy {best.accuracy:.4g}"
    return f"also tuned for {result.target}: candidate {best.index}, {best.candidate.describe()}{took}{close}"
