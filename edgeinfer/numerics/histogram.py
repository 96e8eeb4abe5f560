"""`StreamingHistogram`: the distribution of a tensor in constant memory.

The width of the bins is a power of two, 2**e, and their edges are its multiples. When a value falls outside,
the width doubles and neighbouring bins are merged, which loses nothing: floor(floor(x / w) / 2) is
floor(x / 2w). So the histogram depends on the values alone, not on their order or grouping, and two of
them can be merged exactly. (But for values so small beside the width that their ratio is under float32's
least number: those pass for positive.)

Exact zeros are counted apart. ReLU makes many of them; they are represented without error whatever the
scale, and in a bin they would pass for its centre and drag every search for a range towards zero.
"""

from __future__ import annotations

import math
from typing import final

import numpy as np

from edgeinfer.errors import CalibrationError

__all__ = ["StreamingHistogram", "restored_extremes"]

_LEAST_EXPONENT = -126  # of float32's normal numbers: 2**-e must not overflow
# float32 tells values apart to 24 bits, so indices that need more mean nothing (and would not be exact).
_INDEX_BITS = 22
# How many elements pass through the cache at a time. Half a megabyte of float32 stays in the second level.
_CHUNK = 1 << 17


@final
class StreamingHistogram:
    """Counts float values in at most `bins` bins; keeps the exact least and greatest value.

    Args:
        bins: The number of bins, at least 2. Between half of them and all lie within the range seen.
        sample: Of an array with more elements than this, every k-th is counted, k such that at least
            `sample` and at least one in 64 are. The extremes are exact all the same.
    """

    def __init__(self, bins: int = 2048, *, sample: int = 4096) -> None:
        if bins < 2 or sample < 1:
            raise CalibrationError(
                "A histogram needs two bins and a sample.", found=f"bins={bins}, sample={sample}"
            )
        self._bins = bins
        self._sample = sample
        self._exponent = _LEAST_EXPONENT
        self._first = 0  # the index of the first bin: bin i covers [(first + i) * w, (first + i + 1) * w)
        self._counts = np.zeros(bins, np.int64)
        self._offset = 0
        self.zeros = 0
        self.low = math.inf
        self.high = -math.inf

    @property
    def key(self) -> str:
        """Histograms with one key can take each other's state."""
        return f"histogram {self._bins} {self._sample}"

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self._exponent)

    @property
    def total(self) -> int:
        """How many values were counted, zeros included."""
        return int(self._counts.sum()) + self.zeros

    @property
    def empty(self) -> bool:
        """Whether no value was seen."""
        return self.low > self.high

    def update(self, array: np.ndarray, *, weight: int = 1) -> None:
        """Count the values of a float array of any shape, each `weight` times.

        Raises:
            CalibrationError: A value is NaN or infinite.
        """
        flat = np.asarray(array).reshape(-1)
        if flat.dtype != np.float32:
            flat = flat.astype(np.float32)
        if not flat.size:
            return
        step = self._step(flat.size)
        low, high, taken = _scan(flat, step, self._offset)
        # Start elsewhere next time, so that a stride in step with a row does not see one column only.
        self._offset += 7919
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError(
                "A tensor has values that are not finite.",
                expected="finite numbers",
                found=f"least {low}, greatest {high}",
            )
        if low < self.low or high > self.high:
            self.low, self.high = min(self.low, low), max(self.high, high)
            self._cover()
        self._count(taken, weight)

    def merge(self, other: StreamingHistogram) -> None:
        """Add what another histogram with as many bins has counted.

        Raises:
            CalibrationError: The numbers of bins differ.
        """
        if other._bins != self._bins:
            raise CalibrationError(
                "Only histograms with as many bins can be merged.", expected=self._bins, found=other._bins
            )
        if other.empty:
            return
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self._cover()
        index = np.arange(other._bins, dtype=np.int64) + other._first
        index >>= self._exponent - other._exponent  # >= 0: this one covers the other's range
        used = other._counts > 0
        np.add.at(self._counts, index[used] - self._first, other._counts[used])
        self.zeros += other.zeros

    def populated(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the centres (float64) and counts (int64) of the bins that are not empty, without zeros."""
        used = np.flatnonzero(self._counts)
        return (used + self._first + 0.5) * self.width, self._counts[used]

    def bins(self) -> tuple[np.ndarray, np.ndarray]:
        """Return edges (n + 1, float64) and counts (n, int64), from the first used bin to the last."""
        used = np.flatnonzero(self._counts)
        if not used.size:
            return np.zeros(1), np.zeros(0, np.int64)
        start, stop = int(used[0]), int(used[-1]) + 1
        return (np.arange(start, stop + 1) + self._first) * self.width, self._counts[start:stop]

    def state(self) -> dict[str, np.ndarray]:
        """Return everything as arrays; `restore` takes it back."""
        whole = (self._exponent, self._first, self._offset, self.zeros, self._sample)
        return {
            "counts": self._counts.copy(),
            "whole": np.array(whole, np.int64),
            "ends": np.array((self.low, self.high)),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take the state of another histogram with the same key.

        Raises:
            ValueError: It is none of such a histogram.
        """
        counts = state["counts"]
        exponent, first, offset, zeros, sample = map(int, state["whole"])
        low, high = restored_extremes(state["ends"])
        if counts.dtype != np.int64 or counts.shape != (self._bins,) or counts.min() < 0:
            raise ValueError(f"counts of {counts.dtype} {counts.shape}, not {self._bins} numbers of int64")
        if sample != self._sample or offset < 0 or zeros < 0 or not _LEAST_EXPONENT <= exponent <= 128:
            raise ValueError(f"exponent {exponent}, offset {offset}, {zeros} zeros, a sample of {sample}")
        if low > high:
            covered = first == 0 and not counts.any()
        else:
            least, greatest = _index(low, exponent), _index(high, exponent)
            covered = first <= least and greatest < first + self._bins and abs(first) <= 1 << _INDEX_BITS
        if not covered:
            raise ValueError(f"bins from {first} on, of width 2**{exponent}, for values {low} to {high}")
        self._counts = counts.copy()
        self._exponent, self._first, self._offset, self.zeros = exponent, first, offset, zeros
        self.low, self.high = low, high

    def _step(self, size: int) -> int:
        """Return k, odd so that it is not in step with the powers of two that channels come in."""
        step = min(size // self._sample, 64)
        return max(step - 1 + step % 2, 1)

    def _cover(self) -> None:
        """Widen the bins until [low, high] fits."""
        exponent = self._exponent
        if not self._counts.any():  # jump near the width that is needed
            span = max(self.high - self.low, abs(self.low), abs(self.high), 2.0**_LEAST_EXPONENT)
            exponent = max(exponent, math.frexp(span)[1] - max(_INDEX_BITS, self._bins.bit_length()) - 1)
        while not self._fits(exponent):
            exponent += 1
        first, last = _index(self.low, exponent), _index(self.high, exponent)
        if exponent == self._exponent and self._first <= first and last < self._first + self._bins:
            return
        index = np.arange(self._bins, dtype=np.int64) + self._first
        used = np.flatnonzero(self._counts)
        moved = (index[used] >> (exponent - self._exponent)) - first
        counts = np.zeros(self._bins, np.int64)
        np.add.at(counts, moved, self._counts[used])
        self._exponent, self._first, self._counts = exponent, first, counts

    def _fits(self, exponent: int) -> bool:
        first, last = _index(self.low, exponent), _index(self.high, exponent)
        return last - first < self._bins and max(-first, last) < 1 << _INDEX_BITS

    def _count(self, values: np.ndarray, weight: int) -> None:
        zeros = values.size - int(np.count_nonzero(values))
        scaled = values * np.float32(math.ldexp(1.0, -self._exponent))  # exact: a power of two
        np.floor(scaled, out=scaled)
        index = scaled.astype(np.int64)
        index -= self._first
        counts = np.bincount(index, minlength=self._bins)
        if zeros:
            counts[-self._first] -= zeros
            self.zeros += zeros * weight
        self._counts += counts * weight if weight != 1 else counts


def restored_extremes(ends: np.ndarray) -> tuple[float, float]:
    """Return the least and the greatest value from the state of an observer.

    Raises:
        ValueError: They are no numbers in order, and not (inf, -inf), which stands for nothing seen.
    """
    low, high = map(float, ends)
    if (low, high) != (math.inf, -math.inf) and not -math.inf < low <= high < math.inf:
        raise ValueError(f"{low} to {high} are no extremes")
    return low, high


def _index(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _scan(flat: np.ndarray, step: int, offset: int) -> tuple[float, float, np.ndarray]:
    """Return the extremes of all and every `step`-th element, reading memory once."""
    low, high = math.inf, -math.inf
    taken = []
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        least, greatest = float(chunk.min()), float(chunk.max())
        if not (math.isfinite(least) and math.isfinite(greatest)):
            return least, greatest, chunk  # the caller refuses it
        low, high = min(low, least), max(high, greatest)
        taken.append(chunk[(offset - start) % step :: step])
    return low, high, taken[0] if len(taken) == 1 else np.concatenate(taken)
