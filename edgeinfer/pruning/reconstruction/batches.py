"""The calibration in batches: which are fitted to and which are held out, and the first few samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.feeds.feeds import Feed, FeedIterable

__all__ = ["Batches", "few", "halves", "is_held_out", "one_sample"]

# One in five is held out, so that many give at least four to judge by.
_LEAST = 20


@final
@attrs.frozen(eq=False)
class Batches:
    """Feeds, cut along their batch axis where there are so few of them that none could be held out.

    Attributes:
        feeds: Any re-iterable of feeds.
        size: The largest batch of an item; 0 for feeds that are left as they are.
    """

    feeds: FeedIterable
    size: int

    @classmethod
    def of(cls, feeds: FeedIterable, graph: ir.Graph) -> Batches:
        """Choose the size of batches for a graph."""
        sizes: list[int] = []
        for feed in feeds:
            sizes.append(_batch(feed, graph))
            if len(sizes) == _LEAST or not sizes[-1]:
                return cls(feeds, 0)
        return cls(feeds, max(1, math.ceil(sum(sizes) / _LEAST)))

    def __iter__(self) -> Iterator[Feed]:
        for feed in self.feeds:
            count = next(iter(feed.values())).shape[0] if self.size else 0
            for start in range(0, count, self.size or 1):
                yield {name: array[start : start + self.size] for name, array in feed.items()}
            if not self.size:
                yield feed


def _batch(feed: Feed, graph: ir.Graph) -> int:
    """Return the batch of a feed, or 0 where its inputs have no batch axis in common."""
    free = _batched_inputs(graph)
    sizes = {array.shape[0] if name in free else 0 for name, array in feed.items()}
    return sizes.pop() if len(sizes) == 1 else 0


def _batched_inputs(graph: ir.Graph) -> set[str]:
    """Return the inputs whose first axis is a batch of any size: a symbol that stands nowhere else."""
    shapes = {value.name or "": list(value.shape or ()) for value in graph.inputs}
    elsewhere = {str(dim) for shape in shapes.values() for dim in shape[1:]}
    return {
        name
        for name, shape in shapes.items()
        if shape and not isinstance(shape[0], int) and str(shape[0]) not in elsewhere
    }


def one_sample(graph: ir.Graph, feed: Feed) -> dict[str, np.ndarray]:
    """Return the first sample of a feed, or all of it where the first axes are no batch of any size."""
    free = _batched_inputs(graph)
    return {name: array[:1] if name in free else array for name, array in feed.items()}


def is_held_out(index: int) -> bool:
    """Tell whether the feed of that index is kept out of fitting, to judge what was fitted: one in five."""
    return index % 5 == 4


def halves(feeds: FeedIterable) -> list[list[Feed]]:
    """Return every other feed, and the rest, if there is more than one."""
    listed = list(feeds)
    return [part for part in (listed[::2], listed[1::2]) if part]


def few(feeds: FeedIterable, samples: int) -> list[Mapping[str, np.ndarray]]:
    """Return the first feeds that hold at least so many samples, the last one cut to fit."""
    chosen: list[Mapping[str, np.ndarray]] = []
    left = samples
    for feed in feeds:
        if left <= 0:
            break
        size = next(iter(feed.values())).shape[0]
        chosen.append(feed if size <= left else {k: v[:left] for k, v in feed.items()})
        left -= size
    return chosen
