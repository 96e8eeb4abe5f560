"""`Ingested`: what became of a batch of reports."""

from __future__ import annotations

from typing import final

import attrs

__all__ = ["Ingested", "Refusal"]


@final
@attrs.frozen(kw_only=True)
class Refusal:
    """A report that was refused.

    Attributes:
        index: Its place among those that were handed over.
        device: The device that it says to be of, if it says so.
        reason: Why.
    """

    index: int
    device: str
    reason: str


@final
@attrs.frozen(kw_only=True)
class Ingested:
    """What became of a batch.

    Attributes:
        applied: Reports that told something new.
        ignored: Duplicates, and older than what is known.
        refused: Reports that nobody is answerable for.
    """

    applied: int = 0
    ignored: int = 0
    refused: tuple[Refusal, ...] = ()

    def __add__(self, other: Ingested) -> Ingested:
        return Ingested(
            applied=self.applied + other.applied,
            ignored=self.ignored + other.ignored,
            refused=self.refused + other.refused,
        )
