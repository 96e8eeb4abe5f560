"""`TuningResult`: what tuning found, what it tried, and what it could not reach."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

import attrs

from edgeinfer.atomic import write_file
from edgeinfer.budget import Budget, format_bytes
from edgeinfer.display import Table
from edgeinfer.errors import BudgetError
from edgeinfer.tuning.advice import Advice
from edgeinfer.tuning.page import body, page
from edgeinfer.tuning.trial import Trial, described
from edgeinfer.values import as_tuple

__all__ = ["TuningResult"]


@final
@attrs.frozen(kw_only=True, slots=False)
class TuningResult:
    """What tuning found.

    Attributes:
        budget: The limits.
        target: The target.
        where: The machine or device that it was measured on.
        trials: All candidates that were made, by index.
        pareto: The indices of those that none beats in accuracy and in latency, the fastest first.
        chosen: The index of the best one within the limits; None when there is none.
        advice: When there is none: which limit, how near it came, what would help.
        candidates: How many candidates there were.
        dropped: How many of them were never made, because their estimate is beyond the limits.
        clock: By which clock latencies are: `wall`, or `processor` on a machine under pressure.
        seconds: What tuning took, the runs before included.
        layers: Name, operator, multiply-accumulates and, where known, SQNR in dB of each layer of the float
            model.
        layer_us: Microseconds of each layer of the best candidate by the runtime's profiler; empty where it
            was not measured.
        notes: What must be said.
        others: The results of the other targets, where several were tuned for; the best one first.
    """

    budget: Budget
    target: str
    where: str
    trials: tuple[Trial, ...] = attrs.field(converter=as_tuple)
    pareto: tuple[int, ...] = attrs.field(converter=as_tuple)
    chosen: int | None
    advice: tuple[Advice, ...] = attrs.field(default=(), converter=as_tuple)
    candidates: int = 0
    dropped: int = 0
    clock: str = "wall"
    seconds: float = 0.0
    layers: tuple[tuple[str, str, int, float | None], ...] = attrs.field(
        default=(), converter=as_tuple, repr=False
    )
    layer_us: Mapping[str, float] = attrs.field(factory=dict, repr=False)
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    others: tuple[TuningResult, ...] = attrs.field(default=(), converter=as_tuple, repr=False)

    @property
    def met(self) -> bool:
        """Whether a candidate keeps the budget."""
        return self.chosen is not None

    @cached_property
    def _by_index(self) -> dict[int, Trial]:
        return {trial.index: trial for trial in self.trials}

    def trial(self, index: int) -> Trial:
        """Return the candidate of that index."""
        return self._by_index[index]

    @property
    def best(self) -> Trial:
        """The best candidate within the limits.

        Raises:
            BudgetError: There is none; the error says which limit, and what would help.
        """
        if self.chosen is None:
            raise BudgetError(
                "No candidate keeps the budget.",
                where=self.target,
                found="; ".join(each.limit for each in self.advice if each.limit) or None,
                hint="; ".join(each.what for each in self.advice if each.what) or None,
                facts={"advice": [each.to_dict() for each in self.advice]},
            )
        return self._by_index[self.chosen]

    @property
    def baseline(self) -> Trial:
        """The float model."""
        return self._by_index[0]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-compatible values."""
        return {
            "budget": self.budget.to_dict(),
            "target": self.target,
            "where": self.where,
            "met": self.met,
            "chosen": self.chosen,
            "pareto": list(self.pareto),
            "advice": [each.to_dict() for each in self.advice],
            "candidates": self.candidates,
            "dropped": self.dropped,
            "clock": self.clock,
            "seconds": self.seconds,
            "notes": list(self.notes),
            "trials": [trial.to_dict() for trial in self.trials],
            "others": [other.to_dict() for other in self.others],
        }

    def table(self) -> Table:
        """Return one row a candidate that was made: the best one first, then the Pareto set, then others."""
        first = [self.chosen] if self.chosen is not None else []
        order = dict.fromkeys([*first, *self.pareto, *sorted(self._by_index)])
        rows = [self._row(self._by_index[index]) for index in order]
        title = "met" if self.met else "not met"
        lines = [f"{self.candidates} candidates, {self.dropped} dropped by estimate, {len(self.trials)} made"]
        lines += [f"{self.seconds:.0f} s", f"latency by the {self.clock} clock", self.where, *self.notes]
        lines += [each.describe() for each in self.advice]
        return Table(
            title=f"Tuning for {self.target}: the budget is {title}",
            columns=("", "candidate", "p50 ms", "p99 ms", "accuracy", "peak", "disk", "what became of it"),
            rows=rows,
            footer="\n".join(lines),
        )

    def _row(self, trial: Trial) -> Sequence[str]:
        mark = "best" if trial.index == self.chosen else "Pareto" if trial.index in self.pareto else ""
        accuracy = trial.accuracy
        unit = "" if trial.metric is not None else " dB"
        return (
            mark,
            described(trial),
            "" if trial.latency_p50_ms is None else f"{trial.latency_p50_ms:.3f}",
            "" if trial.latency_p99_ms is None else f"{trial.latency_p99_ms:.3f}",
            "" if accuracy is None else f"{accuracy:.4g}{unit}",
            "" if trial.peak_bytes is None else format_bytes(trial.peak_bytes),
            "" if trial.disk_bytes is None else format_bytes(trial.disk_bytes),
            trial.lost or "keeps the budget with the best accuracy",
        )

    def save_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as one HTML page that needs no other file and no network."""
        write_file(Path(path), page(self).encode())
        return Path(path)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return body(self)
