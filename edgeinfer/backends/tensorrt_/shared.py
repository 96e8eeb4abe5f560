"""What the slots of one session share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import attrs
import numpy as np

from edgeinfer.backends.tensorrt_.copy_library import CopyLibrary, default_helpers
from edgeinfer.backends.tensorrt_.cuda import Cuda
from edgeinfer.backends.tensorrt_.input_locks import InputLocks
from edgeinfer.backends.tensorrt_.memory import DeviceBlock, HostBlock, LeasePool
from edgeinfer.backends.tensorrt_.options import TensorRTOptions
from edgeinfer.backends.tensorrt_.place import Place
from edgeinfer.backends.tensorrt_.staging import CopyThreads, default_threads, send_directly, stage
from edgeinfer.backends.tensorrt_.tensors import EngineTensor
from edgeinfer.errors import OptionsError

__all__ = ["Shared"]

# Page-locked memory of outputs that callers hold; beyond it outputs are copied.
_POOL_BYTES = 256 << 20


@final
@attrs.frozen(kw_only=True)
class Shared:
    """What all slots of a session share.

    Attributes:
        threads: Who helps to copy large inputs.
        library: Who copies them instead, without the interpreter's lock; None where there is none.
        locks: The page-locked arrays of callers; None where they are always copied.
        host_pool: Where large outputs go; None where they are copied.
        device_pool: Where outputs go that stay on the device; None where they do not.
    """

    threads: CopyThreads
    library: CopyLibrary | None
    locks: InputLocks | None
    host_pool: LeasePool | None
    device_pool: LeasePool | None

    @classmethod
    def of(cls, cuda: Cuda, options: TensorRTOptions, outputs: Sequence[EngineTensor]) -> Shared:
        """Return what the options of a session ask for.

        Raises:
            OptionsError: Outputs are to stay on the device, and one is made on the host.
        """
        on_device = options.outputs == "device"
        for tensor in outputs if on_device else ():
            if tensor.is_converted or tensor.is_shape:
                raise OptionsError(
                    "An output is made or converted on the host, so it cannot stay on the device.",
                    where="option outputs",
                    found=f"output {tensor.name!r}",
                    hint="Leave the option out.",
                )
        threads = options.copy_threads
        helpers = threads - 1 if threads is not None else default_helpers()
        blocks = 2 + 2 * options.max_in_flight
        return cls(
            threads=CopyThreads(cuda, threads or default_threads()),
            library=CopyLibrary(options.copy_library, helpers) if options.copy_library else None,
            locks=InputLocks(cuda) if options.pin_memory else None,
            host_pool=LeasePool(cuda, HostBlock, max_blocks=blocks, max_bytes=_POOL_BYTES)
            if options.pin_memory and not on_device
            else None,
            device_pool=LeasePool(cuda, DeviceBlock) if on_device else None,
        )

    def send(self, cuda: Cuda, place: Place, array: np.ndarray, stream: Any) -> None:
        """Enqueue the copy of a large input to the device; the array is read, or stays page-locked.

        Args:
            cuda: The device, which is current.
            place: Where the tensor lies.
            array: What to copy, C-contiguous.
            stream: The stream of the copy.
        """
        if place.tensor.is_converted:
            stage(cuda, self.threads, array, place, stream)
            return
        address = int(array.__array_interface__["data"][0])
        if self.locks is not None and self.locks.covers(array):
            cuda.to_device(place.address, address, place.nbytes, stream)
        elif self.library is not None and (host := place.need_host()).pinned:
            self.library.copy(address, host.address, place.address, place.nbytes, stream)
        elif not send_directly(cuda, array, place.address, stream):
            stage(cuda, self.threads, array, place, stream)

    def close(self) -> None:
        """Give back what no caller holds."""
        self.threads.close()
        for part in (self.library, self.locks, self.host_pool, self.device_pool):
            if part is not None:
                part.close()
