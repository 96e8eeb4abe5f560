"""The moments of many layers' inputs in one pass; see `edgeinfer.calibration.moments`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgeinfer.calibration.moments import MomentObserver
from edgeinfer.feeds.feeds import FeedIterable
from edgeinfer.graph.weights import Linear
from edgeinfer.pruning.reconstruction.frontier import run, tap

__all__ = ["columns_of_each_feed", "input_moments", "is_held_out", "split_feeds"]


def is_held_out(index: int) -> bool:
    """Tell whether the feed of that index is kept out of fitting, to judge what was fitted: one in five."""
    return index % 5 == 4


def split_feeds(feeds: FeedIterable) -> tuple[list[Mapping[str, np.ndarray]], list[Mapping[str, np.ndarray]]]:
    """Return the feeds to fit to and those held out; both are all of them where there are fewer than five."""
    pairs = [(is_held_out(index), feed) for index, feed in enumerate(feeds)]
    held = [feed for out, feed in pairs if out]
    fit = [feed for out, feed in pairs if not out]
    return fit, held or fit


def columns_of_each_feed(feeds: FeedIterable, max_columns: int) -> int:
    """Return how many output positions to take of each feed, so that all give `max_columns`."""
    return max(1, math.ceil(max_columns / max(1, sum(1 for _ in feeds))))


def input_moments(
    model: ir.Model, layers: Sequence[Linear], feeds: FeedIterable, columns: int
) -> dict[str, MomentObserver]:
    """Return the moments of the inputs of several layers, by layer name, in one pass.

    Args:
        model: The graph.
        layers: Layers of it.
        feeds: The calibration.
        columns: How many output positions to take of each feed.
    """
    result = {layer.name: MomentObserver(layer.layout, max_columns=columns) for layer in layers}
    with tap(model, list(dict.fromkeys(layer.input.name or "" for layer in layers))) as session:
        for values in run(session, feeds):
            for layer in layers:
                result[layer.name].update(values[layer.input.name or ""])
    return result
