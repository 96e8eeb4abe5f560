"""Observers per channel: mean, range and greatest magnitude."""

from __future__ import annotations

from typing import final

import numpy as np

from edgeinfer.errors import CalibrationError

__all__ = ["ChannelMagnitudeObserver", "ChannelMeanObserver", "ChannelRangeObserver", "SampleObserver"]


def _by_channel(array: np.ndarray, axis: int) -> np.ndarray:
    """Return a view or copy (other elements in front, channels, other elements behind), float32."""
    array = np.asarray(array, np.float32)
    axis %= array.ndim
    front = int(np.prod(array.shape[:axis], dtype=np.int64))
    return array.reshape(front, array.shape[axis], -1)


@final
class ChannelMeanObserver:
    """E[y] for each channel: what bias correction needs (Nagel et al. 2019, section 4.2).

    Args:
        axis: The channel axis: 1 for Conv; -1 for MatMul and Gemm.
    """

    def __init__(self, axis: int = 1) -> None:
        self._axis = axis
        self._sum: np.ndarray | None = None
        self.count = 0

    @property
    def key(self) -> str:
        """See `Resumable`."""
        return f"channel mean {self._axis}"

    def update(self, array: np.ndarray) -> None:
        """Take in an array with the channels along `axis`.

        Raises:
            CalibrationError: A value is NaN or infinite.
        """
        values = _by_channel(array, self._axis)
        sums = values.sum(axis=2).sum(axis=0, dtype=np.float64)
        _refuse_not_finite(sums)
        self._sum = sums if self._sum is None else self._sum + sums
        self.count += values.shape[0] * values.shape[2]

    @property
    def mean(self) -> np.ndarray:
        """The mean of each channel, float64 (channels,)."""
        return _seen(self._sum) / max(self.count, 1)

    def state(self) -> dict[str, np.ndarray]:
        """See `Resumable`."""
        return {"sum": _seen(self._sum).copy(), "count": np.array(self.count)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See `Resumable`."""
        self._sum, self.count = state["sum"], int(state["count"])


@final
class ChannelRangeObserver:
    """The least and the greatest value of each channel.

    Args:
        axis: The channel axis.
    """

    def __init__(self, axis: int = 1) -> None:
        self._axis = axis
        self._low: np.ndarray | None = None
        self._high: np.ndarray | None = None

    @property
    def key(self) -> str:
        """See `Resumable`."""
        return f"channel range {self._axis}"

    def update(self, array: np.ndarray) -> None:
        """Take in an array with the channels along `axis`.

        Raises:
            CalibrationError: A value is NaN or infinite.
        """
        values = _by_channel(array, self._axis)
        if not values.size:
            return
        low, high = values.min(axis=2).min(axis=0), values.max(axis=2).max(axis=0)
        _refuse_not_finite(low, high)
        self._low = low if self._low is None else np.minimum(self._low, low)
        self._high = high if self._high is None else np.maximum(self._high, high)

    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the least and the greatest values, float32 (channels,) each."""
        return _seen(self._low), _seen(self._high)

    def state(self) -> dict[str, np.ndarray]:
        """See `Resumable`."""
        return {"low": _seen(self._low).copy(), "high": _seen(self._high).copy()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See `Resumable`."""
        self._low, self._high = state["low"], state["high"]


@final
class ChannelMagnitudeObserver:
    """max |x| and E[x^2] of each channel: what SmoothQuant needs (Xiao et al. 2023, equation 4).

    Args:
        axis: The channel axis: the last for the input of a MatMul.
    """

    def __init__(self, axis: int = -1) -> None:
        self._axis = axis
        self._ranges = ChannelRangeObserver(axis)
        self._squares: np.ndarray | None = None
        self._count = 0

    @property
    def key(self) -> str:
        """See `Resumable`."""
        return f"channel magnitude {self._axis}"

    def update(self, array: np.ndarray) -> None:
        """Take in an array with the channels along `axis`.

        Raises:
            CalibrationError: A value is NaN or infinite.
        """
        self._ranges.update(array)
        values = _by_channel(array, self._axis)
        squares = np.einsum("acb,acb->c", values, values, dtype=np.float64)
        self._squares = squares if self._squares is None else self._squares + squares
        self._count += values.shape[0] * values.shape[2]

    @property
    def abs_max(self) -> np.ndarray:
        """The greatest magnitude of each channel, float32 (channels,)."""
        low, high = self._ranges.range()
        return np.asarray(np.maximum(-low, high))

    @property
    def mean_square(self) -> np.ndarray:
        """The mean of the squares of each channel, float64 (channels,)."""
        return _seen(self._squares) / max(self._count, 1)

    def state(self) -> dict[str, np.ndarray]:
        """See `Resumable`."""
        return {
            **self._ranges.state(),
            "squares": _seen(self._squares).copy(),
            "count": np.array(self._count),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See `Resumable`."""
        self._ranges.restore(state)
        self._squares, self._count = state["squares"], int(state["count"])


@final
class SampleObserver:
    """The sums of the rows along the first axis, and of their squares: the mean, and how samples vary.

    Attributes:
        count: How many rows were seen.
    """

    def __init__(self) -> None:
        self._sums: np.ndarray | None = None
        self.count = 0

    @property
    def key(self) -> str:
        """See `Resumable`."""
        return "samples"

    @property
    def total(self) -> np.ndarray:
        """The sums, float64 (elements of a row,)."""
        return np.asarray(_seen(self._sums)[0])

    @property
    def squares(self) -> np.ndarray:
        """The sums of the squares, float64 (elements of a row,)."""
        return np.asarray(_seen(self._sums)[1])

    def update(self, array: np.ndarray) -> None:
        """Take in an array with the samples along the first axis."""
        rows = array.reshape(len(array), -1).astype(np.float64)
        sums = np.stack([rows.sum(axis=0), (rows**2).sum(axis=0)])
        self._sums = sums if self._sums is None else self._sums + sums
        self.count += len(rows)

    def state(self) -> dict[str, np.ndarray]:
        """See `Resumable`."""
        return {"sums": _seen(self._sums).copy(), "count": np.array(self.count)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """See `Resumable`."""
        self._sums, self.count = state["sums"], int(state["count"])


def _refuse_not_finite(*arrays: np.ndarray) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise CalibrationError("A tensor has values that are not finite.", expected="finite numbers")


def _seen(array: np.ndarray | None) -> np.ndarray:
    if array is None:
        raise CalibrationError("An observer per channel has seen no values.")
    return array
