"""A proposal: how many channels of each group to remove, and what that makes of the cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias, final

import attrs

from edgeinfer.pruning.budget.criteria import Ranking

__all__ = ["Proposal", "Trial", "chosen_channels"]

Trial: TypeAlias = "Callable[[Mapping[str, int]], float] | None"
"""The measured error of the outputs for so many channels removed by group; None without data."""


@final
@attrs.frozen(kw_only=True)
class Proposal:
    """How many channels of each group to remove.

    Attributes:
        counts: The numbers by group name.
        before: The cost before.
        after: The cost after.
        notes: What the report says of it.
    """

    counts: Mapping[str, int]
    before: float
    after: float
    notes: tuple[str, ...] = ()


def chosen_channels(rankings: Mapping[str, Ranking], counts: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the channels to remove by group: the first of its ranking."""
    return {name: rankings[name].order[:count] for name, count in counts.items()}
