"""Rounding weights so that the layer's *output* changes least, in numpy.

A layer computes `Y = W X`. Rounding errors `E = W - Ŵ` cost `‖E X‖² = tr(E H Eᵀ)` with `H = X Xᵀ`, so an
error in one column can be made good by the columns that are still to be rounded. GPTQ (Frantar et al. 2023)
does that column by column with the Cholesky factor of `H⁻¹`; LDLQ (Chee et al. 2023, theorem 6) is the same
algorithm written with the factor of `H` itself, which needs no inverse:

    H = (I + A) D (I + A)ᵀ,  A strictly upper triangular
    Ŵ_k = Q(W_k + Σ_{j<k} (W_j - Ŵ_j) A_jk)

Then sweeps of coordinate descent visit each column again and set it to the best grid point given all the
others, which can only lower the cost.

All functions take stacks: weights `(G, R, K)`, moments `(G, K, K)`; each group is a problem of its own. Sums
are in a fixed order (`numerics.fixed_order`), because one bit of a sum may turn a rounding, and that all that
follow: the integers are the same on every machine.
"""

from __future__ import annotations

from typing import final

import attrs
import numpy as np

from edgeinfer.numerics.fixed_order import cholesky, matmul
from edgeinfer.numerics.pair_sums import GREATEST_PAIR

__all__ = ["Grid", "output_error", "round_weights"]

_BLOCK = 128
_SLICES = 1  # of `matmul`: 19 bits of an error are more than it is known to


@final
@attrs.frozen(kw_only=True, eq=False)
class Grid:
    """The values that a weight may take: `(q - zero_point) · scale` for integers `low ≤ q ≤ high`.

    Attributes:
        scale: Positive, broadcastable to the weights `(G, R, K)`.
        zero_point: Broadcastable to the weights.
        low: The least integer.
        high: The greatest integer.
        partners: For each column the columns whose integers its own may not exceed `GREATEST_PAIR` with, -1
            for none, `(K, partners)`, or `(G, K, partners)` where the columns of each group are in an order
            of their own; None where there is no such limit. See `edgeinfer.numerics.pair_sums`.
    """

    scale: np.ndarray
    zero_point: np.ndarray = attrs.field(factory=lambda: np.zeros((), np.float32))
    low: int | np.ndarray
    high: int | np.ndarray
    partners: np.ndarray | None = None

    def quantize(self, weights: np.ndarray) -> np.ndarray:
        """Return the integers nearest to the weights, as float. Partners do not limit each other here."""
        integers: np.ndarray = np.clip(np.rint(weights / self.scale) + self.zero_point, self.low, self.high)
        return integers

    def dequantize(self, integers: np.ndarray) -> np.ndarray:
        """Return the weights of the integers."""
        weights: np.ndarray = (integers - self.zero_point) * self.scale
        return weights

    def take(self, shape: tuple[int, ...], order: np.ndarray) -> Grid:
        """Return the grid, spread over weights of that shape, with the columns of each group in `order`."""
        return attrs.evolve(
            self,
            scale=np.take_along_axis(np.broadcast_to(self.scale, shape), order[:, None, :], axis=2),
            zero_point=np.take_along_axis(np.broadcast_to(self.zero_point, shape), order[:, None, :], axis=2),
            partners=None if self.partners is None else _reordered(self.partners, order),
        )

    def limits(self, k: int, integers: np.ndarray) -> tuple[np.ndarray | int, np.ndarray | int]:
        """Return the least and the greatest integer that a column may have.

        Args:
            k: The column, of a grid that `take` has spread over the weights.
            integers: What the columns have now, `(G, R, K)`, 0 for those that are still to be rounded: their
                partners limit the column.
        """
        if self.partners is None:
            return self.low, self.high
        partners = self.partners[:, k]  # (G, partners)
        groups = np.arange(len(partners))[:, None]
        beside = integers[groups, :, np.maximum(partners, 0)]  # (G, partners, R)
        beside = np.where(partners[..., None] >= 0, beside, 0)
        high = np.minimum(self.high, GREATEST_PAIR - beside.max(axis=1, initial=0))
        return np.maximum(self.low, -GREATEST_PAIR - beside.min(axis=1, initial=0)), high


def output_error(weights: np.ndarray, rounded: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Return `diag(E H Eᵀ)`, the squared error of each output channel, `(G, R)`."""
    error = np.asarray(weights, np.float64) - rounded
    total: np.ndarray = (matmul(error, moment, slices=_SLICES) * error).sum(axis=-1)
    return total


def round_weights(
    weights: np.ndarray,
    moment: np.ndarray,
    grid: Grid,
    *,
    damping: float = 0.01,
    sweeps: int = 1,
    act_order: bool = True,
) -> np.ndarray:
    """Return integers on the grid whose output error is never greater than that of rounding to nearest.

    Args:
        weights: W, `(G, R, K)`, float.
        moment: `H = X Xᵀ` of the layer's inputs, `(G, K, K)`; any positive factor does.
        grid: The values that are allowed.
        damping: Added to the diagonal of H, as a part of its mean; FACTS and the paper use 0.01.
        sweeps: Sweeps of coordinate descent after the first pass.
        act_order: Round the columns with the greatest inputs first.

    Returns:
        Integers as float32, `(G, R, K)`.
    """
    weights = np.asarray(weights, np.float32)
    mean = np.maximum(moment.diagonal(axis1=1, axis2=2).mean(axis=1), 1e-30)[:, None, None]
    normal = np.asarray(moment / mean, np.float64)
    order = _order(normal, act_order=act_order)
    inverse = np.argsort(order, axis=1)
    ordered = grid.take(weights.shape, order)
    columns = np.take_along_axis(weights, order[:, None, :], axis=2)
    damped = _damped(_permuted(normal, order), damping)
    integers = _feedback(columns, damped, ordered)
    for _ in range(sweeps):
        integers = _descend(columns, integers, damped, ordered)
    integers = np.take_along_axis(integers, inverse[:, None, :], axis=2)
    # Each output channel stands alone, so the better of the two is taken for each, judged without damping.
    nearest = grid.quantize(weights)
    better = output_error(weights, grid.dequantize(integers), normal) <= output_error(
        weights, grid.dequantize(nearest), normal
    )
    return np.where(better[..., None], integers, nearest).astype(np.float32)


def _feedback(weights: np.ndarray, damped: np.ndarray, grid: Grid) -> np.ndarray:
    """Round column by column, feeding the errors of the columns before into the next (LDLQ)."""
    # The factor of the flipped matrix, flipped back, is upper triangular: H = R Rᵀ.
    factor = cholesky(damped[:, ::-1, ::-1])[:, ::-1, ::-1]
    feed = factor / factor.diagonal(axis1=1, axis2=2)[:, None, :]
    integers = np.zeros_like(weights)
    error = np.zeros(weights.shape)
    size = weights.shape[2]
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        block = weights[..., start:stop].astype(np.float64)
        if start:
            block += matmul(error[..., :start], feed[:, :start, start:stop], slices=_SLICES)
        for k in range(start, stop):
            low, high = grid.limits(k, integers)
            scale, zero = grid.scale[..., k], grid.zero_point[..., k]
            chosen = np.clip(np.rint(block[..., k - start] / scale) + zero, low, high).astype(np.float32)
            integers[..., k] = chosen
            error[..., k] = weights[..., k] - (chosen - zero) * scale
            block[..., k + 1 - start :] += error[..., k, None] * feed[:, None, k, k + 1 : stop]
    return integers


def _descend(weights: np.ndarray, integers: np.ndarray, damped: np.ndarray, grid: Grid) -> np.ndarray:
    """Set each column in turn to its best grid point given all the others."""
    integers = integers.copy()
    error = weights - grid.dequantize(integers)
    diagonal = damped.diagonal(axis1=1, axis2=2)
    size = weights.shape[2]
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        inner = damped[:, start:stop, start:stop]
        gradient = matmul(error, damped[:, :, start:stop], slices=_SLICES)
        for k in range(start, stop):
            at = k - start
            low, high = grid.limits(k, integers)
            scale, zero = grid.scale[..., k], grid.zero_point[..., k]
            pull = gradient[..., at] / diagonal[:, None, k] - error[..., k]
            best = np.clip(np.rint((weights[..., k] + pull) / scale) + zero, low, high)
            change = (best - zero) * scale - (integers[..., k] - zero) * scale
            integers[..., k] = best
            error[..., k] -= change
            gradient -= change[..., None] * inner[:, None, at, :]
    return integers


def _reordered(partners: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the partners `(G, K, partners)` of columns that are in `order` (G, K)."""
    places = np.argsort(order, axis=1)
    moved = partners[order]
    found = np.take_along_axis(places, np.maximum(moved, 0).reshape(len(order), -1), axis=1)
    return np.where(moved >= 0, found.reshape(moved.shape), -1)


def _order(moment: np.ndarray, *, act_order: bool) -> np.ndarray:
    diagonal = moment.diagonal(axis1=1, axis2=2)
    if not act_order:
        return np.broadcast_to(np.arange(diagonal.shape[1]), diagonal.shape)
    return np.argsort(-diagonal, axis=1, kind="stable")


def _permuted(moment: np.ndarray, order: np.ndarray) -> np.ndarray:
    rows = np.take_along_axis(moment, order[:, :, None], axis=1)
    return np.take_along_axis(rows, order[:, None, :], axis=2)


def _damped(moment: np.ndarray, damping: float) -> np.ndarray:
    mean = moment.diagonal(axis1=1, axis2=2).mean(axis=1)
    ridge = (damping * mean + 1e-30)[:, None, None]
    damped: np.ndarray = moment + ridge * np.eye(moment.shape[1], dtype=moment.dtype)
    return damped
