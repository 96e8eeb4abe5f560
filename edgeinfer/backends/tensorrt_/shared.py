"""What the slots of one session share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import attrs

from edgeinfer.backends.tensorrt_.cuda import Cuda
from edgeinfer.backends.tensorrt_.input_locks import InputLocks
from edgeinfer.backends.tensorrt_.memory import DeviceBlock, HostBlock, LeasePool
from edgeinfer.backends.tensorrt_.options import TensorRTOptions
from edgeinfer.backends.tensorrt_.staging import CopyThreads, default_threads
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
        locks: The page-locked arrays of callers; None where they are always copied.
        host_pool: Where large outputs go; None where they are copied.
        device_pool: Where outputs go that stay on the device; None where they do not.
    """

    threads: CopyThreads
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
        blocks = 2 + 2 * options.max_in_flight
        return cls(
            threads=CopyThreads(cuda, options.copy_threads or default_threads()),
            locks=InputLocks(cuda) if options.pin_memory else None,
            host_pool=LeasePool(cuda, HostBlock, max_blocks=blocks, max_bytes=_POOL_BYTES)
            if options.pin_memory and not on_device
            else None,
            device_pool=LeasePool(cuda, DeviceBlock) if on_device else None,
        )

    def close(self) -> None:
        """Give back what no caller holds."""
        self.threads.close()
        for part in (self.locks, self.host_pool, self.device_pool):
            if part is not None:
                part.close()
