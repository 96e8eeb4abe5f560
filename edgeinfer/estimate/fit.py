"""Fitting prices of features to measured nets: non-negative least squares of the relative errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from edgeinfer.numerics.nnls import nnls

__all__ = ["cross_validated", "fit_prices", "priced"]

# Least squares trust the worst net most; a few rounds of weights 1/√|error| come near least absolute errors.
_ROUNDS = 8
_SMALL_ERROR = 0.02
_RIDGE = 0.02


def fit_prices(rows: Sequence[Mapping[str, float]], measured: Sequence[float]) -> dict[str, float]:
    """Return a price, at least 0, for each feature, so that Σ price · feature comes near what was measured.

    Args:
        rows: The features of each net by name; one that is absent is 0.
        measured: What was measured of each, above 0.
    """
    names = sorted({name for row in rows for name in row})
    target = np.asarray(measured, np.float64)
    matrix = np.array([[row.get(name, 0.0) for name in names] for row in rows], np.float64)
    relative = matrix / target[:, None]
    weights = np.ones(len(target))
    # A little shrinking keeps features that few nets have from explaining these nets' noise.
    scale = np.maximum(np.linalg.norm(relative, axis=0), 1e-12) / np.sqrt(len(target))
    ridge = np.diag(_RIDGE * scale)
    prices = np.zeros(len(names))
    for _ in range(_ROUNDS):
        prices = nnls(
            np.vstack([relative * weights[:, None], ridge]), np.concatenate([weights, np.zeros(len(names))])
        )
        error = np.abs(relative @ prices - 1.0)
        weights = 1.0 / np.sqrt(np.maximum(error, _SMALL_ERROR))
        weights /= weights.mean()
    return {name: float(price) for name, price in zip(names, prices, strict=True) if price > 0}


def priced(row: Mapping[str, float], prices: Mapping[str, float]) -> float:
    """Return what features cost."""
    return sum(value * prices.get(name, 0.0) for name, value in row.items())


def cross_validated(
    rows: Sequence[Mapping[str, float]], measured: Sequence[float], groups: Iterable[str], folds: int = 5
) -> np.ndarray:
    """Return measured / estimated of each net, estimated by a fit that has not seen its group.

    Args:
        rows: As for `fit_prices`.
        measured: Likewise.
        groups: What belongs together: the name of the net that a row is a form of.
        folds: How many fits.
    """
    names = list(groups)
    order = {name: index for index, name in enumerate(dict.fromkeys(names))}
    # Neighbours together: the calibration's nets take turns by family, so that each fifth net would be all
    # nets of two families.
    fold = np.array([order[name] * folds // len(order) for name in names])
    ratios = np.ones(len(rows))
    for held in range(folds):
        inside = [i for i in range(len(rows)) if fold[i] != held]
        prices = fit_prices([rows[i] for i in inside], [measured[i] for i in inside])
        for i in np.flatnonzero(fold == held).tolist():
            ratios[i] = measured[i] / max(priced(rows[i], prices), 1e-12)
    return ratios
