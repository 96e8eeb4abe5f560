"""Which single weights to drop: SparseGPT's sweep, with the choice within a group of M made jointly.

With U the upper Cholesky factor of H⁻¹ (H⁻¹ = Uᵀ U), dropping column j costs w_j² / U_jj² and is made up for
by W[:, j+1:] -= w_j / U_jj · U[j, j+1:] (Frantar and Alistarh 2023). For N:M the M weights of a group are
weighed together: the inverse Hessian of what is left is U_gᵀ U_g on the group, so that each choice S of M - N
weights costs w_Sᵀ [(U_gᵀ U_g)_SS]⁻¹ w_S, and the cheapest is taken.
"""

from __future__ import annotations

import itertools

import numpy as np

from edgeinfer.graph.layers import layout_of
from edgeinfer.graph.weights import Linear
from edgeinfer.numerics.fixed_order import inverse_factor, solve

__all__ = ["dropped_count", "group_order", "magnitude_nm_mask", "nm_mask", "sparse_mask", "upper_factor"]

_DAMPING = 1e-2
_BLOCK = 64


def group_order(layer: Linear, m: int) -> np.ndarray:
    """Return W's columns in an order in which each M input channels at one kernel tap lie side by side.

    That is where sparse tensor cores look for their pattern: along the input channels.
    """
    taps = layer.taps
    columns = layout_of(layer).rows
    grid = np.arange(columns).reshape(-1, m, taps)
    order: np.ndarray = grid.transpose(0, 2, 1).reshape(-1)
    return order


def upper_factor(cov: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return U of H⁻¹ = Uᵀ U, the columns being taken in an order and H damped."""
    h = cov[np.ix_(order, order)]
    dead = np.diag(h) <= 0
    h = h + np.diag(np.where(dead, 1.0, 0.0))
    h[np.diag_indices_from(h)] += _DAMPING * np.trace(h) / len(h)
    return inverse_factor(h)


def nm_mask(weight: np.ndarray, cov: np.ndarray, order: np.ndarray, n: int, m: int) -> np.ndarray:
    """Return the mask of the weights that stay, (R, K): n of every m.

    Args:
        weight: W, (R, K).
        cov: The covariance of X, (K, K).
        order: Columns in groups of m, see `group_order`.
        n: How many of a group stay.
        m: The size of a group.
    """
    upper = upper_factor(cov, order)
    work = weight[:, order].copy()
    keep = np.ones(work.shape, bool)
    choices = np.array(list(itertools.combinations(range(m), m - n)))
    rows = np.arange(len(work))
    for start in range(0, work.shape[1], m):
        factor = upper[start : start + m, start : start + m]
        inverse = (factor[:, :, None] * factor[:, None, :]).sum(0)
        group = work[:, start : start + m]
        costs = np.empty((len(choices), len(work)))
        for index, choice in enumerate(choices):
            part = group[:, choice]
            costs[index] = (part * solve(inverse[np.ix_(choice, choice)], part.T).T).sum(1)
        picked = choices[costs.argmin(0)]
        dropped = np.zeros(group.shape, bool)
        dropped[rows[:, None], picked] = True
        keep[:, start : start + m] = ~dropped
        _sweep(work, upper, dropped, start)
    result = np.empty_like(keep)
    result[:, order] = keep
    return result


def sparse_mask(weight: np.ndarray, cov: np.ndarray, sparsity: float) -> np.ndarray:
    """Return the mask of the weights that stay, (R, K), so many of every block of columns dropped."""
    upper = upper_factor(cov, np.arange(weight.shape[1]))
    work = weight.copy()
    keep = np.ones(work.shape, bool)
    for start in range(0, work.shape[1], _BLOCK):
        block = work[:, start : start + _BLOCK]
        scores = np.square(block / np.diag(upper)[start : start + _BLOCK])
        count = round(sparsity * block.size)
        dropped = np.zeros(block.size, bool)
        if count:
            dropped[np.argpartition(scores.ravel(), count - 1)[:count]] = True
        keep[:, start : start + _BLOCK] = ~dropped.reshape(block.shape)
        _sweep(work, upper, dropped.reshape(block.shape), start)
    return keep


def dropped_count(rows: int, columns: int, sparsity: float) -> int:
    """Return how many weights `sparse_mask` drops, which is rounded in every block of columns."""
    widths = (min(_BLOCK, columns - start) for start in range(0, columns, _BLOCK))
    return sum(round(sparsity * rows * width) for width in widths)


def _sweep(work: np.ndarray, upper: np.ndarray, dropped: np.ndarray, start: int) -> None:
    for offset in range(dropped.shape[1]):
        j = start + offset
        error = np.where(dropped[:, offset], work[:, j], 0.0) / upper[j, j]
        work[:, j:] -= error[:, None] * upper[j, j:]


def magnitude_nm_mask(weight: np.ndarray, order: np.ndarray, n: int, m: int) -> np.ndarray:
    """Return the mask of the n largest weights of every m, (R, K)."""
    groups = np.abs(weight[:, order]).reshape(len(weight), -1, m)
    ranks = np.argsort(np.argsort(-groups, axis=2, kind="stable"), axis=2, kind="stable")
    result = np.empty(weight.shape, bool)
    result[:, order] = (ranks < n).reshape(len(weight), -1)
    return result
