"""Channels of a group in another order: the graph computes the same."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from edgeinfer.graph.channels.groups import ChannelGroup
from edgeinfer.graph.initializers import constant, set_constant
from edgeinfer.graph.weights import Linear

__all__ = ["may_reorder", "reorder"]


def may_reorder(group: ChannelGroup, layers: Iterable[Linear]) -> bool:
    """Whether the channels of a group may change places.

    Not where a channel is several elements (behind a Flatten, or a channel shuffle that ties some together):
    which of them stands for which is not known there. Nor where a grouped convolution ties channels to its
    groups; in a depthwise one each channel is a group.

    Args:
        group: The group.
        layers: Its producers and consumers.
    """
    if any(len(places) > 1 for part in group.slices for places in part.positions):
        return False
    return not any(layer.groups > 1 and layer.matrices().shape[2] > layer.taps for layer in layers)


def reorder(graph: ir.Graph, group: ChannelGroup, order: np.ndarray) -> None:
    """Put channels of a group into the places of others, in place.

    Args:
        graph: The graph that was analyzed, with constants as initializers.
        group: A group of it that `may_reorder`. Its constants are written, its activations follow.
        order: Which channel goes where channel 0, 1, ... is, a permutation of (size,).
    """
    for part in group.slices:
        value = graph.initializers.get(part.tensor)
        if value is None:
            continue
        array = constant(value)
        places = np.array(part.positions)[:, 0]
        moved = array.copy()
        at: list[slice | np.ndarray] = [slice(None)] * array.ndim
        at[part.axis] = places
        moved[tuple(at)] = np.take(array, places[order], axis=part.axis)
        set_constant(value, moved)
