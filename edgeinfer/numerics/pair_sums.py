"""Weights whose products with 8-bit activations cannot overflow where pairs of them are added in 16 bits.

x86 CPUs without VNNI multiply unsigned by signed bytes with `vpmaddubsw`, which adds two neighbouring
products in 16 bits and saturates (Intel 64 and IA-32 Software Developer's Manual, volume 2, PMADDUBSW):
255 · 127 + 255 · 127 = 64770 becomes 32767. With `|w_0 + w_1| <= 128` for neighbours of one sign it cannot:
255 · 128 = 32640. Halving the range of all weights (7 bits) keeps to that and costs 6 dB. Here a channel's
scale grows only as far as its own neighbours need.

Measured on such a CPU on evaluation rows, ranges by MSE: ResNet-20 has 14.1 dB in ONNX Runtime and 13.3 dB
in OpenVINO with all 8 bits, 28.3 and 29.1 dB so; 28.6 and 29.5 dB are what its graphs say with all 8 bits.

Which weights are neighbours was measured on an AVX2 CPU, with weights of which two alone are not 0 (ONNX
Runtime 1.32, OpenVINO 2026.4). Input channels at one position of the kernel are, two by two from the first.
ONNX Runtime goes on so over the filter in the order (positions, channels), which is not the same where the
channels are odd; here both count. Depthwise kernels of both have no such neighbours.
"""

from __future__ import annotations

import numpy as np

__all__ = ["GREATEST_PAIR", "greatest_pair", "neighbours", "partners", "safe_scale"]

GREATEST_PAIR = 128
# The sum of two numbers rises by less than 1 when each is rounded to nearest, so that this stays within 128.
_BEFORE_ROUNDING = GREATEST_PAIR - 1.0


def neighbours(channels: int, positions: int = 1) -> np.ndarray:
    """Return which weights of a filter are added in pairs, `(pairs, 2)` int64.

    Args:
        channels: Input channels of a group; the inputs of a matrix product.
        positions: Positions of the kernel. Indices count in the order (channels, positions).
    """
    order = np.arange(channels * positions).reshape(channels, positions).T  # (positions, channels)
    through = order.reshape(-1)[: order.size // 2 * 2].reshape(-1, 2)
    anew = order[:, : channels // 2 * 2].reshape(-1, 2)
    found: np.ndarray = np.unique(np.sort(np.concatenate([through, anew]), axis=1), axis=0)
    return found


def partners(pairs: np.ndarray, size: int) -> np.ndarray:
    """Return the neighbours of each of `size` weights of a filter, `(size, most)`, with -1 for none."""
    found: list[list[int]] = [[] for _ in range(size)]
    for first, second in pairs.tolist():
        found[first].append(second)
        found[second].append(first)
    most = max(map(len, found), default=0)
    return np.array([[*row, *[-1] * (most - len(row))] for row in found], np.int64).reshape(size, most)


def greatest_pair(levels: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the greatest sum of neighbours of one sign, as a magnitude, of each filter.

    Args:
        levels: Filters in integers or in float, `(..., K)`.
        pairs: Of `neighbours`.
    """
    first, second = levels[..., pairs[:, 0]], levels[..., pairs[:, 1]]
    above = np.maximum(first, 0) + np.maximum(second, 0)
    below = np.minimum(first, 0) + np.minimum(second, 0)
    greatest: np.ndarray = np.maximum(above, -below).max(axis=-1, initial=0)
    return greatest


def safe_scale(filters: np.ndarray, scale: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the least scale, not under the one given, with which no pair of neighbours can overflow.

    Args:
        filters: Float weights, `(..., K)`.
        scale: The scale of each filter, `(...)`; or one for all of them, `()`.
        pairs: Of `neighbours`.

    Returns:
        float32, of the shape of `scale`.
    """
    filters = np.asarray(filters, np.float32)
    scale = np.asarray(scale, np.float32)
    levels = np.rint(filters / (scale[..., None] if scale.ndim else scale))
    overflows = np.asarray(greatest_pair(levels, pairs) > GREATEST_PAIR)
    wanted = greatest_pair(filters, pairs) / np.float32(_BEFORE_ROUNDING)
    if not scale.ndim:
        overflows, wanted = np.asarray(overflows.any()), np.asarray(wanted.max(initial=0.0))
    safe: np.ndarray = np.where(overflows, np.maximum(scale, wanted), scale).astype(np.float32)
    return safe
