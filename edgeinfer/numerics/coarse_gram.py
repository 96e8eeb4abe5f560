"""X Xᵀ from 8 bits of each row: the same bits on every machine, at the speed of a float32 product.

Each row is rounded to whole multiples of a power of two, of which its greatest magnitude has 91 to 181.
Products of those are at most 181² times a power of two, and 512 of them add up to less than 2^24 times it, so
that float32 adds them without rounding, in any order: neither the BLAS, nor its threads, nor the vector
width of the processor is seen in the result. The blocks are added in one order in float64. It is about as
exact as the activations of an int8 model are, for which it is made; see `fixed_order` for more bits.
"""

from __future__ import annotations

import numpy as np

__all__ = ["add_coarse_gram"]

_LEVELS = 181
_EXACT_TERMS = 512  # 512 · 181² < 2^24
_LEAST_EXPONENT = -60  # products of smaller steps might be below the range of float32


def add_coarse_gram(total: np.ndarray, x: np.ndarray) -> None:
    """Add X Xᵀ to a sum.

    Args:
        total: The sum, float64 (G, K, K).
        x: X, float (G, K, n), finite.
    """
    x = np.asarray(x, np.float32)
    groups, _, columns = x.shape
    greatest = np.maximum(x.max(axis=2, initial=0.0), -x.min(axis=2, initial=0.0))
    fraction, exponent = np.frexp(greatest / np.float32(_LEVELS))
    exponent = np.where(fraction == 0.5, exponent - 1, exponent)  # a power of two is its own step
    step = np.ldexp(np.float32(1), np.maximum(exponent, _LEAST_EXPONENT))[:, :, None]
    rounded = x * (1 / step)
    np.rint(rounded, out=rounded)
    rounded *= step
    for start in range(0, columns, _EXACT_TERMS):
        block = rounded[:, :, start : start + _EXACT_TERMS]
        if groups == 1:  # numpy sees that both factors are one matrix, and computes half of it
            total[0] += block[0] @ block[0].T
        else:
            total += block @ block.transpose(0, 2, 1)
