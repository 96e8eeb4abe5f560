"""Where an input or output of an engine lies during a run."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from edgeinfer.backends.tensorrt_.cuda import Cuda
from edgeinfer.backends.tensorrt_.memory import DeviceBlock, HostBlock
from edgeinfer.backends.tensorrt_.tensors import EngineTensor
from edgeinfer.errors import InferenceError

__all__ = ["Place", "allocator"]


@final
class Place:
    """Where a tensor lies during a run, on the device and the host.

    Attributes:
        tensor: The tensor.
        host: Page-locked memory on the host, made when it is needed.
        device: Memory on the device; None of tensors that decide shapes.
        shape: The shape of this run.
        nbytes: The size of this run.
        view: `host` as an array of that shape, in the engine's dtype.
        inline: It is copied by way of `host` within the CUDA graph.
        dynamic: Its shape is known only after the run.
        error: Why there was no room for it while the inference ran.
    """

    __slots__ = (
        "_cuda",
        "device",
        "dynamic",
        "error",
        "host",
        "inline",
        "nbytes",
        "shape",
        "tensor",
        "view",
    )

    def __init__(self, cuda: Cuda, tensor: EngineTensor) -> None:
        self._cuda, self.tensor = cuda, tensor
        self.host: HostBlock | None = None
        self.device: DeviceBlock | None = None
        self.shape: tuple[int, ...] = ()
        self.nbytes = 0
        self.view: np.ndarray = np.empty(0, tensor.dtype)
        self.inline = True
        self.dynamic = False
        self.error: InferenceError | None = None

    def fit(self, shape: tuple[int, ...], *, small: int | None) -> None:
        """Make room for a shape; `small` is the size up to which it is inline, None for any."""
        self.settle(shape)
        self.inline = small is None or self.nbytes <= small
        if not self.tensor.is_shape:
            self.need_device(self.nbytes)
        if self.inline or self.tensor.is_shape:
            self.need_host()

    def settle(self, shape: tuple[int, ...]) -> None:
        """Take the shape as it is, with the memory that there is."""
        count = 1
        for size in shape:
            count *= size
        self.shape, self.nbytes = shape, count * self.tensor.dtype.itemsize

    def need_host(self) -> HostBlock:
        """Return the slot's own host memory, which is made when it is needed first."""
        if self.host is None or self.host.size < self.nbytes:
            if self.host is not None:
                self.host.free()
                self.host = None
            self.host = HostBlock(self._cuda, self.nbytes)
        self.view = self.host.view(self.tensor.dtype, self.shape)
        return self.host

    def need_device(self, size: int) -> DeviceBlock:
        """Return device memory of at least a size."""
        if self.device is None or self.device.size < size:
            if self.device is not None:
                self.device.free()
                self.device = None
            self.device = DeviceBlock(self._cuda, size)
        return self.device

    def free(self) -> None:
        """Give the memory back; arrays over the host's stay readable."""
        for block in (self.host, self.device):
            if block is not None:
                block.free()
        self.host = self.device = None

    @property
    def address(self) -> int:
        """What TensorRT is given."""
        block = self.host if self.tensor.is_shape else self.device
        return block.address if block is not None else 0


def allocator(trt: Any, place: Place) -> Any:
    """Return what gives TensorRT room for an output whose shape it learns while it runs."""

    class OutputAllocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        # The arguments are positional, as TensorRT gives them: name, memory, size, alignment (, stream).
        # cudaMalloc aligns to 256 bytes, which is all that TensorRT needs.
        def reallocate_output(self, *given: Any) -> int:
            try:
                return place.need_device(int(given[2])).address
            except InferenceError as error:  # it must not cross TensorRT's frames; 0 ends the inference
                place.error = error
                return 0

        def reallocate_output_async(self, *given: Any) -> int:
            return self.reallocate_output(*given)

        def notify_shape(self, _: str, shape: Any) -> None:
            place.settle(tuple(shape))

    return OutputAllocator()
