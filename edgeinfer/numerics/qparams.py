"""The algebra of linear quantization: scales, zero points, rounding. Pure numpy.

The semantics are those of ONNX `QuantizeLinear` and `DequantizeLinear` (opset 21):

    quantize(x)   = saturate(round_half_to_even(x / scale) + zero_point)
    dequantize(q) = (q - zero_point) * scale

with one scale a tensor, one for each slice along `axis`, or one for each block of `block_size` elements
along `axis`.
"""

from __future__ import annotations

from typing import Any, final

import attrs
import ml_dtypes
import numpy as np

from edgeinfer.errors import CalibrationError

__all__ = ["DTYPES", "QParams", "activation_qparams", "range_qparams", "storage_dtype", "weight_qparams"]

# The name of each quantized type: its numpy type and its least and greatest value.
DTYPES: dict[str, tuple[np.dtype[Any], float, float]] = {
    "int8": (np.dtype(np.int8), -128, 127),
    "uint8": (np.dtype(np.uint8), 0, 255),
    "int16": (np.dtype(np.int16), -32768, 32767),
    "uint16": (np.dtype(np.uint16), 0, 65535),
    "int4": (np.dtype(ml_dtypes.int4), -8, 7),
    "uint4": (np.dtype(ml_dtypes.uint4), 0, 15),
    "float8e4m3fn": (np.dtype(ml_dtypes.float8_e4m3fn), -448, 448),
}

# Below the least normal number runtimes may flush to zero, and dividing by it would give infinity.
_MIN_SCALE = float(np.finfo(np.float32).tiny)
# A range a little under the greatest number, so that rounding a zero point cannot push an end to infinity.
_MAX_RANGE = float(np.finfo(np.float32).max) * 0.99


@final
@attrs.frozen(kw_only=True, eq=False)
class QParams:
    """How one tensor is quantized.

    Attributes:
        scale: float32: a scalar; or one entry for each slice along `axis`; or, with `block_size`, the shape
            of the tensor with the size of `axis` divided by it (rounded up).
        zero_point: Of the type that `dtype` names and the shape of `scale`.
        dtype: A key of `DTYPES`, the name that ONNX gives the type, in lower case.
        axis: The axis that the scales run along; None for one scale.
        block_size: How many elements along `axis` share a scale; None for whole slices.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    dtype: str = attrs.field(validator=attrs.validators.in_(DTYPES))
    axis: int | None = None
    block_size: int | None = None

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Return `x` (float) in the quantized type. NaN has no quantized value: do not pass it."""
        return self._levels(x).astype(DTYPES[self.dtype][0])

    def dequantize(self, q: np.ndarray) -> np.ndarray:
        """Return the float32 values that `q` stands for."""
        shifted = np.asarray(q).astype(np.float32)
        shifted -= self._spread(self.zero_point.astype(np.float32), shifted.shape)
        shifted *= self._spread(self.scale, shifted.shape)
        return shifted

    def fake_quantize(self, x: np.ndarray) -> np.ndarray:
        """Return `dequantize(quantize(x))`, without the detour through the quantized type."""
        return self.dequantize(self._levels(x))

    def _levels(self, x: np.ndarray) -> np.ndarray:
        """Return the quantized values as float32 (all of them are exact in it)."""
        storage, low, high = DTYPES[self.dtype]
        x = np.asarray(x, np.float32)
        with np.errstate(over="ignore"):  # overflow saturates below
            levels = np.asarray(x / self._spread(self.scale, x.shape))
        if storage.kind in "iu" or self.dtype.endswith("int4"):
            np.rint(levels, out=levels)
            levels += self._spread(self.zero_point.astype(np.float32), x.shape)
            return np.clip(levels, low, high, out=levels)
        np.clip(levels, low, high, out=levels)
        return levels.astype(storage).astype(np.float32)

    def _spread(self, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Give `values` a shape that broadcasts against a tensor of `shape`."""
        if self.axis is None:
            return values.reshape(())
        if self.block_size is not None:
            repeated = np.repeat(values, self.block_size, axis=self.axis)
            return np.take(repeated, range(shape[self.axis]), axis=self.axis)
        sizes = [1] * len(shape)
        sizes[self.axis] = -1
        return values.reshape(sizes)


def storage_dtype(dtype: str) -> np.dtype[Any]:
    """Return the numpy type of the quantized type called `dtype`."""
    return DTYPES[dtype][0]


def activation_qparams(
    low: float, high: float, dtype: str, symmetric: bool, *, reduce_range: bool = False
) -> QParams:
    """Return the parameters of an activation whose values lie in [low, high].

    Args:
        low: The least value. The range is widened to contain 0, which so has an exact representation
            (padding and ReLU need it).
        high: The greatest value.
        dtype: A key of `DTYPES`.
        symmetric: The zero point stays in the middle: 0 for signed types, 128 for uint8.
        reduce_range: Leave out one bit; on CPUs without VNNI, sums of two products of 8-bit numbers
            saturate at 16 bits otherwise.

    Raises:
        CalibrationError: An end is NaN or infinite, or `low` is greater than `high`.
    """
    return range_qparams(np.float64(low), np.float64(high), dtype, symmetric, reduce_range=reduce_range)


def weight_qparams(
    weight: np.ndarray,
    axis: int | None,
    dtype: str,
    symmetric: bool,
    *,
    block_size: int | None = None,
    reduce_range: bool = False,
) -> QParams:
    """Return the parameters of a weight by its least and greatest values.

    Args:
        weight: The weight, any shape.
        axis: The axis with one scale a slice (0 for Conv); None for one scale. With `block_size`, the axis
            that is cut into blocks.
        dtype: A key of `DTYPES`.
        symmetric: The zero point stays in the middle.
        block_size: Elements along `axis` that share a scale.
        reduce_range: Leave out one bit; see `activation_qparams`.

    Raises:
        CalibrationError: The weight has NaN or infinity.
    """
    weight = np.asarray(weight, np.float32)
    if axis is None:
        low, high = _extremes(weight.reshape(1, -1), 1)
        low, high = low[0], high[0]
    else:
        axis %= weight.ndim
        if block_size is None:
            low, high = _extremes(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1), 1)
        else:
            size = weight.shape[axis]
            blocks = -(-size // block_size)
            pads = [(0, blocks * block_size - size if i == axis else 0) for i in range(weight.ndim)]
            shape = (*weight.shape[:axis], blocks, block_size, *weight.shape[axis + 1 :])
            low, high = _extremes(np.pad(weight, pads).reshape(shape), axis + 1)
    return range_qparams(
        low, high, dtype, symmetric, axis=axis, block_size=block_size, reduce_range=reduce_range
    )


def range_qparams(
    low: np.ndarray | np.floating[Any],
    high: np.ndarray | np.floating[Any],
    dtype: str,
    symmetric: bool,
    *,
    axis: int | None = None,
    block_size: int | None = None,
    reduce_range: bool = False,
) -> QParams:
    """Return the parameters that cover [low, high], element by element.

    A slice with the range [0, 0] has any scale that one likes. It gets the greatest of the others, so that
    an int32 bias with the scale `input scale * weight scale` keeps its precision for a channel whose weights
    are all zero; 1 when all are zero.

    Args:
        low: The least value of each slice.
        high: The greatest value of each slice.
        dtype: A key of `DTYPES`.
        symmetric: The zero point stays in the middle.
        axis: As in `QParams`.
        block_size: As in `QParams`.
        reduce_range: Leave out one bit.

    Raises:
        CalibrationError: An end is NaN or infinite, or `low` is greater than `high`.
    """
    low64, high64 = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if not (np.isfinite(low64).all() and np.isfinite(high64).all() and (low64 <= high64).all()):
        raise CalibrationError(
            "A range to quantize is not a range.",
            expected="finite numbers, low <= high",
            found=f"low {low}, high {high}",
            hint="Look for NaN or infinity in the weights or in the calibration data.",
        )
    low64 = np.clip(low64, -_MAX_RANGE, 0)
    high64 = np.clip(high64, 0, _MAX_RANGE)
    least, greatest = _levels_of(dtype, reduce_range)
    middle = 0.0 if least < 0 else (greatest + 1) / 2
    if symmetric or dtype.startswith("float"):
        scale64 = np.maximum(-low64, high64) / (greatest - middle)
    else:
        scale64 = (high64 - low64) / (greatest - least)
    empty = scale64 == 0
    spare = scale64.max(initial=0.0) or 1.0
    scale = np.asarray(np.maximum(np.where(empty, spare, scale64), _MIN_SCALE), np.float32)
    if symmetric or dtype.startswith("float"):
        zero = np.full(scale.shape, middle)
    else:
        zero = np.clip(np.rint(least - low64 / scale.astype(np.float64)), least, greatest)
    return QParams(
        scale=scale,
        zero_point=np.asarray(zero).astype(storage_dtype(dtype)),
        dtype=dtype,
        axis=axis,
        block_size=block_size,
    )


def _levels_of(dtype: str, reduce_range: bool) -> tuple[float, float]:
    _, least, greatest = DTYPES[dtype]
    if not reduce_range or dtype.startswith("float"):
        return least, greatest
    # Seven bits, -64..64 and 0..127, as ONNX Runtime has it. The odd level is harmless: 255 * 64 * 2 < 2**15.
    return (least / 2, -least / 2) if least < 0 else (0, (greatest - 1) / 2)


def _extremes(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    return values.min(axis=axis, initial=0), values.max(axis=axis, initial=0)
