"""Drawing sizes at random."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

__all__ = ["Rng", "channels", "log_uniform", "pick"]

Rng: TypeAlias = np.random.Generator


def pick(rng: Rng, *values: Any) -> Any:
    """Return one of the values."""
    return values[int(rng.integers(len(values)))]


def log_uniform(rng: Rng, low: float, high: float) -> int:
    """Return a whole number whose logarithm is evenly spread."""
    return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))


def channels(rng: Rng, low: float, high: float) -> int:
    """Mostly multiples of 8, as nets have them, and now and then any number, as pruned nets have."""
    count = log_uniform(rng, low, high)
    return max(8, count // 8 * 8) if rng.random() < 0.7 else max(3, count)
