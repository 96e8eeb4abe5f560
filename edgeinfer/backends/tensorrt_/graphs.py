"""The CUDA graphs of one slot: what was enqueued once, launched again as one call."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Hashable, Iterator
from typing import Any, final

from edgeinfer.backends.tensorrt_.cuda import Cuda
from edgeinfer.errors import InferenceError

__all__ = ["Graphs"]

# A graph holds addresses. Where outputs stay on the device, a caller that keeps some of them makes two or
# three sets of addresses come in turns; more are not worth their memory.
_GRAPHS = 4
_KEYS = 64


@final
class Graphs:
    """Captures what repeats, and launches it.

    Attributes:
        reason: Why there are none; empty where there may be.
    """

    def __init__(self, cuda: Cuda, stream: Any, *, allowed: bool) -> None:
        self._cuda, self._stream, self._allowed = cuda, stream, allowed
        self._graphs: dict[Hashable, Any] = {}
        self._seen: set[Hashable] = set()
        self._forbidden = False
        self.reason = "" if allowed else "CUDA graphs were switched off"

    @property
    def used(self) -> bool:
        """Whether there is a graph."""
        return bool(self._graphs)

    def launch(self, key: Hashable) -> bool:
        """Launch the graph of a key, and return whether there is one."""
        graph = self._graphs.get(key)
        if graph is None:
            return False
        self._cuda.call("cudaGraphLaunch", graph, self._stream)
        return True

    def may_capture(self, key: Hashable, context: Any, handle: int) -> bool:
        """Whether to capture the run of a key: when it comes again.

        The first run is not captured: TensorRT then still sets itself up (its guide asks for one plain run
        before a capture).
        """
        if not self._allowed or self._forbidden:
            return False
        if key not in self._seen:
            if len(self._seen) >= _KEYS:
                self._seen.clear()
            self._seen.add(key)
            return False
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(handle):
            self._allow_no_more("TensorRT says that this inference cannot be captured into a CUDA graph")
        return self._allowed

    def capture(self, key: Hashable, enqueue: Callable[[], None]) -> None:
        """Record a run as the graph of a key; it does not run here.

        Where that fails, it is said, and there are no graphs any more.
        """
        # A finalizer that gives memory back would spoil the capture, and with it what it was to give back.
        with _no_garbage_collection():
            self._capture(key, enqueue)

    def _capture(self, key: Hashable, enqueue: Callable[[], None]) -> None:
        self._cuda.begin_capture(self._stream)
        try:
            enqueue()
        except InferenceError as error:
            self._allow_no_more(f"the capture into a CUDA graph failed: {error.what}")
        except BaseException:
            self._abandon()
            raise
        try:
            graph = self._cuda.end_capture(self._stream)
        except InferenceError as error:
            self._allow_no_more(f"the capture into a CUDA graph failed: {error.what}")
            return
        if not self._allowed:
            self._cuda.call("cudaGraphExecDestroy", graph)
            return
        if len(self._graphs) >= _GRAPHS:
            self._cuda.call("cudaGraphExecDestroy", self._graphs.pop(next(iter(self._graphs))))
        self._graphs[key] = graph

    def forbid(self, reason: str) -> None:
        """Capture nothing until the shapes change."""
        self._forbidden, self.reason = True, reason

    def drop(self) -> None:
        """Destroy all graphs: the shapes change."""
        while self._graphs:
            self._cuda.call("cudaGraphExecDestroy", self._graphs.popitem()[1])
        self._seen.clear()
        if self._forbidden:
            self._forbidden, self.reason = False, ""

    def _abandon(self) -> None:
        try:
            self._cuda.call("cudaGraphExecDestroy", self._cuda.end_capture(self._stream))
        except InferenceError:
            return  # the error that is being raised says more

    def _allow_no_more(self, reason: str) -> None:
        self._allowed, self.reason = False, reason


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
