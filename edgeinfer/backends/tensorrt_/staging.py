"""How an input gets from a caller's array to the device.

Small ones are copied into page-locked memory of the slot, within the CUDA graph. Larger ones are where plain
inference loses time against the bound mode, and there are three ways to save it:

- An array that comes again (a camera's buffer, a loop over one feed) is page-locked itself. The GPU then
  reads it where it lies; see `input_locks`.
- Any other up to 1 MiB is given to CUDA as it is, which copies it by way of buffers of its own.
- A larger one is copied in pieces, by several threads, and each piece is on its way to the device while
  others are copied.

Measured beside an H200, cold arrays, until the device has them: 0.6 MB take 0.073 ms by CUDA's buffers and
0.086 by the slot's; 4.8 MB 0.39 ms by two threads, 0.70 by one or by CUDA; 19 MB 0.88 ms by six threads, 1.09
by four, 1.58 by twelve, 2.4 by CUDA. To page-lock an array for one run alone takes 0.2, 0.46 and 0.88 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, final

import numpy as np

from edgeinfer.backends.tensorrt_.cuda import Cuda
from edgeinfer.backends.tensorrt_.place import Place
from edgeinfer.errors import InferenceError

__all__ = ["CopyThreads", "default_threads", "send_directly", "stage"]

# Up to this CUDA copies an array faster than we do.
_DIRECT_MOST_BYTES = 1 << 20
# A thread for each of these that is begun, and a piece for each thread: every further piece or thread waits
# for the interpreter's lock and to be woken up. More than six threads hinder each other.
_THREAD_BYTES = 2 << 20
_THREADS_MOST = 6
_INVALID_VALUE = 1  # cudaErrorInvalidValue


def default_threads() -> int:
    """Return how many threads copy a large input: half of the process's cores, six at most."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_THREADS_MOST, here // 2))


@final
class CopyThreads:
    """Threads that help a caller with its pieces. `count` includes the caller."""

    def __init__(self, cuda: Cuda, count: int) -> None:
        self._cuda, self.count = cuda, count
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def run(self, pieces: list[Callable[[], None]]) -> None:
        """Run all pieces, and return when all are done; the first exception of any of them is raised.

        Args:
            pieces: What to run, each once, with the device current.
        """
        job = _Job(pieces)
        helpers = min(self.count, len(pieces)) - 1
        if helpers > 0:
            self._start()
            for _ in range(helpers):
                self._jobs.put(job)
        job.work()

    def close(self) -> None:
        """End the threads."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _start(self) -> None:
        with self._lock:
            while len(self._threads) < self.count - 1:
                name = f"edgeinfer-copy-{len(self._threads)}"
                thread = threading.Thread(target=self._serve, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self) -> None:
        current: contextlib.AbstractContextManager[None] | None = None
        while (job := self._jobs.get()) is not None:
            if current is None:  # of this thread nobody else changes the device
                current = self._cuda.current()
                current.__enter__()
            job.help()


@final
class _Job:
    """Pieces that a caller and its helpers share out among themselves.

    The caller must not leave while a helper is at a piece, which reads the caller's array; nor wait for a
    helper that has not woken up yet. It can be interrupted at any point, helpers cannot.
    """

    def __init__(self, pieces: list[Callable[[], None]]) -> None:
        self._pieces = iter(pieces)
        self._changed = threading.Condition(threading.Lock())
        self._helping = 0
        self._error: BaseException | None = None

    def work(self) -> None:
        """Work as the caller, until all is done."""
        try:
            while (piece := self._take()) is not None:
                piece()
        finally:
            self._end()
        if self._error is not None:
            raise self._error

    def help(self) -> None:
        """Work as a helper, while there are pieces."""
        while (piece := self._take(helping=1)) is not None:
            try:
                piece()
            except BaseException as error:
                self._error = error
            finally:
                with self._changed:
                    self._helping -= 1
                    self._changed.notify()

    def _take(self, helping: int = 0) -> Callable[[], None] | None:
        with self._changed:
            piece = None if self._error is not None else next(self._pieces, None)
            if piece is not None:
                self._helping += helping
            return piece

    def _end(self) -> None:
        interrupted: BaseException | None = None
        while True:
            try:
                with self._changed:
                    self._pieces = iter(())
                    while self._helping:
                        self._changed.wait()
                break
            except KeyboardInterrupt as error:  # later: a helper still reads the array
                interrupted = error
        if interrupted is not None:
            raise interrupted


def send_directly(cuda: Cuda, array: np.ndarray, device: int, stream: Any) -> bool:
    """Let CUDA copy an array to the device by way of its own buffers; return whether it does.

    Not a large one, of which our own copy is faster. Nor one of which somebody has page-locked a part, as
    happens where arrays share a page: CUDA refuses it.

    Args:
        cuda: The device, which is current.
        array: What to copy, C-contiguous, in the engine's dtype.
        device: Where to on the device.
        stream: The stream of the copy.
    """
    if array.nbytes > _DIRECT_MOST_BYTES:
        return False
    try:
        cuda.to_device(device, int(array.__array_interface__["data"][0]), array.nbytes, stream)
    except InferenceError as error:
        if error.facts.get("cuda_error") != _INVALID_VALUE:
            raise
        return False
    return True


def stage(cuda: Cuda, threads: CopyThreads, array: np.ndarray, place: Place, stream: Any) -> None:
    """Copy an array to the device by way of a place's page-locked memory; enqueued when this returns.

    Args:
        cuda: The device, which is current.
        threads: Who may help.
        array: What to copy, C-contiguous. It may be changed when this has returned.
        place: Where the tensor lies.
        stream: The stream of the copies to the device.
    """
    host, view, device = place.need_host(), place.view, place.address
    if array.dtype != view.dtype or not host.pinned:
        np.copyto(view, array, casting="unsafe")
        cuda.to_device(device, host.address, view.nbytes, stream)
        return
    source, target = int(array.__array_interface__["data"][0]), host.address

    def piece(start: int, end: int) -> Callable[[], None]:
        def copy() -> None:
            ctypes.memmove(target + start, source + start, end - start)  # without the interpreter's lock
            cuda.to_device(device + start, target + start, end - start, stream)

        return copy

    threads.run([piece(start, end) for start, end in _cuts(array.nbytes, threads.count)])


def _cuts(size: int, threads: int) -> Iterator[tuple[int, int]]:
    step = -(-size // max(1, min(threads, -(-size // _THREAD_BYTES))))
    step = -(-step // mmap.PAGESIZE) * mmap.PAGESIZE
    return ((start, min(start + step, size)) for start in range(0, size, step))
