"""Arrays that lie in device memory, given to a session by `__cuda_array_interface__` or DLPack.

Sources: the CUDA Array Interface (version 3) of Numba's documentation; `dlpack.h` of DLPack 0.8.
"""

from __future__ import annotations

import ctypes
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.errors import InputError

__all__ = ["DeviceArray"]

_CUDA = 2  # kDLCUDA
_LEGACY_STREAM = 1
_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}  # kDLInt, kDLUInt, kDLFloat, kDLBool


@final
@attrs.frozen(kw_only=True)
class DeviceArray:
    """A C-contiguous array in the memory of a CUDA device.

    Attributes:
        pointer: Its device address.
        shape: Its shape.
        dtype: Its dtype.
        stream: The CUDA stream after whose work so far the data is there; 1 is the legacy default stream.
        owner: What keeps the memory alive.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: int = _LEGACY_STREAM
    owner: object = attrs.field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @classmethod
    def of(cls, value: object) -> DeviceArray | None:
        """Return a view of an array in CUDA memory, or None for anything else.

        Raises:
            InputError: It is one, but not C-contiguous, or of a dtype that numpy does not have.
        """
        interface = getattr(value, "__cuda_array_interface__", None)
        if interface is not None:
            made = cls(
                pointer=int(interface["data"][0] or 0),
                shape=tuple(interface["shape"]),
                dtype=np.dtype(interface["typestr"]),
                stream=int(interface.get("stream") or _LEGACY_STREAM),
                owner=value,
            )
            strides = interface.get("strides")
            _check_contiguous(made, tuple(strides) if strides is not None else None)
            return made
        device = getattr(value, "__dlpack_device__", None)
        if device is None or int(device()[0]) != _CUDA:
            return None
        return _of_capsule(value.__dlpack__(stream=_LEGACY_STREAM))  # type: ignore[attr-defined]


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _of_capsule(capsule: object) -> DeviceArray:
    # The capsule stays unconsumed: while it is our `owner` its producer keeps the memory, and its destructor
    # frees it.
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _DLTensor.from_address(get(capsule, b"dltensor"))
    kind = _KINDS.get(tensor.code)
    if kind is None or tensor.lanes != 1 or tensor.bits % 8:
        raise InputError(
            "An input in device memory has a dtype that numpy does not have.",
            found=f"DLPack type code {tensor.code}, {tensor.bits} bits, {tensor.lanes} lanes",
        )
    dtype = np.dtype(f"{kind}{tensor.bits // 8}")
    made = DeviceArray(
        pointer=(tensor.data or 0) + tensor.byte_offset,
        shape=tuple(tensor.shape[axis] for axis in range(tensor.ndim)),
        dtype=dtype,
        owner=capsule,
    )
    strides = (
        tuple(tensor.strides[axis] * dtype.itemsize for axis in range(tensor.ndim))
        if tensor.strides
        else None
    )
    _check_contiguous(made, strides)
    return made


def _check_contiguous(array: DeviceArray, strides: tuple[int, ...] | None) -> None:
    expected = array.dtype.itemsize
    if strides is None or not array.nbytes:
        return
    for size, stride in zip(reversed(array.shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            raise InputError(
                "An input in device memory is not C-contiguous; it is not copied behind your back.",
                expected="C-contiguous",
                found=f"shape {array.shape}, strides {strides} bytes",
                hint="Pass tensor.contiguous() or cupy.ascontiguousarray(array).",
            )
        expected *= size
