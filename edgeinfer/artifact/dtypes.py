"""Element types of ONNX tensors without the `onnx` package: their numbers and their numpy dtypes."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

__all__ = ["ELEMENT_TYPES", "numpy_dtype"]

# Names and numbers of `TensorProto.DataType` (onnx.proto).
ELEMENT_TYPES = {
    "float": 1,
    "uint8": 2,
    "int8": 3,
    "uint16": 4,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "string": 8,
    "bool": 9,
    "float16": 10,
    "double": 11,
    "uint32": 12,
    "uint64": 13,
    "complex64": 14,
    "complex128": 15,
    "bfloat16": 16,
    "float8e4m3fn": 17,
    "float8e4m3fnuz": 18,
    "float8e5m2": 19,
    "float8e5m2fnuz": 20,
    "uint4": 21,
    "int4": 22,
    "float4e2m1": 23,
    "float8e8m0": 24,
    "uint2": 25,
    "int2": 26,
}
_NUMPY = {"float": "float32", "double": "float64", "string": "object"}
_ML_DTYPES = {
    "float8e4m3fn": "float8_e4m3fn",
    "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2",
    "float8e5m2fnuz": "float8_e5m2fnuz",
    "float8e8m0": "float8_e8m0fnu",
    "float4e2m1": "float4_e2m1fn",
}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the numpy dtype of an ONNX element type, or of a numpy or `ml_dtypes` name.

    Args:
        name: Such as `float`, `float32`, `string`, `bfloat16` or `float8e4m3fn`.

    Raises:
        TypeError: There is no such type, or it needs the package `ml_dtypes`, which is not installed.
    """
    plain = _NUMPY.get(name, name)
    try:
        return np.dtype(plain)
    except TypeError:
        pass
    try:
        extension = importlib.import_module("ml_dtypes")
    except ImportError as error:
        raise TypeError(f"the type {name} needs the package ml_dtypes: pip install ml_dtypes") from error
    found = getattr(extension, _ML_DTYPES.get(name, name), None)
    if found is None:
        raise TypeError(f"there is no tensor type {name!r}")
    dtype: np.dtype[Any] = np.dtype(found)
    return dtype
