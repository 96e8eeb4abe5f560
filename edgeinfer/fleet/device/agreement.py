"""How far a new model agrees with the running one on the same inputs, without labels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["agreement"]

_NEAR = 0.05  # of the greatest magnitude of the running model's output


def agreement(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """Return the share of answers that are the same, 0 to 1; of several outputs the lowest.

    Of floating-point outputs with a last axis of 2 or more, an answer is the greatest entry along it (the
    class). Other numbers are the same within 5 % of the output's greatest magnitude; what is no number, when
    it is equal. Outputs that are missing or have another shape agree in nothing.

    Args:
        found: The new model's outputs.
        expected: The running model's.
    """
    return min((_of_one(found.get(name), array) for name, array in expected.items()), default=1.0)


def _of_one(found: np.ndarray | None, expected: np.ndarray) -> float:
    if found is None or found.shape != expected.shape:
        return 0.0
    if expected.size == 0:
        return 1.0
    if expected.dtype.kind not in "fiuc":
        return float(np.mean(found == expected))
    if expected.dtype.kind == "f" and expected.ndim and expected.shape[-1] >= 2:
        if not np.isfinite(found).all() and np.isfinite(expected).all():
            return 0.0
        return float(np.mean(found.argmax(axis=-1) == expected.argmax(axis=-1)))
    ours, theirs = found.astype(np.float64), expected.astype(np.float64)
    scale = np.nanmax(np.abs(theirs), initial=0.0)
    with np.errstate(invalid="ignore"):
        return float(np.mean((np.abs(ours - theirs) <= _NEAR * scale) | (np.isnan(ours) & np.isnan(theirs))))
