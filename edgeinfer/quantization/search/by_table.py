"""Which row of a table of timed models is like a model: what int8 gains where its device is not here.

Models with attention are like each other: int8 alternates with what stays in float. So are the others, whose
layers gain by their size. Of each kind the nearest by multiply-accumulates a layer counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from edgeinfer.backends.dialect import TimedModel
from edgeinfer.measure.inspection import inspect
from edgeinfer.model.model import Model

__all__ = ["nearest"]


def nearest(
    timed: Iterable[TimedModel], model: Model, shapes: Mapping[str, tuple[int, ...]]
) -> TimedModel | None:
    """Return the row of the model that is most like a float model; None where there is none to tell by.

    Args:
        timed: The table.
        model: The model.
        shapes: The shapes of its inputs.
    """
    nodes = [node for node in inspect(model, shapes=shapes).nodes if node.macs]
    layers = sum(node.parameters > 0 for node in nodes)
    macs = sum(node.macs or 0 for node in nodes)
    attention = any(node.op_type == "MatMul" and not node.parameters for node in nodes)
    alike = [row for row in timed if row.attention == attention]
    if not alike or not layers or not macs:
        return None
    return min(alike, key=lambda row: abs(math.log(row.macs / row.layers * layers / macs)))
