"""Dtypes of less than a byte, as ONNX lays them out: several values a byte, the first in the lowest bits.

numpy has none of them. `ml_dtypes` gives each value a byte of its own, so what goes to a runtime is packed,
and what comes back is unpacked. Sources: `TensorProto.int32_data` in onnx.proto, and
onnx/docs/docsgen/source/technical/int4.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["bits_of", "is_packed", "pack", "unpack"]

# Bits of one value, by the name of the dtype.
_BITS: Mapping[str, int] = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "float4_e2m1fn": 4}


def is_packed(dtype: np.dtype[Any]) -> bool:
    """Whether runtimes keep several values of the dtype in a byte."""
    return dtype.name in _BITS


def bits_of(dtype: np.dtype[Any]) -> int:
    """Return how many bits of memory one value takes in a runtime."""
    return _BITS.get(dtype.name, 8 * dtype.itemsize)


def pack(array: np.ndarray) -> np.ndarray:
    """Return the values as uint8 of shape (ceil(size * bits / 8),); missing values of the last byte are 0."""
    bits = _BITS[array.dtype.name]
    per_byte = 8 // bits
    values = np.zeros(-(-array.size // per_byte) * per_byte, np.uint8)
    values[: array.size] = array.reshape(-1).view(np.uint8) & ((1 << bits) - 1)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    packed: np.ndarray = np.bitwise_or.reduce(values.reshape(-1, per_byte) << shifts, axis=1)
    return packed


def unpack(packed: np.ndarray, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Return a new array of the shape and dtype from what `pack` returned, in any dtype of one byte."""
    bits = _BITS[dtype.name]
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    size = int(np.prod(shape, dtype=np.int64))
    values = (packed.reshape(-1, 1).view(np.uint8) >> shifts).reshape(-1)[:size] & ((1 << bits) - 1)
    if dtype.name.startswith("int"):  # a byte of ml_dtypes carries the sign in all its upper bits
        sign = 1 << (bits - 1)
        values = (values ^ sign) - sign
    found: np.ndarray = np.ascontiguousarray(values, np.uint8).view(dtype).reshape(shape)
    return found
