"""`TransformReport`: what a transform did. Beside `Model`, which keeps the report of how it was made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, final

import attrs
import numpy as np

from edgeinfer.display import Table
from edgeinfer.values import as_tuple

__all__ = ["Applied", "Skipped", "TransformReport", "jsonable"]


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
        data: Figures that the transform gives to programs, by name.
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
    data: Mapping[str, Any] = attrs.field(factory=dict)
    modified: bool
    digest_before: str
    digest_after: str
    seconds: float = 0.0
    steps: tuple[TransformReport, ...] = attrs.field(default=(), converter=as_tuple)

    def to_dict(self) -> dict[str, object]:
        """Return everything as JSON-compatible values."""
        plain: dict[str, object] = {
            "name": self.name,
            "config": jsonable(self.config),
            "modified": self.modified,
            "digest_before": self.digest_before,
            "digest_after": self.digest_after,
            "seconds": self.seconds,
            "applied": [entry._asdict() for entry in self.applied],
            "skipped": [entry._asdict() for entry in self.skipped],
            "notes": list(self.notes),
            "data": jsonable(self.data),
        }
        return plain | ({"steps": [step.to_dict() for step in self.steps]} if self.steps else {})

    def table(self) -> Table:
        """Return one row a place."""
        reports = self.steps or (self,)
        rows: list[tuple[object, ...]] = []
        for report in reports:
            rows += [(report.name, "applied", node, what) for node, what in report.applied]
            rows += [(report.name, "skipped", node, reason) for node, reason in report.skipped]
            rows += [(report.name, "note", "", note) for note in report.notes]
        title = f"{self.name}: {len(self.applied)} applied, {len(self.skipped)} skipped"
        return Table(title=title, columns=("transform", "", "node", "what"), rows=tuple(rows))

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()


def jsonable(value: object) -> object:
    """Return a value as JSON-compatible ones; what is no plain value as its text."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if callable(getattr(value, "to_dict", None)):
        return jsonable(value.to_dict())  # type: ignore[attr-defined]
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items: Iterable[object] = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [jsonable(item) for item in items]
    text = repr(value)
    return f"<{type(value).__name__}>" if " at 0x" in text or len(text) > 200 else text
