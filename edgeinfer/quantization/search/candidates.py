"""The one list of layers that a search may run in float: what each costs in time there, and its noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import attrs
import numpy as np

from edgeinfer.measure.inspection import inspect
from edgeinfer.model.model import Model
from edgeinfer.quantization.search.layer_gains import LayerGains, costs_of_float

__all__ = ["Candidate", "by_noise_per_time", "candidates"]


@final
@attrs.frozen(kw_only=True)
class Candidate:
    """One layer.

    Attributes:
        node: The name of its ONNX node.
        op_type: Its operator.
        cost: What it costs to run it in float: microseconds where that was measured, else its
            multiply-accumulates; 0 where neither is known.
        noise: The noise power that it brings to the outputs in integers, as a share of the signal's.
    """

    node: str
    op_type: str
    cost: float
    noise: float = 0.0


def candidates(model: Model, feed: Mapping[str, np.ndarray], gains: LayerGains | None) -> list[Candidate]:
    """Return the layers with weights of a float model, with what they cost in float.

    Args:
        model: The model.
        feed: Inputs, for their shapes.
        gains: What int8 saves, where that was measured.
    """
    shapes = {name: array.shape for name, array in feed.items()}
    nodes = [cost for cost in inspect(model, shapes=shapes).nodes if cost.parameters]
    costs = costs_of_float({cost.node: float(cost.macs or 0) for cost in nodes}, gains)
    return [Candidate(node=cost.node, op_type=cost.op_type, cost=costs[cost.node]) for cost in nodes]


def by_noise_per_time(listed: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates in the order in which they buy most for their time."""
    return sorted(listed, key=lambda each: each.noise / max(each.cost, 1e-9), reverse=True)
