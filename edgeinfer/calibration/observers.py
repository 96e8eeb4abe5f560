"""Observers: each watches one tensor while calibration data runs through, and then names a range.

An observer keeps a fixed amount of memory however much it sees. `observe` (see `calibration`) feeds many of
them in one pass; anything with `update(array)` can stand in its place.
"""

from __future__ import annotations

import math
from typing import Protocol, final, runtime_checkable

import numpy as np

from edgeinfer.errors import CalibrationError
from edgeinfer.numerics.histogram import StreamingHistogram, restored_extremes
from edgeinfer.numerics.qparams import DTYPES
from edgeinfer.numerics.ranges import entropy_range, mse_range, percentile_range

__all__ = [
    "METHODS",
    "Estimating",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageObserver",
    "Observer",
    "RangeObserver",
    "RangesObserver",
    "Resumable",
    "Settling",
    "make_observer",
]

_PERCENTILE = 99.99
METHODS = ("minmax", "moving_average", "percentile", "entropy", "mse")


class Observer(Protocol):
    """Whatever can watch a tensor."""

    def update(self, array: np.ndarray, /) -> None:
        """Take in the tensor's value for one feed."""
        ...


class RangeObserver(Observer, Protocol):
    """An observer that names a range per tensor."""

    def range(self) -> tuple[float, float]:
        """Return the least and greatest value to represent.

        Raises:
            CalibrationError: Nothing was seen.
        """
        ...


@runtime_checkable
class Estimating(Protocol):
    """An observer that estimates a distribution, so that it need not see the tensor's value for every feed.

    An observer without this is shown every value.
    """

    def update_weighted(self, array: np.ndarray, weight: int, /) -> None:
        """Take in a value that stands for those of `weight` feeds."""
        ...


@runtime_checkable
class Settling(Protocol):
    """An observer that may come to need no more data."""

    def settled(self, low: float, high: float) -> bool:
        """Return whether nothing can change any more for a tensor that has no values beyond these."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """An observer whose state can be stored and taken back."""

    @property
    def key(self) -> str:
        """Observers with one key can take each other's state."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that was seen, as arrays."""
        ...

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take the state of an observer with the same configuration."""
        ...


@final
class MinMaxObserver:
    """The least and the greatest value seen."""

    def __init__(self) -> None:
        self._low, self._high = math.inf, -math.inf

    @property
    def key(self) -> str:
        """See `Resumable`."""
        return "minmax"

    @property
    def extremes(self) -> tuple[float, float]:
        """The least and the greatest value seen."""
        return self._low, self._high

    def update(self, array: np.ndarray) -> None:
        """Take in an array of any shape."""
        if array.size:
            low, high = finite_extremes(array)
            self._low, self._high = min(self._low, low), max(self._high, high)

    def settled(self, low: float, high: float) -> bool:
        """See `Settling`."""
        return self._low <= low and self._high >= high

    def range(self) -> tuple[float, float]:
        """Return the extremes; see `RangeObserver`."""
        return _seen(self._low, self._high)

    def state(self) -> dict[str, np.ndarray]:
        """See `Resumable`."""
        return {"ends": np.array((self._low, self._high))}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See `Resumable`."""
        self._low, self._high = restored_extremes(state["ends"])


@final
class MovingAverageObserver:
    """The exponential moving average of each update's least and greatest value.

    Args:
        momentum: How much of the old average stays at each update, 0 up to 1.
    """

    def __init__(self, momentum: float = 0.9) -> None:
        if not 0 <= momentum < 1:
            raise CalibrationError(
                "The momentum is out of range.", expected="0 <= momentum < 1", found=momentum
            )
        self._momentum = momentum
        self._average: tuple[float, float] | None = None
        self._low, self._high = math.inf, -math.inf

    @property
    def key(self) -> str:
        """See `Resumable`."""
        return f"moving_average {self._momentum}"

    @property
    def extremes(self) -> tuple[float, float]:
        """The least and the greatest value seen."""
        return self._low, self._high

    def update(self, array: np.ndarray) -> None:
        """Take in an array of any shape."""
        self.update_weighted(array, 1)

    def update_weighted(self, array: np.ndarray, weight: int) -> None:
        """See `Estimating`. The same as `weight` updates."""
        if not array.size:
            return
        low, high = finite_extremes(array)
        self._low, self._high = min(self._low, low), max(self._high, high)
        if self._average is None:
            self._average = low, high
        else:
            m = self._momentum**weight
            self._average = m * self._average[0] + (1 - m) * low, m * self._average[1] + (1 - m) * high

    def range(self) -> tuple[float, float]:
        """Return the averages; see `RangeObserver`."""
        return _seen(*(self._average or (math.inf, -math.inf)))

    def state(self) -> dict[str, np.ndarray]:
        """See `Resumable`."""
        return {"ends": np.array((self._low, self._high)), "average": np.array(self._average or ())}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See `Resumable`."""
        self._low, self._high = restored_extremes(state["ends"])
        self._average = restored_extremes(state["average"]) if state["average"].size else None


@final
class HistogramObserver:
    """A streaming histogram, and one of three ways to choose a range from it.

    Args:
        method: "percentile", "entropy" or "mse"; see `edgeinfer.numerics.ranges`.
        dtype: The type that the tensor will be quantized to.
        symmetric: Whether the zero point stays in the middle.
        percentile: How many percent of the values the method "percentile" keeps.
        bins: The number of bins.
        sample: See `StreamingHistogram`.
    """

    def __init__(
        self,
        method: str = "mse",
        *,
        dtype: str = "uint8",
        symmetric: bool = False,
        percentile: float = _PERCENTILE,
        bins: int = 2048,
        sample: int = 4096,
    ) -> None:
        _known("method", method, ("percentile", "entropy", "mse"))
        _known("dtype", dtype, tuple(DTYPES))
        if not 50 < percentile <= 100:
            raise CalibrationError("The percentile is out of range.", expected="50 to 100", found=percentile)
        self._method = method
        self._dtype = dtype
        self._symmetric = symmetric
        self._percentile = percentile
        self.histogram = StreamingHistogram(bins, sample=sample)

    @property
    def key(self) -> str:
        """See `Resumable`. How a range is chosen is left out: it does not change what is stored."""
        return self.histogram.key

    @property
    def extremes(self) -> tuple[float, float]:
        """The least and the greatest value seen."""
        return self.histogram.low, self.histogram.high

    def update(self, array: np.ndarray) -> None:
        """Take in an array of any shape."""
        self.histogram.update(array)

    def update_weighted(self, array: np.ndarray, weight: int) -> None:
        """See `Estimating`."""
        self.histogram.update(array, weight=weight)

    def range(self) -> tuple[float, float]:
        """Return the range that the method chooses; see `RangeObserver`."""
        _seen(self.histogram.low, self.histogram.high)
        if self._method == "percentile":
            return percentile_range(self.histogram, self._percentile, self._symmetric)
        choose = mse_range if self._method == "mse" else entropy_range
        return choose(self.histogram, self._dtype, self._symmetric)

    def state(self) -> dict[str, np.ndarray]:
        """See `Resumable`."""
        return self.histogram.state()

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See `Resumable`."""
        self.histogram.restore(state)


@final
class RangesObserver:
    """A histogram and the exact extremes, from which a range by each method can be had.

    It must see every value, which a `HistogramObserver` need not.
    """

    def __init__(self) -> None:
        self.histogram = StreamingHistogram()
        self._chosen: dict[tuple[str, str, bool], tuple[float, float]] = {}

    @property
    def key(self) -> str:
        """See `Resumable`."""
        return f"ranges {self.histogram.key}"

    @property
    def extremes(self) -> tuple[float, float]:
        """The least and the greatest value seen."""
        return self.histogram.low, self.histogram.high

    def update(self, array: np.ndarray) -> None:
        """Take in an array of any shape."""
        self.histogram.update(array)
        self._chosen.clear()

    def by(self, method: str, *, dtype: str, symmetric: bool) -> tuple[float, float]:
        """Return the range that a method chooses; "moving_average" is not among them."""
        _known("method", method, ("minmax", "percentile", "entropy", "mse"))
        key = method, dtype, symmetric
        if key not in self._chosen:
            self._chosen[key] = self._choose(*key)
        return self._chosen[key]

    def _choose(self, method: str, dtype: str, symmetric: bool) -> tuple[float, float]:
        extremes = _seen(*self.extremes)
        if method == "minmax":
            return extremes
        if method == "percentile":
            return percentile_range(self.histogram, _PERCENTILE, symmetric)
        choose = mse_range if method == "mse" else entropy_range
        return choose(self.histogram, dtype, symmetric)

    def state(self) -> dict[str, np.ndarray]:
        """See `Resumable`."""
        return self.histogram.state()

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See `Resumable`."""
        self.histogram.restore(state)
        self._chosen.clear()


def make_observer(method: str, *, dtype: str = "uint8", symmetric: bool = False) -> RangeObserver:
    """Return an observer of one tensor.

    Args:
        method: One of `METHODS`.
        dtype: The type that the tensor will be quantized to.
        symmetric: Whether the zero point stays in the middle.

    Raises:
        CalibrationError: The method or the type is unknown.
    """
    _known("method", method, METHODS)
    _known("dtype", dtype, tuple(DTYPES))
    if method == "minmax":
        return MinMaxObserver()
    if method == "moving_average":
        return MovingAverageObserver()
    return HistogramObserver(method, dtype=dtype, symmetric=symmetric)


def finite_extremes(array: np.ndarray) -> tuple[float, float]:
    """Return the least and the greatest value.

    Raises:
        CalibrationError: A value is NaN or infinite.
    """
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise CalibrationError(
            "A tensor has values that are not finite.",
            expected="finite numbers",
            found=f"least {low}, greatest {high}",
        )
    return low, high


def _seen(low: float, high: float) -> tuple[float, float]:
    if low > high:
        raise CalibrationError(
            "An observer has seen no values.", hint="Run `observe` with at least one sample first."
        )
    return low, high


def _known(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise CalibrationError(f"There is no such {what}.", expected=" or ".join(choices), found=repr(value))
