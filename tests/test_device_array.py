"""Arrays in device memory, from hand-made interfaces: no GPU is touched, only addresses are read."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from edgeinfer.artifact.device_array import DeviceArray, _DLTensor
from edgeinfer.artifact.inputs import InputValidator
from edgeinfer.artifact.signature import Signature, TensorSpec
from edgeinfer.errors import InputError


class Interface:
    def __init__(self, **fields: object) -> None:
        self.__cuda_array_interface__ = {
            "data": (4096, False),
            "shape": (2, 3),
            "typestr": "<f4",
            "version": 3,
            **fields,
        }


class DLPack:
    """What PyTorch's `__dlpack__` gives, with made-up addresses."""

    def __init__(
        self, *, device: int = 2, code: int = 2, bits: int = 32, strides: tuple[int, ...] | None = None
    ):
        self._shape = (ctypes.c_int64 * 2)(2, 3)
        self._strides = (ctypes.c_int64 * 2)(*strides) if strides else None
        self._tensor = _DLTensor(
            data=4096,
            device_type=device,
            ndim=2,
            code=code,
            bits=bits,
            lanes=1,
            shape=ctypes.cast(self._shape, ctypes.POINTER(ctypes.c_int64)),
            strides=ctypes.cast(self._strides, ctypes.POINTER(ctypes.c_int64)) if self._strides else None,
            byte_offset=64,
        )
        self._device = device
        self.streams: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device, 0

    def __dlpack__(self, stream: int | None = None) -> object:
        self.streams.append(stream or 0)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self._tensor), b"dltensor", None)


def test_the_cuda_array_interface_is_read() -> None:
    owner = Interface(stream=7)
    found = DeviceArray.of(owner)
    assert found == DeviceArray(pointer=4096, shape=(2, 3), dtype=np.dtype(np.float32), stream=7, owner=owner)
    assert found.nbytes == 24


@pytest.mark.parametrize("stream", [None, 1])
def test_without_a_stream_the_legacy_default_stream_counts(stream: int | None) -> None:
    found = DeviceArray.of(Interface(stream=stream))
    assert found is not None
    assert found.stream == 1


def test_dlpack_is_read_and_its_producer_is_told_the_stream() -> None:
    producer = DLPack()
    found = DeviceArray.of(producer)
    assert found is not None
    assert (found.pointer, found.shape, found.dtype) == (4096 + 64, (2, 3), np.float32)
    assert producer.streams == [1]
    assert DeviceArray.of(DLPack(strides=(3, 1))) is not None


@pytest.mark.parametrize("value", [np.zeros(3), [1, 2], DLPack(device=1)])
def test_what_is_on_the_host_is_none(value: object) -> None:
    assert DeviceArray.of(value) is None


@pytest.mark.parametrize("value", [Interface(strides=(4, 8)), DLPack(strides=(1, 2))])
def test_what_is_not_contiguous_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="not C-contiguous"):
        DeviceArray.of(value)


def test_a_stride_of_an_axis_of_one_does_not_count() -> None:
    assert DeviceArray.of(Interface(shape=(1, 3), strides=(999, 4))) is not None


def test_a_dtype_that_numpy_does_not_have_is_refused() -> None:
    with pytest.raises(InputError, match="dtype that numpy does not have"):
        DeviceArray.of(DLPack(code=4, bits=16))  # bfloat16


def test_only_a_runner_that_takes_them_gets_them() -> None:
    spec = TensorSpec(name="x", dtype=np.float32, shape=("N", 3))
    signature = Signature(inputs=(spec,), outputs=(spec,))
    taken = InputValidator(signature, device_arrays=True).check({"x": DLPack()})
    assert isinstance(taken["x"], DeviceArray)
    with pytest.raises(InputError, match="wrong shape"):
        InputValidator(signature, device_arrays=True).check({"x": Interface(shape=(2, 4))})
