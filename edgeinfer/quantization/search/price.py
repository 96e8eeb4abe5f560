"""What a decibel is worth in time (docs/adr/0009): the one price of a search."""

from __future__ import annotations

from typing import final

import attrs

__all__ = ["AS_FAST", "HOPELESS", "SAME", "Price"]

SAME = 0.02  # of a ratio of times: of two equal models one is measured this much faster now and then
AS_FAST = 0.97
HOPELESS = 0.9  # what is so slow in int8 at first does not become faster than float
_CHANCE_DB = 0.25  # less is chance; unless it saves time, too, a bargain must buy more
_BARGAIN_DB = 1.0


@final
@attrs.frozen
class Price:
    """The price of a decibel.

    Args:
        spend: The share of the model's time that a decibel is worth. 0: nothing is traded.
    """

    spend: float

    def buys(self, gained_db: float, ratio: float) -> bool:
        """Whether a change is worth it.

        Args:
            gained_db: By how many decibels the outputs come closer to float; below 0 they go further away.
            ratio: How many times as fast the model becomes; below 1 it becomes slower.
        """
        gained_time = ratio - 1.0
        if gained_db < 0:
            enough = self.spend > 0 and gained_time >= max(self.spend, SAME)
        elif gained_time > SAME:
            enough = gained_db >= _CHANCE_DB or gained_db == 0
        else:
            enough = self.spend > 0 and gained_db >= _BARGAIN_DB
        return enough and gained_db * self.spend + gained_time >= 0
