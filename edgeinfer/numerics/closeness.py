"""How close one tensor is to another, accumulated over any number of batches in constant memory.

All sums are in float64. With reference a and candidate b:

- SQNR = 10 log10(Σ a² / Σ (a - b)²) in dB: infinite for equal tensors, minus infinite for nothing in common
  with a reference of zeros, or when b has NaN or infinity where a has none.
- cosine = Σ ab / √(Σ a² Σ b²).
- max abs = max |a - b|; mean abs = mean |a - b|.
- top-1 agreement = the share of rows (all axes but the last) whose argmax is the same.
"""

from __future__ import annotations

import math
from typing import final

import attrs
import numpy as np

__all__ = ["Closeness", "ClosenessAccumulator"]

# Elements at a time: float64 copies of this many stay in the cache, and memory stays flat.
_BLOCK = 1 << 15


@final
@attrs.frozen(kw_only=True)
class Closeness:
    """How close a candidate tensor is to its reference.

    Attributes:
        sqnr_db: Signal-to-quantization-noise ratio in dB.
        cosine: Cosine similarity, -1 to 1.
        max_abs: Largest absolute difference.
        mean_abs: Mean absolute difference.
        top1_agreement: Share of rows with the same argmax, or None where the last axis is not classes.
        elements: How many elements were compared.
        reference_rms: Root mean square of the reference, to judge the absolute figures by.
    """

    sqnr_db: float
    cosine: float
    max_abs: float
    mean_abs: float
    top1_agreement: float | None = None
    elements: int
    reference_rms: float

    def describe(self) -> str:
        """Return one line for people."""
        top1 = "" if self.top1_agreement is None else f", top-1 agreement {self.top1_agreement:.2%}"
        return f"SQNR {self.sqnr_db:.1f} dB, cosine {self.cosine:.6f}, max abs {self.max_abs:.3g}{top1}"


@final
class ClosenessAccumulator:
    """Collects pairs of tensors; `result()` says how close they are over all of them.

    Args:
        classes: Whether the last axis holds classes, so that the argmax means something.
    """

    def __init__(self, *, classes: bool = False) -> None:
        self._classes = classes
        self._signal = self._noise = self._dot = self._other = self._abs = self._max = 0.0
        self._count = self._rows = self._agree = 0

    def update(self, reference: np.ndarray, candidate: np.ndarray) -> None:
        """Add one pair of the same shape, of any numeric or boolean dtype."""
        a, b = np.asarray(reference), np.asarray(candidate)
        if self._classes and a.ndim and a.shape[-1]:
            same = a.argmax(-1) == b.argmax(-1)
            self._rows += same.size
            self._agree += int(same.sum())
        a, b = a.ravel(), b.ravel()
        for start in range(0, a.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            self._add(a[block].astype(np.float64), b[block].astype(np.float64))

    def _add(self, a: np.ndarray, b: np.ndarray) -> None:
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            difference = a - b
        noise = float(difference @ difference)
        if not math.isfinite(noise):
            a, b = self._without_specials(a, b)
            difference = a - b
            noise = float(difference @ difference)
        np.abs(difference, out=difference)
        self._signal += float(a @ a)
        self._other += float(b @ b)
        self._dot += float(a @ b)
        self._noise += noise
        self._abs += float(difference.sum())
        self._max = max(self._max, float(difference.max(initial=0.0)))
        self._count += a.size

    def _without_specials(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return both with zeros where either is NaN or infinite, after judging whether they agree there."""
        special = ~(np.isfinite(a) & np.isfinite(b))
        agree = (a == b) | (np.isnan(a) & np.isnan(b))
        if (special & ~agree).any():
            self._noise = self._max = self._abs = math.inf
        return np.where(special, 0.0, a), np.where(special, 0.0, b)

    def result(self) -> Closeness:
        """Return the figures over all pairs so far."""
        norms = math.sqrt(self._signal) * math.sqrt(self._other)
        if norms:
            cosine = max(-1.0, min(1.0, self._dot / norms))
        else:
            cosine = 1.0 if self._signal == self._other else 0.0
        return Closeness(
            sqnr_db=_sqnr_db(self._signal, self._noise),
            cosine=cosine,
            max_abs=self._max,
            mean_abs=self._abs / self._count if self._count else 0.0,
            top1_agreement=self._agree / self._rows if self._rows else None,
            elements=self._count,
            reference_rms=math.sqrt(self._signal / self._count) if self._count else 0.0,
        )


def _sqnr_db(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    if signal == 0.0 or math.isinf(noise):
        return -math.inf
    return 10.0 * math.log10(signal / noise)
