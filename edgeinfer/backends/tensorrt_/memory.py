"""Memory of the host and the device, and its loan to callers.

Host memory is the process's own, page-locked so that the GPU copies from and to it by itself. Arrays over it
outlive the session and can be read in a forked child, which memory of cudaMallocHost cannot.

Outputs are lent: a block belongs to the caller until the last array over it is gone, and then comes back by
a finalizer. Finalizers run at any moment, in any thread, within any allocation: giving back takes no lock.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, final

import numpy as np

from edgeinfer.backends.tensorrt_.cuda import Cuda
from edgeinfer.errors import InferenceError

__all__ = ["Block", "DeviceBlock", "HostBlock", "Lease", "LeasePool"]

_PAGE = mmap.PAGESIZE


class Block(Protocol):
    """Memory at one address."""

    address: int
    size: int

    def free(self) -> None:
        """Give it back."""
        ...


@final
class HostBlock:
    """Page-locked memory of the process, on pages of its own.

    Attributes:
        address: Where it begins, a page.
        size: Its size in bytes, full pages.
        bytes: The memory as an array of bytes; it can be used after `free`, too.
        pinned: Whether it is page-locked; else CUDA copies by way of memory of its own, and waits.
    """

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda, self._process = cuda, os.getpid()
        self.size = -(-max(size, 1) // _PAGE) * _PAGE
        raw = np.empty(self.size + _PAGE, np.uint8)
        start = -raw.ctypes.data % _PAGE
        self.bytes: np.ndarray = raw[start : start + self.size]
        self.address = int(self.bytes.ctypes.data)
        self.pinned = cuda.page_lock(self.address, self.size)

    def view(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
        """Return the beginning as an array."""
        return _array(self.bytes, dtype, shape)

    def free(self) -> None:
        """Undo the lock; the memory itself lives as long as arrays over it."""
        if self.pinned and os.getpid() == self._process:
            self.pinned = False
            self._cuda.page_unlock(self.address)


@final
class DeviceBlock:
    """Device memory."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda = cuda
        self.size = max(size, 1)  # a null pointer is no address, even of an empty tensor
        self.address = int(cuda.call("cudaMalloc", self.size))

    def free(self) -> None:
        """Give it back."""
        if self.address:
            address, self.address = self.address, 0
            self._cuda.call("cudaFree", address)


@final
class Lease:
    """The loan of one block. When nothing refers to it any more, the block goes back to its pool."""

    __slots__ = ("__weakref__", "block")

    def __init__(self, block: Any) -> None:
        self.block = block

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """What numpy makes an array of, whose `base` is this lease."""
        return {
            "data": (self.block.address, False),
            "shape": (self.block.size,),
            "typestr": "|u1",
            "version": 3,
        }

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
        """Return the beginning of host memory as an array, which keeps the lease."""
        return _array(np.asarray(self), dtype, shape)


@final
class LeasePool:
    """Blocks that are lent again and again.

    Args:
        cuda: The device that they belong to.
        make: Makes a block of at least a size.
        max_blocks: How many there may be of a size; None for any number.
        max_bytes: How much they may hold together; None for any amount.
    """

    def __init__(
        self,
        cuda: Cuda,
        make: Callable[[Cuda, int], Block],
        *,
        max_blocks: int | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self._cuda, self._make, self._process = cuda, make, os.getpid()
        self._max_blocks, self._max_bytes = max_blocks, max_bytes
        self._lock = threading.Lock()
        self._idle: dict[int, list[Block]] = {}
        self._made: dict[int, int] = {}
        self._bytes = 0
        self._returned: deque[tuple[int, Block]] = deque()
        self._closed = False

    @property
    def held_bytes(self) -> int:
        """The size of all blocks, lent ones included."""
        return self._bytes

    def take(self, size: int) -> Lease | None:
        """Lend a block of at least that size; None where the limits allow no further one.

        Sizes are rounded up to powers of two, so that shapes that change share blocks.
        """
        rounded = 1 << max(size - 1, _PAGE - 1).bit_length()
        with self._lock:
            self._collect()
            idle = self._idle.get(rounded)
            block = idle.pop() if idle else None  # the one used last: its pages are in the caches
            if block is None:
                many = self._max_blocks is not None and self._made.get(rounded, 0) >= self._max_blocks
                much = self._max_bytes is not None and self._bytes + rounded > self._max_bytes
                if many or much or self._closed:
                    return None
                block = self._new(rounded)
                self._made[rounded] = self._made.get(rounded, 0) + 1
                self._bytes += block.size
        lease = Lease(block)
        weakref.finalize(lease, self._give_back, rounded, block).atexit = False
        return lease

    def close(self) -> None:
        """Free what is not lent; the rest is freed when it comes back."""
        self._closed = True
        with self._lock:
            self._collect()
            blocks = [block for idle in self._idle.values() for block in idle]
            self._idle.clear()
        for block in blocks:
            block.free()
            self._bytes -= block.size

    def _new(self, size: int) -> Block:
        try:
            return self._make(self._cuda, size)
        except InferenceError:  # memory is used up: that of other sizes may suffice
            if not any(self._idle.values()):
                raise
            for rounded, blocks in self._idle.items():
                for block in blocks:
                    block.free()
                    self._bytes -= block.size
                    self._made[rounded] -= 1
                blocks.clear()
            return self._make(self._cuda, size)

    def _give_back(self, rounded: int, block: Block) -> None:
        if os.getpid() != self._process:  # a forked child: CUDA is the parent's
            return
        self._returned.append((rounded, block))
        if self._closed:
            self._free_returned()

    def _collect(self) -> None:
        while self._returned:
            rounded, block = self._returned.popleft()
            self._idle.setdefault(rounded, []).append(block)

    def _free_returned(self) -> None:
        # At the end of the process CUDA may be gone already: nobody is left to whom it would matter.
        with contextlib.suppress(IndexError, InferenceError), self._cuda.current():
            while True:
                _, block = self._returned.popleft()
                block.free()
                self._bytes -= block.size


def _array(data: np.ndarray, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    count = 1
    for size in shape:
        count *= size
    return data[: count * dtype.itemsize].view(dtype).reshape(shape)
