"""`Ledger`: what a search has tried, in order, for its later steps, for tuning and for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import attrs

from edgeinfer.display import Table
from edgeinfer.quantization.search.output_score import Score
from edgeinfer.transforms.contract import TransformReport
from edgeinfer.values import as_tuple

__all__ = ["Ledger", "Trial"]


@final
@attrs.frozen(kw_only=True)
class Trial:
    """One version of a model that was tried.

    Attributes:
        what: What was tried, for people.
        steps: The transforms that made it, such as `QuantizeStatic(mse)`.
        keep_float: The nodes that it has in float beyond those that every version has.
        score: How close it is to float, if it was judged.
        speed: How many times as fast it is as `against`, if that was measured.
        against: What it was timed against.
        kept: Whether the search went on with it.
        seconds: How long making and judging it took, on the wall.
        reports: What the transforms said.
    """

    what: str
    steps: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    keep_float: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    score: Score | None = None
    speed: float | None = None
    against: str = ""
    kept: bool = False
    seconds: float = 0.0
    reports: tuple[TransformReport, ...] = attrs.field(default=(), converter=as_tuple, repr=False)

    def to_dict(self) -> dict[str, object]:
        """Return the figures as JSON-compatible values."""
        plain = attrs.asdict(self, filter=lambda field, _: field.name not in ("reports", "noise"))
        return plain | {"notes": [note for report in self.reports for note in report.notes]}


@final
class Ledger:
    """The trials of one search. Records are only added."""

    def __init__(self) -> None:
        self._trials: list[Trial] = []

    def record(self, trial: Trial) -> Trial:
        """Add a trial and return it."""
        self._trials.append(trial)
        return trial

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials so far, the first one first."""
        return tuple(self._trials)

    def __len__(self) -> int:
        return len(self._trials)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self._trials)

    def to_dict(self) -> list[dict[str, object]]:
        """Return the trials as JSON-compatible values."""
        return [trial.to_dict() for trial in self._trials]

    def table(self) -> Table:
        """Return one row a trial."""
        rows = [
            (
                trial.what,
                " ".join(trial.steps),
                str(len(trial.keep_float)),
                "" if trial.score is None else f"{trial.score.rank_db:.1f}",
                "" if trial.score is None else f"{trial.score.lower_db:.1f}",
                "" if trial.speed is None else f"{trial.speed:.2f}x {trial.against}",
                "kept" if trial.kept else "",
                f"{trial.seconds:.1f}",
            )
            for trial in self._trials
        ]
        return Table(
            title=f"{len(rows)} trials",
            columns=("trial", "steps", "float", "rank dB", "SQNR dB at least", "speed", "", "s"),
            rows=rows,
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()
