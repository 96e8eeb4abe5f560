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
        seconds: How long two models are timed against each other, at most.
    """

    methods: tuple[str, ...] = attrs.field(converter=_names)
    prepares: bool
    rounds: bool
    places: bool
    few: int
    layers: int
    seconds: float

    @property
    def steps(self) -> int:
        """How many steps a search has."""
        return 7 + 4 * self.prepares + self.rounds


EFFORTS = {
    "fast": Effort(
        methods=("mse",), prepares=False, rounds=False, places=False, few=16, layers=16, seconds=0.3
    ),
    "default": Effort(
        methods=("mse", "minmax"), prepares=True, rounds=True, places=True, few=32, layers=48, seconds=0.5
    ),
    "thorough": Effort(
        methods=("mse", "minmax", "percentile", "entropy"),
        prepares=True,
        rounds=True,
        places=True,
        few=1000,
        layers=1000,
        seconds=1.0,
    ),
}
