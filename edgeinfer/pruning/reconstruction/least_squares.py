"""The least-squares problem of one layer: W, b = argmin Σ ‖Y - (W X + b)‖² + λ ‖W - W₀‖²."""

from __future__ import annotations

from typing import final

import attrs
import numpy as np

from edgeinfer.calibration.moments import MomentObserver
from edgeinfer.numerics.fixed_order import matmul, solve

__all__ = ["Equations", "best_ridge"]

DEFAULT_RIDGE = 1e-3
RIDGES = (3e-4, 3e-3, 3e-2, 3e-1, 3.0)
_JUDGED_ROWS = 24
_MAX_BYTES = 64 << 20


@final
@attrs.frozen(kw_only=True, eq=False)
class Equations:
    """The normal equations of a layer; X has a row of ones below it for the bias.

    Attributes:
        xx: X Xᵀ / n, (G, K + 1, K + 1).
        yx: Y Xᵀ / n, (G, R, K + 1).
        yy: Y² / n, (G, R).
    """

    xx: np.ndarray
    yx: np.ndarray
    yy: np.ndarray

    @classmethod
    def of(cls, moments: MomentObserver) -> Equations:
        """Read the moments of a layer."""
        mean = moments.mean[..., None]
        ones = np.ones((len(mean), 1, 1))
        return cls(
            xx=np.block([[moments.hessian, mean], [mean.transpose(0, 2, 1), ones]]),
            yx=np.concatenate([moments.cross, moments.target_mean[..., None]], 2),
            yy=moments.target_power,
        )

    def rows(self, chosen: np.ndarray) -> Equations:
        """Return the equations of some outputs of each group."""
        return Equations(xx=self.xx, yx=self.yx[:, chosen], yy=self.yy[:, chosen])

    def solve(
        self, start: np.ndarray, ridge: float, keep: np.ndarray | None = None, *, fit_bias: bool = True
    ) -> np.ndarray:
        """Return W and b as (G, R, K + 1), drawn towards `start` by the ridge.

        Args:
            start: The present W and b, (G, R, K + 1).
            ridge: λ, relative to the mean diagonal of X Xᵀ; the bias is not drawn.
            keep: A mask (G, R, K) of W's elements that may be other than zero.
            fit_bias: Whether b may change.
        """
        size = start.shape[2]
        result: np.ndarray = start.copy()
        for g in range(start.shape[0]):
            scale = np.trace(self.xx[g, :-1, :-1]) / max(size - 1, 1)
            penalty = np.full(size, ridge * scale + 1e-12)
            penalty[-1] = 0.0 if fit_bias else 1e6 * (1 + scale)
            left = self.xx[g] + np.diag(penalty)
            right = self.yx[g] + start[g] * penalty
            if keep is None:
                result[g] = solve(left, right.T).T
            else:
                result[g] = _solve_rows(left, right, np.pad(keep[g], ((0, 0), (0, 1)), constant_values=True))
        return result

    @property
    def power(self) -> float:
        """The centred Σ‖Y‖² / n."""
        return float(max(self.yy.sum() - np.square(self.yx[..., -1]).sum(), 1e-30))

    def loss(self, weights: np.ndarray) -> float:
        """Return Σ‖Y - W X‖² relative to the centred Σ‖Y‖², for W and b as (G, R, K + 1)."""
        quadratic = (matmul(weights, self.xx) * weights).sum()
        error = self.yy.sum() - 2 * (weights * self.yx).sum() + quadratic
        return float(max(error, 0.0) / self.power)


def best_ridge(
    fit: Equations,
    held: Equations | None,
    start: np.ndarray,
    keep: np.ndarray | None = None,
    *,
    fit_bias: bool = True,
) -> float:
    """Return the ridge whose solution has the least error on data held out.

    Layers late in a network have many inputs and few positions: without this they would overfit the
    calibration. Where each row has a mask, and so a system of its own, some rows stand for all.
    """
    if held is None:
        return DEFAULT_RIDGE
    if keep is not None and start.shape[1] > _JUDGED_ROWS:
        chosen = np.linspace(0, start.shape[1] - 1, _JUDGED_ROWS).astype(int)
        fit, held = fit.rows(chosen), held.rows(chosen)
        start, keep = start[:, chosen], keep[:, chosen]
    losses = [held.loss(fit.solve(start, ridge, keep, fit_bias=fit_bias)) for ridge in RIDGES]
    return RIDGES[int(np.argmin(losses))]


def _solve_rows(left: np.ndarray, right: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Solve each row for the elements that it may have; rows with as many of them are solved together."""
    result: np.ndarray = np.zeros_like(right)
    counts = keep.sum(1)
    for count in np.unique(counts):
        rows = np.flatnonzero(counts == count)
        step = max(1, _MAX_BYTES // int(8 * count**2))
        for some in np.split(rows, range(step, len(rows), step)):
            free = np.nonzero(keep[some])[1].reshape(len(some), count)
            systems = left[free[:, :, None], free[:, None, :]]
            wanted = right[some[:, None], free]
            result[some[:, None], free] = solve(systems, wanted[..., None])[..., 0]
    return result
