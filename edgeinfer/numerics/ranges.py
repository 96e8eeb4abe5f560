"""Choosing a range from a histogram: percentile, entropy (KL divergence), mean squared error."""

from __future__ import annotations

import math

import numpy as np

from edgeinfer.numerics.histogram import StreamingHistogram
from edgeinfer.numerics.qparams import DTYPES, activation_qparams

__all__ = ["entropy_range", "mse_range", "percentile_range"]

_CANDIDATES = 100
# So many of the candidates that the formula likes best are judged by real rounding.
_FINALISTS = 16


def percentile_range(
    histogram: StreamingHistogram, percentile: float, symmetric: bool
) -> tuple[float, float]:
    """Return the range that leaves out (100 - percentile) percent of the values.

    Args:
        histogram: The distribution.
        percentile: Such as 99.99.
        symmetric: Count by magnitude, and return (-t, t). Otherwise half is left out at either end.
    """
    centres, counts = histogram.populated()
    low, high = histogram.low, histogram.high
    if not counts.size:
        return low, high
    rest = (1 - percentile / 100) * histogram.total
    half = histogram.width / 2
    if symmetric:
        order = np.argsort(-np.abs(centres))
        t = _outlier_bound(np.abs(centres)[order], counts[order], rest) + half
        t = min(t, max(-low, high))
        return -t, t
    greatest = _outlier_bound(centres[::-1], counts[::-1], rest / 2) + half
    least = -_outlier_bound(-centres, counts, rest / 2) - half
    # Zeros lie between: an end never passes 0.
    return max(low, min(least, 0.0)), min(high, max(greatest, 0.0))


def _outlier_bound(values: np.ndarray, counts: np.ndarray, rest: float) -> float:
    """Return the first of the descending `values` that has more than `rest` counts at or above it."""
    index = int(np.searchsorted(np.cumsum(counts), rest, side="right"))
    return float(values[min(index, len(values) - 1)])


def mse_range(histogram: StreamingHistogram, dtype: str, symmetric: bool) -> tuple[float, float]:
    """Return the range with the least mean squared error of quantization.

    Each end is tried at 1 to 100 percent of the extreme; when the zero point may move, both ends in all
    combinations. The error of a candidate is the clipping error, from sums over the histogram, plus
    scale**2 / 12 for each value within (the variance of rounding). The best of these and the whole range
    are then judged by rounding the bins' centres.
    """
    centres, counts = histogram.populated()
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if not counts.size or low == high:
        return histogram.low, histogram.high
    ratios = np.arange(1, _CANDIDATES + 1) / _CANDIDATES
    tied = symmetric or dtype.startswith("float")
    if tied:
        low, high = -max(-low, high), max(-low, high)
    below, above = _clipping_errors(centres, counts, ratios, low, high)
    every = np.arange(_CANDIDATES)
    # The ends move together, or in all combinations; an end at 0 stays there.
    i = every if tied else np.repeat(every if low else every[-1:], _CANDIDATES if high else 1)
    j = every if tied else np.tile(every if high else every[-1:], _CANDIDATES if low else 1)
    lows, highs, error = low * ratios[i], high * ratios[j], below[i] + above[j]
    _, least, greatest = DTYPES[dtype]
    error += ((highs - lows) / (greatest - least)) ** 2 / 12 * counts.sum()
    best = np.argsort(error, kind="stable")[:_FINALISTS]
    finalists = [(low, high), *((float(lows[i]), float(highs[i])) for i in best)]
    return min(finalists, key=lambda ends: _rounding_error(histogram, ends, dtype, symmetric))


def _clipping_errors(
    centres: np.ndarray, counts: np.ndarray, ratios: np.ndarray, low: float, high: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of squared distances to `ratios * low` of the values below, and of those above."""
    weight = counts.astype(np.float64)
    sums = [np.concatenate(([0.0], np.cumsum(weight * centres**k))) for k in range(3)]

    def beyond(start: np.ndarray, stop: np.ndarray, end: np.ndarray) -> np.ndarray:
        zeroth, first, second = (s[stop] - s[start] for s in sums)
        # Rounding may leave a little less than 0.
        return np.asarray(np.maximum(second - 2 * end * first + end**2 * zeroth, 0.0))

    lows, highs = ratios * low, ratios * high
    below, above = np.searchsorted(centres, lows), np.searchsorted(centres, highs)
    last = np.full_like(above, len(centres))
    return beyond(np.zeros_like(below), below, lows), beyond(above, last, highs)


def _rounding_error(
    histogram: StreamingHistogram, ends: tuple[float, float], dtype: str, symmetric: bool
) -> float:
    centres, counts = histogram.populated()
    qparams = activation_qparams(*ends, dtype, symmetric)
    x = centres.astype(np.float32)
    squared = (x - qparams.fake_quantize(x)).astype(np.float64) ** 2
    # Bins wider than a level: within the range a centre's own error says nothing about its bin's.
    scale = float(qparams.scale)
    if histogram.width > scale / 4 and not dtype.startswith("float"):
        squared = np.where(squared <= scale**2, scale**2 / 12, squared)
    return float(squared @ counts)


def entropy_range(histogram: StreamingHistogram, dtype: str, symmetric: bool) -> tuple[float, float]:
    """Return the range that keeps most information, by Kullback-Leibler divergence.

    The method is that of TensorRT's calibrator (S. Migacz, "8-bit Inference with TensorRT", 2017): clip the
    distribution at a candidate, put the outliers into its end bins, merge its bins into as many groups as
    there are levels, spread each group evenly over its bins that are not empty, and compare. When the zero
    point may move and values of both signs occur, the upper and the lower end are searched one after the
    other.
    """
    edges, counts = histogram.bins()
    low, high = histogram.low, histogram.high
    if counts.size < 2 or low == high:
        return low, high
    _, least, greatest = DTYPES[dtype]
    levels = int(min(greatest - least + 1, 4096))
    centres = (edges[:-1] + edges[1:]) / 2
    width = histogram.width
    if symmetric:
        folded = np.bincount(np.floor(np.abs(centres) / width).astype(np.int64), weights=counts)
        end = _best_end(folded, levels // 2)
        t = min(end * width, max(-low, high))
        return -t, t
    if low >= 0 or high <= 0:
        sign = 1.0 if low >= 0 else -1.0
        folded = np.bincount(np.floor(np.abs(centres) / width).astype(np.int64), weights=counts)
        t = min(_best_end(folded, levels) * width, max(-low, high))
        return (0.0, t) if sign > 0 else (-t, 0.0)
    zero = int(np.searchsorted(edges, 0.0))
    stop = _best_end(counts, levels, keep=zero + 1)
    start = stop - _best_end(_clipped(counts, stop)[::-1], levels, keep=stop - zero)
    return max(low, float(edges[start])), min(high, float(edges[stop]))


def _clipped(counts: np.ndarray, stop: int) -> np.ndarray:
    clipped: np.ndarray = counts[:stop].copy()
    clipped[-1] += counts[stop:].sum()
    return clipped


def _best_end(counts: np.ndarray, levels: int, keep: int = 1) -> int:
    """Return how many leading bins to keep, at least `keep` and at least `levels`."""
    size = len(counts)
    first = max(levels, keep)
    if first >= size:
        return size
    ends = np.unique(np.linspace(first, size, _CANDIDATES).astype(int))
    # Later candidates first, so that of equals the one that clips less wins.
    return int(min(ends[::-1], key=lambda end: _divergence(counts, int(end), levels)))


def _divergence(counts: np.ndarray, end: int, levels: int) -> float:
    inside = counts[:end].astype(np.float64)
    reference = _clipped(counts, end).astype(np.float64)
    if not inside.any():
        return math.inf
    starts = np.linspace(0, end, levels, endpoint=False).astype(int)
    group = np.zeros(end, np.int64)
    group[starts[1:]] = 1
    group = np.cumsum(group)
    filled = (inside > 0).astype(np.float64)
    sums = np.bincount(group, weights=inside, minlength=levels)
    members = np.bincount(group, weights=filled, minlength=levels)
    spread = np.divide(sums, members, out=np.zeros_like(sums), where=members > 0)[group] * filled
    p, q = reference / reference.sum(), spread / spread.sum()
    # Where the outliers fell into an empty bin q is 0 and the divergence would be infinite.
    q = np.maximum(q, 1e-9)
    used = p > 0
    return float(np.sum(p[used] * np.log(p[used] / q[used])))
