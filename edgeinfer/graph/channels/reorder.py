"""Channels of a group in another order: the graph computes the same."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from edgeinfer.graph.channels.groups import ChannelGroup
from edgeinfer.graph.initializers import constant, set_constant
from edgeinfer.graph.weights import Linear

__all__ = ["may_reorder", "reorder"]


def may_reorder(layers: Iterable[Linear]) -> bool:
    """Whether the channels between layers may change places.

    A grouped convolution ties them to its groups. A depthwise one does not: each channel is a group.
    """
    return not any(layer.groups > 1 and layer.matrices().shape[2] > layer.taps for layer in layers)


def reorder(graph: ir.Graph, group: ChannelGroup, order: np.ndarray) -> None:
    """Put channels of a group into the places of others, in place.

    Args:
        graph: The graph that was analyzed, with constants as initializers.
        group: A group of it. Its constants are written, its activations follow.
        order: Which channel goes where channel 0, 1, ... is, a permutation of (size,).
    """
    for part in group.slices:
        value = graph.initializers.get(part.tensor)
        if value is None:
            continue
        array = constant(value)
        places = np.array(part.positions)
        moved = array.copy()
        at: list[slice | np.ndarray] = [slice(None)] * array.ndim
        at[part.axis] = places.reshape(-1)
        moved[tuple(at)] = np.take(array, places[order].reshape(-1), axis=part.axis)
        set_constant(value, moved)
