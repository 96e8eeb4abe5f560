"""The moments of many layers' inputs in one pass; see `edgeinfer.calibration.moments`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from edgeinfer.calibration.moments import MomentObserver
from edgeinfer.feeds.feeds import FeedIterable
from edgeinfer.graph.layers import layout_of
from edgeinfer.graph.weights import Linear
from edgeinfer.pruning.reconstruction.frontier import run, tap

__all__ = ["columns_of_each_feed", "input_moments"]


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
    result = {layer.name: MomentObserver(layout_of(layer), max_columns=columns) for layer in layers}
    with tap(model, list(dict.fromkeys(layer.input.name or "" for layer in layers))) as session:
        for values in run(session, feeds):
            for layer in layers:
                result[layer.name].update(values[layer.input.name or ""])
    return result
