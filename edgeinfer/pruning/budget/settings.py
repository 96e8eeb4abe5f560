"""What structured pruning is asked for."""

from __future__ import annotations

from typing import Literal, final

import attrs

from edgeinfer.devices.profile import Target
from edgeinfer.feeds.feeds import FeedIterable
from edgeinfer.pruning.budget.cost import Metric
from edgeinfer.pruning.budget.criteria import Criterion

__all__ = ["Budget", "Settings"]


@final
@attrs.frozen(kw_only=True)
class Budget:
    """A limit: the part of a cost to keep."""

    metric: Metric
    keep: float


@final
@attrs.frozen(kw_only=True, eq=False)
class Settings:
    """How to prune; see `PruneChannels` for what each means."""

    kind: Literal["channel", "head"]
    budget: Budget
    feeds: FeedIterable | None = None
    criterion: Criterion = "second_order"
    multiple: int = 16
    rounds: int = 1
    measure: int = 48
    max_columns: int = 24_000
    ridge: float | None = None
    seed: int = 0
    progress: bool | None = None
    target: Target | None = None
    keep_nodes: frozenset[str] = frozenset()
