"""Outputs that stay on the GPU, for `outputs="device"`."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from edgeinfer.backends.tensorrt_.cuda import Cuda
from edgeinfer.backends.tensorrt_.memory import Lease

__all__ = ["DeviceOutput"]


@final
class DeviceOutput:
    """An output in device memory, which belongs to the caller.

    PyTorch (`torch.as_tensor(output)`), CuPy and other sessions read it where it lies, by
    `__cuda_array_interface__`. The memory is given back when nothing refers to this or what was made of it.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        pointer: Its device address.
        device: The CUDA ordinal of the GPU.
    """

    def __init__(self, cuda: Cuda, lease: Lease, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._cuda, self._lease = cuda, lease
        self.dtype, self.shape = dtype, shape
        self.pointer: int = lease.block.address
        self.device = cuda.device

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3; there is no stream to wait for, since `infer` has waited."""
        return {
            "data": (self.pointer, False),
            "shape": self.shape,
            "typestr": self.dtype.str,
            "strides": None,
            "version": 3,
            "stream": None,
        }

    def to_host(self) -> np.ndarray:
        """Return a copy on the host."""
        made = np.empty(self.shape, self.dtype)
        if made.nbytes:
            with self._cuda.current():
                self._cuda.copy_to_host(int(made.ctypes.data), self.pointer, made.nbytes)
        return made

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Copy to the host, for numpy: an explicit `np.asarray(output)`."""
        if copy is False:
            raise ValueError("an output on the GPU cannot become an array without a copy")
        made = self.to_host()
        return made if dtype is None else made.astype(dtype)

    def __repr__(self) -> str:
        return f"<DeviceOutput {self.dtype} {self.shape} on GPU.{self.device}>"
