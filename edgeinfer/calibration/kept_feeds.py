"""`KeptFeeds`: a source that is read once, split into feeds to fit on and feeds to judge by.

A search goes through its feeds many times, and a source may be a folder of images or a network away. So what
fits the memory is kept when it is read. Where a source is larger, every second feed is kept, every fourth,
and so on: they stay spread over all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias, final

import numpy as np

from edgeinfer.errors import CalibrationError

__all__ = ["DEFAULT_KEPT_BYTES", "MOST_PASSES", "KeptFeeds", "feed_bytes"]

Feed: TypeAlias = "Mapping[str, np.ndarray]"

DEFAULT_KEPT_BYTES = 256 << 20
MOST_PASSES = 4  # over the source
_LEAST_KEPT = 8  # feeds that are kept whatever their size: fewer can be neither fitted on nor judged by


@final
class KeptFeeds:
    """The feeds of one source.

    Args:
        source: The feeds, which can be gone through again. They are read once here.
        max_bytes: How many bytes of feeds to keep.

    Attributes:
        total: How many feeds the source has.
        kept: The feeds that are kept, by their number.
        passes: How often the source was gone through.
    """

    def __init__(self, source: Iterable[Feed], *, max_bytes: int = DEFAULT_KEPT_BYTES) -> None:
        self._source = source
        self._left_out: frozenset[int] = frozenset()
        self.passes = 1
        self._stride, held, self.total = 1, 0, 0
        self.kept: dict[int, Feed] = {}
        for index, feed in enumerate(source):
            self.total += 1
            if index % self._stride:
                continue
            # Copied: a source may fill one buffer again and again.
            self.kept[index] = {name: np.array(array) for name, array in feed.items()}
            held += feed_bytes(feed)
            while held > max_bytes and len(self.kept) > 2 * _LEAST_KEPT:
                self._stride *= 2
                for other in [i for i in self.kept if i % self._stride]:
                    held -= feed_bytes(self.kept.pop(other))
        if not self.kept:
            raise CalibrationError(
                "There is no calibration data: the source gave no samples.",
                expected="at least one feed, better a hundred",
                found="0 samples",
            )

    def hold_out(self, count: int, *, in_a_row: int = 1) -> tuple[list[Feed], frozenset[int]]:
        """Take feeds to judge by, and leave them out of those to fit on.

        They are not left out where they are more than a quarter of all: few feeds are too few to fit on, too.
        What was fitted on a feed looks closer on it than on others: measured on SqueezeNet, rounding weights
        gained 5 dB on the feeds that it had seen and nothing elsewhere.

        Args:
            count: How many, at most.
            in_a_row: How many of them follow each other; such runs are spread over the source.

        Returns:
            The feeds, and the places in that list where a run begins.
        """
        places = list(self.kept)
        most = len(places) if self.kept_all else max(1, len(places) // 4)
        chosen = _spread(len(places), min(count, most), in_a_row)
        if 4 * len(chosen) <= self.total:
            self._left_out = frozenset(places[i] for i in chosen)
        starts = frozenset(n for n, i in enumerate(chosen) if n == 0 or chosen[n - 1] != i - 1)
        return [self.kept[places[i]] for i in chosen], starts

    @property
    def kept_all(self) -> bool:
        """Whether all feeds are kept."""
        return self._stride == 1

    @property
    def fitted(self) -> list[Feed]:
        """The feeds to fit on, as far as they are kept."""
        return [feed for index, feed in self.kept.items() if index not in self._left_out]

    @property
    def count(self) -> int:
        """How many feeds there are to fit on."""
        return self.total - len(self._left_out)

    def every(self) -> Iterator[Feed]:
        """Yield all feeds to fit on; those that are not kept are read again, a few times."""
        if self.kept_all or self.passes >= MOST_PASSES:
            yield from self.fitted
            return
        self.passes += 1
        yield from (feed for index, feed in enumerate(self._source) if index not in self._left_out)

    def describe(self) -> str | None:
        """Return a sentence on what is not kept, or None."""
        if self.kept_all:
            return None
        return (
            f"{len(self.kept)} of {self.total} feeds fit the memory that is set for them: ranges are from "
            "all, what is only tried and what is judged from those"
        )


def feed_bytes(feed: Feed) -> int:
    """Return the size of a feed."""
    return sum(array.nbytes for array in feed.values())


def _spread(count: int, wanted: int, in_a_row: int) -> list[int]:
    """Return `wanted` of `count` places in runs of `in_a_row`, spread evenly, the first place included."""
    run = max(1, min(in_a_row, wanted))
    runs = max(1, wanted // run)
    step = max(run, count // runs)
    places = [start + i for start in range(0, count, step) for i in range(run) if start + i < count]
    return places[:wanted]
