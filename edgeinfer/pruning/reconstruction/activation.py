"""Fitting what an activation function lets through, and not what it drops.

A layer in front of a ReLU may give any negative number where the float model's is negative. Least squares
that fits those numbers, too, has less left for the others. So the target is changed, as Zhang, Zou, He and
Sun 2015 ("Accelerating Very Deep Convolutional Networks") do: where the wanted and the present output both
lie where the function is flat, the present one is wanted; where it has a slope, the part of the difference
that is seen behind it. With y wanted, z present, f the function and t the new target,

    (t - W x)² + c >= (f(y) - f(W x))²

with a c that does not depend on W. Where y and z lie beyond the same bound, both sides are equal at the
present W x = z, so that a step that lessens the one lessens the other; elsewhere t is f(y) or y, and the left
side is a bound on the right.
"""

from __future__ import annotations

import math
from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.graph.constants import constant_value

__all__ = ["Bend", "bend_behind"]


@final
@attrs.frozen(kw_only=True)
class Bend:
    """A function that is the identity within bounds and has another slope beyond.

    Attributes:
        low: Where the identity begins.
        high: Where it ends.
        slope: The slope below `low`; above `high` it is 0.
    """

    low: float = 0.0
    high: float = math.inf
    slope: float = 0.0

    def target(self, wanted: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Return what to fit, given the function's input in the float model and in the present one."""
        seen = self.low + self.slope * (wanted - self.low) if math.isfinite(self.low) else wanted
        below = np.where(present <= self.low, present + self.slope**2 * (wanted - present), seen)
        above = np.where(present >= self.high, present, self.high)
        result: np.ndarray = np.where(
            wanted < self.low, below, np.where(wanted > self.high, above, wanted)
        ).astype(wanted.dtype)
        return result


def bend_behind(value: ir.Value) -> Bend | None:
    """Return the function that a tensor goes through before anything else reads it, if it is a known one."""
    readers = [user for user, _ in value.uses()]
    if not readers or value.is_graph_output():
        return None
    bends = {_bend(node) for node in readers}
    return bends.pop() if len(bends) == 1 else None


def _bend(node: ir.Node) -> Bend | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Relu":
        return Bend()
    if node.op_type == "LeakyRelu":
        slope = node.attributes.get_float("alpha", 0.01)
        return Bend(slope=slope) if 0 <= slope < 1 else None
    if node.op_type != "Clip":
        return None
    bounds = [node.attributes.get_float(name, None) for name in ("min", "max")]
    for index, value in enumerate(node.inputs[1:3]):
        array = constant_value(value)
        if value is not None and array is None:
            return None
        bounds[index] = None if array is None else float(array.reshape(-1)[0])
    low, high = bounds
    return Bend(low=-math.inf if low is None else low, high=math.inf if high is None else high)
