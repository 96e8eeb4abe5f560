"""X Xᵀ from 8 bits of each row: the same bits on every machine, at the speed of a float32 product.

Each row is rounded to whole multiples of its greatest magnitude over 127. Products of those are at most 127²,
and 1024 of them add up to less than 2^24, so that float32 adds them without rounding, in any order: neither
the BLAS, nor its threads, nor the vector width of the processor is seen in the result. The blocks are added
in one order in float64. It is as exact as the activations of an int8 model are, for which it is made; see
`fixed_order` for more bits.
"""

from __future__ import annotations

import numpy as np

__all__ = ["coarse_gram"]

_LEVELS = 127
_EXACT_TERMS = 1024  # 1024 · 127² < 2^24


def coarse_gram(x: np.ndarray) -> np.ndarray:
    """Return X Xᵀ, float64 (G, K, K).

    Args:
        x: X, float (G, K, n), finite.
    """
    x = np.asarray(x, np.float32)
    groups, rows, columns = x.shape
    step = np.abs(x).max(axis=2, initial=0.0) / np.float32(_LEVELS)
    step = np.where(step > 0, step, np.float32(1))
    levels = np.rint(x / step[:, :, None])
    total = np.zeros((groups, rows, rows))
    for start in range(0, columns, _EXACT_TERMS):
        block = levels[:, :, start : start + _EXACT_TERMS]
        if groups == 1:  # numpy sees that both factors are one matrix, and computes half of it
            total[0] += block[0] @ block[0].T
        else:
            total += block @ block.transpose(0, 2, 1)
    wide = step.astype(np.float64)
    total *= wide[:, :, None] * wide[:, None, :]
    return total
