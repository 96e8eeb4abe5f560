"""`TransformReport`: what a transform did. Beside `Model`, which keeps the report of how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, final

import attrs

from edgeinfer.display import Table
from edgeinfer.model.plain_config import plain_config
from edgeinfer.model.report_table import COLUMNS, Row, places, report_rows, short_lines
from edgeinfer.values import as_tuple

__all__ = ["Applied", "Skipped", "TransformReport"]


class Applied(NamedTuple):
    """One place that a transform changed."""

    node: str
    what: str


class Skipped(NamedTuple):
    """One place that a transform left alone, and why."""

    node: str
    reason: str


@final
@attrs.frozen(kw_only=True)
class TransformReport:
    """What a transform did.

    Attributes:
        name: The transform's class name.
        config: Its configuration, as JSON-compatible values.
        applied: The places it changed.
        skipped: The places it left alone, with reasons.
        notes: What else there is to say, such as an opset conversion or a warning.
        results: Those of the notes that say what came of it: size, speed, closeness. Shown first.
        data: Figures that the transform gives to programs, by name; for a Pipeline those of all steps.
        modified: Whether the graph changed (by digest).
        digest_before: The model's digest before.
        digest_after: The model's digest after.
        seconds: How long it took.
        steps: The reports of the parts, for a Pipeline.
    """

    name: str
    config: Mapping[str, object] = attrs.field(factory=dict)
    applied: tuple[Applied, ...] = attrs.field(default=(), converter=as_tuple)
    skipped: tuple[Skipped, ...] = attrs.field(default=(), converter=as_tuple)
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    results: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    data: Mapping[str, Any] = attrs.field(factory=dict)
    modified: bool
    digest_before: str
    digest_after: str
    seconds: float = 0.0
    steps: tuple[TransformReport, ...] = attrs.field(default=(), converter=as_tuple)

    def summary(self) -> tuple[str, ...]:
        """Return the overview: one line, and for a Pipeline one more a step."""
        parts = [places(len(self.applied), "changed")] if self.modified else ["nothing changed"]
        parts += [places(len(self.skipped), "left alone")] if self.skipped else []
        parts += [f"{len(self.notes)} note{'s' if len(self.notes) > 1 else ''}"] if self.notes else []
        line = f"{self.name}: {', '.join(parts)} ({self.seconds:.2f} s)"
        return (line, *(f"  {text}" for step in self.steps for text in step.summary()))

    def table(self, *, details: bool = False) -> Table:
        """Return the overview, and below it what was done and left alone.

        Args:
            details: One row a place. Else entries that say the same are one row with their number.
        """
        rows = self._rows(details=details)
        grouped = any(row.places not in ("", "1") for row in rows)
        footer = "table(details=True) has one row a place" if grouped else ""
        return Table(title="\n".join(self.summary()), columns=COLUMNS, rows=rows, footer=footer)

    def _rows(self, *, details: bool) -> list[Row]:
        rows = [Row(self.name, "result", "", text, "") for text in self.results]
        for report in self.steps or (self,):
            notes = [note for note in report.notes if note not in self.results]
            rows += report_rows(report.name, report.applied, report.skipped, notes, details=details)
        return rows

    def to_dict(self) -> dict[str, object]:
        """Return everything as JSON-compatible values."""
        plain: dict[str, object] = {
            "name": self.name,
            "config": plain_config(self.config),
            "modified": self.modified,
            "digest_before": self.digest_before,
            "digest_after": self.digest_after,
            "seconds": self.seconds,
            "applied": [entry._asdict() for entry in self.applied],
            "skipped": [entry._asdict() for entry in self.skipped],
            "notes": list(self.notes),
            "results": list(self.results),
            "data": plain_config(self.data),
        }
        return plain | ({"steps": [step.to_dict() for step in self.steps]} if self.steps else {})

    def __str__(self) -> str:
        """Return the overview and the largest groups."""
        return "\n".join([*self.summary(), *short_lines(self._rows(details=False))])

    def _repr_html_(self) -> str:
        return self.table().to_html()
