"""`HistoryEntry`: one transform that was applied to a model."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from edgeinfer.values import as_tuple

__all__ = ["HistoryEntry"]


@attrs.frozen(kw_only=True)
class HistoryEntry:
    """One transform that was applied to a model.

    Attributes:
        name: The transform's class name.
        config: Its configuration, as JSON-compatible values.
        digest_before: The model's digest before it.
        digest_after: The model's digest after it.
        applied: How many places it changed.
        skipped: How many places it left alone, with a reason in its report.
        notes: What else it said, such as an opset conversion.
    """

    name: str
    config: Mapping[str, object] = attrs.field(factory=dict)
    digest_before: str
    digest_after: str
    applied: int = 0
    skipped: int = 0
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
