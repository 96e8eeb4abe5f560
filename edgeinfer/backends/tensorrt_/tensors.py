"""The inputs and outputs of an engine: what TensorRT calls their dtypes, and what the signature does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import attrs
import ml_dtypes
import numpy as np

from edgeinfer.artifact.device_array import DeviceArray
from edgeinfer.backends.tensorrt_.cuda import Cuda
from edgeinfer.errors import ArtifactFormatError, InputError

__all__ = ["DTYPES", "EngineTensor", "check_place", "check_range", "read_tensors"]

_DEVICE_MEMORY = (2, 3)  # cudaMemoryTypeDevice, cudaMemoryTypeManaged

# By the name of TensorRT's DataType. What is missing has less than a byte an element (INT4, FP4), or is a
# scale alone (E8M0).
DTYPES: Mapping[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "FP8": ml_dtypes.float8_e4m3fn,
}
# What TensorRT narrows: int64 before version 10, float64 always.
_NARROWED = {np.dtype(np.int64): np.dtype(np.int32), np.dtype(np.float64): np.dtype(np.float32)}


@final
@attrs.frozen(kw_only=True)
class EngineTensor:
    """An input or output of an engine.

    Attributes:
        name: Its name, that of the ONNX tensor.
        dtype: What the engine reads or writes.
        public_dtype: What the model's signature says: int64 where TensorRT 8 has int32, and float64 where
            TensorRT has float32.
        is_shape: Its values decide shapes, so they stay on the host.
    """

    name: str
    dtype: np.dtype[Any]
    public_dtype: np.dtype[Any]
    is_shape: bool = False

    @property
    def is_converted(self) -> bool:
        """Whether values are converted on their way in or out."""
        return self.dtype != self.public_dtype


def read_tensors(engine: Any, declared: Sequence[tuple[str, str]]) -> tuple[EngineTensor, ...]:
    """Return the declared tensors that the engine has; it drops inputs that nothing reads.

    Raises:
        ArtifactFormatError: The engine has a tensor of another dtype than was declared.
    """
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    return tuple(_tensor(engine, name, dtype) for name, dtype in declared if name in names)


def _tensor(engine: Any, name: str, declared: str) -> EngineTensor:
    found = engine.get_tensor_dtype(name).name
    try:
        public = np.dtype(getattr(ml_dtypes, declared, declared))
    except TypeError:
        public = np.dtype(object)
    dtype = np.dtype(DTYPES[found]) if found in DTYPES else np.dtype(object)
    if object in (dtype, public) or (dtype != public and _NARROWED.get(public) != dtype):
        raise ArtifactFormatError(
            "The engine and its record do not agree on a dtype.",
            where=f"tensor {name!r}",
            expected=declared,
            found=found,
            hint="Compile the model again.",
        )
    shape = bool(engine.is_shape_inference_io(name))
    return EngineTensor(name=name, dtype=dtype, public_dtype=public, is_shape=shape)


def check_range(tensor: EngineTensor, array: np.ndarray) -> None:
    """Refuse values that the engine's narrower dtype does not hold.

    Raises:
        InputError: There are some; infinite and NaN values pass.
    """
    if not tensor.is_converted or not array.size:
        return
    if tensor.dtype.kind == "f":
        low, high = -float(np.finfo(tensor.dtype).max), float(np.finfo(tensor.dtype).max)
        array = array[np.isfinite(array)]
    else:
        low, high = np.iinfo(tensor.dtype).min, np.iinfo(tensor.dtype).max
    if array.size and (array.min() < low or array.max() > high):
        raise InputError(
            f"This TensorRT computes in {tensor.dtype}, and a value does not fit.",
            where=f"input {tensor.name!r}",
            expected=f"{low} to {high}",
            found=f"{array.min()} to {array.max()}",
        )


def check_place(cuda: Cuda, tensor: EngineTensor, array: DeviceArray) -> None:
    """Refuse an array in device memory that the engine cannot read where it lies.

    Raises:
        InputError: With the reason. A wrong address would end all CUDA in this process.
    """
    if array.dtype != tensor.dtype or tensor.is_shape:
        raise InputError(
            "This input cannot be read where it lies in device memory.",
            where=f"input {tensor.name!r}",
            expected=f"{tensor.dtype} on the {'host' if tensor.is_shape else 'device'}",
            found=f"{array.dtype} on the device",
            hint="Pass it as a numpy array.",
        )
    if not array.nbytes:
        return
    found = cuda.call("cudaPointerGetAttributes", array.pointer)
    if int(found.type) not in _DEVICE_MEMORY:
        raise InputError(
            "An input that says so is not in the memory of a GPU.",
            where=f"input {tensor.name!r}",
            found=f"address {array.pointer:#x}",
            hint="Its owner may have freed it already.",
        )
    if found.device != cuda.device:
        raise InputError(
            "An input lies on another GPU than the session's.",
            where=f"input {tensor.name!r}",
            expected=f"GPU.{cuda.device}",
            found=f"GPU.{found.device}",
            hint=f"Move it there first: tensor.to('cuda:{cuda.device}').",
        )
