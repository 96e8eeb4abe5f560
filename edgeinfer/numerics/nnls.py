"""Least squares with non-negative coefficients.

The active-set method of Lawson and Hanson, *Solving Least Squares Problems* (1974), chapter 23.
"""

from __future__ import annotations

import numpy as np

__all__ = ["nnls"]

_TOLERANCE = 1e-10


def nnls(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the x >= 0 that minimizes |A x - b|.

    Args:
        matrix: A, `(m, n)`, float64.
        target: b, `(m,)`, float64.

    Returns:
        x, `(n,)`. A column of zeros gets 0.
    """
    # Columns of one length: counts and bytes differ by nine orders of magnitude.
    lengths = np.linalg.norm(matrix, axis=0)
    scaled = matrix / np.where(lengths > 0, lengths, 1.0)
    columns = scaled.shape[1]
    x = np.zeros(columns)
    passive = np.zeros(columns, bool)
    allowed = lengths > 0
    tolerance = _TOLERANCE * max(1.0, float(np.abs(scaled.T @ target).max(initial=0.0)))
    for _ in range(10 * columns + 10):
        gradient = scaled.T @ (target - scaled @ x)
        candidates = np.where(~passive & allowed, gradient, -np.inf)
        entering = int(np.argmax(candidates)) if columns else 0
        if not columns or candidates[entering] <= tolerance:
            break
        passive[entering] = True
        solution = _solve(scaled, target, passive)
        if solution[entering] <= 0:  # rounding: it does not help after all
            passive[entering] = False
            allowed[entering] = False
            continue
        while passive.any() and solution[passive].min() <= 0:
            # Go from x as far as everything stays non-negative; what meets 0 leaves.
            blocking = passive & (solution <= 0)
            step = float(np.min(x[blocking] / (x[blocking] - solution[blocking])))
            x += step * (solution - x)
            passive &= x > _TOLERANCE * max(1.0, float(x.max()))
            x[~passive] = 0.0
            solution = _solve(scaled, target, passive)
        x = solution
    return x / np.where(lengths > 0, lengths, 1.0)


def _solve(matrix: np.ndarray, target: np.ndarray, passive: np.ndarray) -> np.ndarray:
    """Solve without the constraint, for the passive columns alone."""
    solution = np.zeros(matrix.shape[1])
    if passive.any():
        solution[passive] = np.linalg.lstsq(matrix[:, passive], target, rcond=None)[0]
    return solution
