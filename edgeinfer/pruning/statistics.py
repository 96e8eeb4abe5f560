"""Streamed second moments of layers, in memory that does not grow with the calibration set.

Reconstruction needs the inputs X that a layer of the pruned model sees together with the outputs Y that the
float model gave, so the moments of a layer are X Xᵀ and Y Xᵀ, both with a row of ones for the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import attrs
import numpy as np
import onnx_ir as ir

from edgeinfer.pruning.calibration import Feeds
from edgeinfer.pruning.frontier import run, tap
from edgeinfer.pruning.layers import Layer

__all__ = ["Moments", "Sampler", "input_moments"]


@final
@attrs.define(eq=False)
class Moments:
    """Second moments of one layer, bias row included.

    Attributes:
        xx: X Xᵀ, (G, K + 1, K + 1); the last row and column are the sums of X.
        yx: Y Xᵀ, (G, R, K + 1).
        yy: The sum of squares of Y, centred later by `energy`.
        count: How many columns were added.
    """

    xx: np.ndarray
    yx: np.ndarray
    yy: np.ndarray
    count: int = 0

    @classmethod
    def zeros(cls, groups: int, outputs: int, inputs: int) -> Moments:
        """Return empty moments."""
        return cls(
            xx=np.zeros((groups, inputs + 1, inputs + 1)),
            yx=np.zeros((groups, outputs, inputs + 1)),
            yy=np.zeros((groups, outputs)),
        )

    def add(self, x: np.ndarray, y: np.ndarray | None = None) -> None:
        """Add columns: x (G, K, n) and, where it is known, y (G, R, n)."""
        ones = np.ones((x.shape[0], 1, x.shape[2]), x.dtype)
        wide = np.concatenate([x, ones], 1)
        if len(wide) == 1:  # numpy sees that both factors are one matrix and computes half
            self.xx[0] += wide[0] @ wide[0].T
        else:
            self.xx += wide @ wide.transpose(0, 2, 1)
        if y is not None:
            self.yx += y @ wide.transpose(0, 2, 1)
            self.yy += np.square(y, dtype=np.float64).sum(2)
        self.count += x.shape[2]

    def covariance(self) -> np.ndarray:
        """Return the covariance of X, (G, K, K)."""
        mean = self.xx[:, :-1, -1:] / self.count
        cov: np.ndarray = self.xx[:, :-1, :-1] / self.count - mean @ mean.transpose(0, 2, 1)
        return cov

    def mean(self) -> np.ndarray:
        """Return the mean of X, (G, K)."""
        mean: np.ndarray = self.xx[:, :-1, -1] / self.count
        return mean


@final
@attrs.frozen(kw_only=True)
class Sampler:
    """Chooses which output positions of a layer are looked at: the same ones in every model.

    Attributes:
        samples: How many samples the calibration has.
        max_columns: How many columns a layer gets in all.
        seed: Fixes the choice.
    """

    samples: int
    max_columns: int = 24_000
    seed: int = 0

    def positions(self, layer: Layer, shape: Sequence[int], batch: int) -> np.ndarray:
        """Return flat output positions for one batch of inputs of the given shape."""
        total = layer.positions(shape)
        wanted = max(1, round(self.max_columns / max(self.samples, 1)))
        if total <= wanted:
            return np.arange(total)
        rng = np.random.default_rng((self.seed, batch))
        return np.sort(rng.choice(total, wanted, replace=False))


def input_moments(model: ir.Model, layers: Sequence[Layer], feeds: Feeds, sampler: Sampler) -> dict[str, Moments]:
    """Return the moments of the inputs of several layers, by layer name, in one pass."""
    result: dict[str, Moments] = {}
    names = list(dict.fromkeys(layer.x.name or "" for layer in layers))
    with tap(model, names) as session:
        for batch, values in enumerate(run(session, feeds)):
            for layer in layers:
                x = values[layer.x.name or ""]
                columns = layer.columns(x, sampler.positions(layer, x.shape, batch))
                if layer.name not in result:
                    result[layer.name] = Moments.zeros(columns.shape[0], 0, columns.shape[1])
                result[layer.name].add(columns)
    return result
