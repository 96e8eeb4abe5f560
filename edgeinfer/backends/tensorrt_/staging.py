"""How an input gets from a caller's array to the device.

Small ones are copied into page-locked memory of the slot, from where the GPU copies them by itself. Large
ones are where plain inference loses time against the bound mode, and there are two ways to save it:

- An array that comes again (a camera's buffer, a loop over one feed) is page-locked itself. The GPU then
  reads it where it lies; see `tensorrt_input_locks`.
- Any other is copied in pieces, by several threads, and each piece is on its way to the device while the
  next is copied.
"""

from __future__ import annotations

import mmap
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, final

import numpy as np

from edgeinfer.backends.tensorrt_.cuda import Cuda
from edgeinfer.backends.tensorrt_.memory import HostBlock

__all__ = ["CopyThreads", "default_threads", "stage"]

# Below this, waking threads up and further calls of CUDA take longer than copying (measured beside an H200:
# 600 KB in 0.05 ms, and 0.1 ms more in three pieces). Above it, a piece for each thread: more of them wait
# for the interpreter's lock (19 MB by eight threads: 0.9 ms in 8 pieces, 1.4 ms in 32). Four at least, so
# that the first are on their way while the last are copied.
_PIECES_LEAST_BYTES = 1 << 20
# What a thread must have to copy to be worth waking: for 4.8 MB two were better than one, four and eight.
_THREAD_LEAST_BYTES = 2 << 20
_PIECE_MOST_BYTES = 8 << 20
_PIECES_LEAST = 4


def default_threads() -> int:
    """Return how many threads copy a large input: half of the process's cores, eight at most."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, here // 2))


@final
class CopyThreads:
    """Threads that help a caller with its pieces. `count` includes the caller."""

    def __init__(self, cuda: Cuda, count: int) -> None:
        self._cuda, self.count = cuda, count
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def run(self, pieces: list[Callable[[], None]], workers: int | None = None) -> None:
        """Run all pieces, and return when all are done; the first exception of any of them is raised.

        Args:
            pieces: What to run, each once.
            workers: How many threads work at it, the caller included; None for all.
        """
        job = _Job(pieces)
        helpers = min(workers or self.count, self.count, len(pieces)) - 1
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
        while (job := self._jobs.get()) is not None:
            job.help(self._cuda)


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

    def help(self, cuda: Cuda) -> None:
        """Work as a helper, while there are pieces."""
        while (piece := self._take(helping=1)) is not None:
            try:
                with cuda.current():
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


def stage(
    cuda: Cuda,
    threads: CopyThreads,
    array: np.ndarray,
    host: HostBlock,
    view: np.ndarray,
    device: int,
    stream: Any,
) -> None:
    """Copy an array to the device by way of page-locked memory; enqueued when this returns.

    Args:
        cuda: The device, which is current.
        threads: Who may help.
        array: What to copy, C-contiguous. It may be changed when this has returned.
        host: The page-locked memory.
        view: The beginning of `host` in the shape of `array` and the engine's dtype.
        device: Where to on the device.
        stream: The stream of the copies to the device.
    """
    if array.dtype != view.dtype or not host.pinned or array.nbytes < _PIECES_LEAST_BYTES:
        np.copyto(view, array, casting="unsafe")
        cuda.to_device(device, host.address, view.nbytes, stream)
        return
    source, target = array.reshape(-1).view(np.uint8), host.bytes

    def piece(start: int, end: int) -> Callable[[], None]:
        def copy() -> None:
            target[start:end] = source[start:end]
            cuda.to_device(device + start, host.address + start, end - start, stream)

        return copy

    workers = max(1, min(threads.count, array.nbytes // _THREAD_LEAST_BYTES))
    threads.run([piece(start, end) for start, end in _cuts(array.nbytes, workers)], workers)


def _cuts(size: int, threads: int) -> Iterator[tuple[int, int]]:
    step = min(-(-size // max(threads, _PIECES_LEAST)), _PIECE_MOST_BYTES)
    step = -(-step // mmap.PAGESIZE) * mmap.PAGESIZE
    return ((start, min(start + step, size)) for start in range(0, size, step))
