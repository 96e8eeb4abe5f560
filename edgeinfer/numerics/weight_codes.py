"""Weights as small integers, by one symmetric scale for each channel or block: numpy alone."""

from __future__ import annotations

import numpy as np

__all__ = ["by_block", "by_channel", "pack_nibbles"]

# Clip ratios that are tried for the 16 levels of int4; at 8 bits clipping does not pay.
_CLIP_RATIOS = np.linspace(1.0, 0.7, 13)


def by_channel(array: np.ndarray, *, axis: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Return integers from -high to high, and scales (kept dimensions), one for each index of `axis`."""
    axes = tuple(other for other in range(array.ndim) if other != axis)
    return _rounded(array.astype(np.float32), axes, high)


def by_block(array: np.ndarray, *, axis: int, block: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Return integers and scales of blocks along `axis`: the scales are shorter by `block` there."""
    shape = list(array.shape)
    shape[axis : axis + 1] = [shape[axis] // block, block]
    integers, scale = _rounded(array.astype(np.float32).reshape(shape), (axis + 1,), high)
    return integers.reshape(array.shape), scale.squeeze(axis + 1)


def pack_nibbles(integers: np.ndarray, block: int) -> np.ndarray:
    """Return signed 4-bit integers `(K, N)` as `(N, K / block, block / 2)` bytes, zero point 8.

    The earlier weight is in the low half: the layout of ONNX Runtime's MatMulNBits.
    """
    inputs, channels = integers.shape
    nibbles = (integers.T.astype(np.int16) + 8).astype(np.uint8).reshape(channels, inputs // block, block)
    packed: np.ndarray = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
    return packed


def _rounded(array: np.ndarray, axes: tuple[int, ...], high: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantize with one symmetric scale over `axes`, chosen by least squares where levels are few."""
    widest = np.abs(array).max(axis=axes, keepdims=True) / high
    best = _positive(widest)
    least: np.ndarray | None = None
    for ratio in _CLIP_RATIOS if high < 127 else _CLIP_RATIOS[:1]:
        scale = _positive(widest * np.float32(ratio))
        error = ((np.clip(np.rint(array / scale), -high - 1, high) * scale - array) ** 2).sum(
            axis=axes, keepdims=True, dtype=np.float64
        )
        best = scale if least is None else np.where(error < least, scale, best)
        least = error if least is None else np.minimum(error, least)
    low = -high if high == 127 else -high - 1
    return np.clip(np.rint(array / best), low, high), best


def _positive(scale: np.ndarray) -> np.ndarray:
    return np.where(scale > 0, scale, np.float32(1.0)).astype(np.float32)
