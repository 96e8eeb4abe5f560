"""How much a search tries: `fast`, `default` or `thorough`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import attrs

from edgeinfer.values import as_tuple

__all__ = ["EFFORTS", "Effort"]


def _names(names: Iterable[str]) -> tuple[str, ...]:
    return as_tuple(names)


@final
@attrs.frozen(kw_only=True)
class Effort:
    """What a search tries.

    Attributes:
        methods: The ways to find ranges.
        prepares: Whether to try what changes the float model first.
        rounds: Whether to try rounding weights by their effect.
        places: Whether to fit the placement of quantizers to the machine, and to trade time for decibels.
        few: How many feeds are enough for what is only tried.
        layers: How many layers are measured one by one, at most.
        layer_feeds: On how many feeds. One image tells much of the noise of a layer, which is a sum over all
            that it computes; nothing tells as much of a layer as to measure it.
        seconds: How long two models are timed against each other, at most.
        final_seconds: How long the result is timed against the given model, at most.
        fewest: Whether to look for the fewest layers in float that meet a tolerance, not for some.
    """

    methods: tuple[str, ...] = attrs.field(converter=_names)
    prepares: bool
    rounds: bool
    places: bool
    few: int
    layers: int
    layer_feeds: int
    seconds: float
    final_seconds: float = 1.0
    fewest: bool = True

    @property
    def steps(self) -> int:
        """How many steps a search has."""
        return 7 + 4 * self.prepares + self.rounds


EFFORTS = {
    "fast": Effort(
        methods=("mse",),
        prepares=False,
        rounds=False,
        places=False,
        few=16,
        layers=128,
        layer_feeds=1,
        seconds=0.3,
        final_seconds=0.3,
        fewest=False,
    ),
    "default": Effort(
        methods=("mse", "minmax"),
        prepares=True,
        rounds=True,
        places=True,
        few=32,
        layers=128,
        layer_feeds=2,
        seconds=0.5,
    ),
    "thorough": Effort(
        methods=("mse", "minmax", "percentile", "entropy"),
        prepares=True,
        rounds=True,
        places=True,
        few=1000,
        layers=1000,
        layer_feeds=4,
        seconds=1.0,
    ),
}
