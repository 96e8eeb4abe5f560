"""`Trial`: one candidate of a tuning run, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import attrs

from edgeinfer.budget import Violation
from edgeinfer.errors import BudgetError
from edgeinfer.model.model import Model
from edgeinfer.tuning.candidate import Candidate
from edgeinfer.tuning.recipe import Recipe
from edgeinfer.values import as_tuple

__all__ = ["Trial", "described"]


@final
@attrs.frozen(kw_only=True)
class Trial:
    """One candidate and what became of it.

    Attributes:
        index: Its place in the search space; 0 is the float model and 1 the int8 model.
        candidate: The candidate.
        outcome: `ok`, `failed`, `crashed`, `hung`, `out_of_memory` or `refused`.
        stage: How far it came: `made`, `timed`, `halving`, `evaluated`.
        lost: Why it is not the best one; empty for the best one.
        violations: The limits that it breaks, or of which it is not known.
        latency_p50_ms: Median latency by the clock of the run, or None.
        latency_p99_ms: The 99th percentile.
        estimate_ms: What was estimated for it by the measurements of the others, or None.
        metric: The user's metric.
        drop: How much of the metric is lost against the original model.
        sqnr_db: SQNR of its worst output against the original model, on a few feeds.
        peak_bytes: Peak resident memory of a process that runs it.
        disk_bytes: The size of its artifact.
        macs: Its multiply-accumulates.
        weight_bytes: The size of its weights.
        float_layers: Layers in float, where others run in integers.
        latencies_ms: Single latencies, thinned out.
        notes: What else was said while it was made.
    """

    index: int
    candidate: Candidate
    outcome: str
    stage: str
    lost: str = ""
    violations: tuple[Violation, ...] = attrs.field(default=(), converter=as_tuple)
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    estimate_ms: float | None = None
    metric: float | None = None
    drop: float | None = None
    sqnr_db: float | None = None
    peak_bytes: int | None = None
    disk_bytes: int | None = None
    macs: int | None = None
    weight_bytes: int | None = None
    float_layers: tuple[str, ...] = attrs.field(default=(), converter=as_tuple, repr=False)
    latencies_ms: tuple[float, ...] = attrs.field(default=(), converter=as_tuple, repr=False)
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple, repr=False)
    _load: Callable[[], tuple[Model, Recipe]] | None = attrs.field(
        default=None, eq=False, repr=False, alias="load"
    )

    @property
    def recipe(self) -> Recipe:
        """How its model is made from the original one.

        Raises:
            BudgetError: There is no such model.
        """
        return self._loaded()[1]

    @property
    def model(self) -> Model:
        """Its model. `compile` uses the target and the options that it was tuned with.

        Raises:
            BudgetError: There is no such model.
        """
        return self._loaded()[0]

    @property
    def row_ms(self) -> float | None:
        """The latency divided by the rows of the batch, in ms: what a row takes where batches are full."""
        return None if self.latency_p50_ms is None else self.latency_p50_ms / (self.candidate.batch or 1)

    @property
    def throughput(self) -> float | None:
        """Rows in a second, one inference after the other; None where the batch was not chosen."""
        return 1e3 / self.row_ms if self.row_ms and self.candidate.batch is not None else None

    @property
    def accuracy(self) -> float | None:
        """What candidates are compared by: the metric; without one the SQNR in dB."""
        return self.metric if self.metric is not None else self.sqnr_db

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-compatible values."""
        skipped = ("candidate", "violations", "latencies_ms", "_load")
        found = attrs.asdict(self, recurse=False, filter=lambda field, _: field.name not in skipped)
        return {
            **found,
            "float_layers": list(self.float_layers),
            "notes": list(self.notes),
            "candidate": self.candidate.to_dict(),
            "violations": [violation.to_dict() for violation in self.violations],
        }

    def _loaded(self) -> tuple[Model, Recipe]:
        if self._load is None:
            raise BudgetError(
                "There is no model of this candidate.",
                where=self.candidate.describe(),
                found=f"{self.outcome}: {self.lost}",
            )
        return self._load()


def described(trial: Trial) -> str:
    """Return its index, what is done to the model, and what its batch brings."""
    rows = f" ({trial.throughput:.4g} rows/s)" if trial.throughput is not None else ""
    return f"{trial.index}: {trial.candidate.describe()}{rows}"
