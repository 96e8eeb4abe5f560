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

__all__ = ["DEFAULT_KEPT_BYTES", "KeptFeeds", "feed_bytes"]

Feed: TypeAlias = "Mapping[str, np.ndarray]"

DEFAULT_KEPT_BYTES = 256 << 20
_LEAST_KEPT = 8  # feeds that are kept whatever their size: fewer can be neither fitted on nor judged by


@final
class KeptFeeds:
    """The feeds of one source.

    Args:
        source: The feeds, which can be gone through again. They are read once here.
        judged: How many of them to judge by, at most. They are left out of those to fit on, unless they
            are more than a quarter of all: few feeds are too few to fit on, too. What was fitted on a feed
            looks closer on it than on others: measured on SqueezeNet, rounding weights gained 5 dB on the
            feeds that it had seen and nothing elsewhere.
        in_a_row: How many of the judged feeds follow each other; the runs of them are spread over the source.
        max_bytes: How many bytes of feeds to keep.

    Attributes:
        judged: The feeds to judge by, in the order of the source.
        fitted: The feeds to fit on that are kept, in that order.
        total: How many feeds the source has.
        kept_all: Whether `fitted` are all feeds to fit on.
        passes: How often the source was gone through.
    """

    def __init__(
        self,
        source: Iterable[Feed],
        *,
        judged: int,
        in_a_row: int = 1,
        max_bytes: int = DEFAULT_KEPT_BYTES,
    ) -> None:
        self._source = source
        self.passes = 1
        stride, held, self.total = 1, 0, 0
        kept: dict[int, Feed] = {}
        for index, feed in enumerate(source):
            self.total += 1
            if index % stride:
                continue
            # Copied: a source may fill one buffer again and again.
            kept[index] = {name: np.array(array) for name, array in feed.items()}
            held += feed_bytes(feed)
            while held > max_bytes and len(kept) > 2 * _LEAST_KEPT:
                stride *= 2
                for other in [i for i in kept if i % stride]:
                    held -= feed_bytes(kept.pop(other))
        if not kept:
            raise CalibrationError(
                "There is no calibration data: the source gave no samples.",
                expected="at least one feed, better a hundred",
                found="0 samples",
            )
        places = list(kept)
        chosen = _spread(len(places), min(judged, max(1, len(places) // (1 if stride == 1 else 4))), in_a_row)
        self._left_out = (
            frozenset(places[i] for i in chosen) if 4 * len(chosen) <= self.total else frozenset()
        )
        self.judged = tuple(kept[places[i]] for i in chosen)
        self.fitted = tuple(feed for index, feed in kept.items() if index not in self._left_out)
        self.kept_all = stride == 1

    def every(self) -> Iterator[Feed]:
        """Yield all feeds to fit on; those that are not kept are read again."""
        if self.kept_all:
            yield from self.fitted
            return
        self.passes += 1
        yield from (feed for index, feed in enumerate(self._source) if index not in self._left_out)

    def describe(self) -> str | None:
        """Return a sentence on what is not kept, or None."""
        if self.kept_all:
            return None
        return (
            f"{len(self.fitted) + len(self._left_out)} of {self.total} feeds fit the memory that is set for "
            "them; ranges are from all of them, the rest from those"
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
