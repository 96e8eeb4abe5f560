"""A FAKE of `cuda.bindings.runtime`: host memory that is called device memory, and streams that are lists.

It computes nothing and knows no GPU. It is stricter than the real thing: work that was enqueued happens only
when the stream is synchronized, every address is checked against what was allocated and of which kind, and
what is freed twice, leaked, or used after being freed is an error.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorStreamCaptureInvalidated = 901


class FakeStream:
    def __init__(self, number: int) -> None:
        self.number = number
        self.pending: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None

    def __int__(self) -> int:
        return self.number

    def enqueue(self, work: Callable[[], None]) -> None:
        (self.pending if self.recording is None else self.recording).append(work)


class FakeCuda:
    """Stands in for the module; `events` is what was called, in order."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="to device", cudaMemcpyDeviceToHost="to host")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread local")

    def __init__(self, *gpus: tuple[str, str], driver: int = 13000) -> None:
        self.gpus, self.driver = gpus, driver
        self.events: list[tuple[Any, ...]] = []
        self.memory: dict[int, tuple[str, Any]] = {}
        self.streams: dict[int, FakeStream] = {}
        self.graphs: set[int] = set()
        self.fail_capture = False
        self.device_limit = 1 << 40
        self._lock = threading.RLock()
        self._numbers = 100

    # What tests ask.

    def calls(self, *names: str) -> list[tuple[Any, ...]]:
        return [event for event in self.events if event[0] in names]

    def names(self) -> list[str]:
        return [event[0] for event in self.events]

    def assert_nothing_left(self) -> None:
        assert not self.memory, f"leaked memory: {[kind for kind, _ in self.memory.values()]}"
        assert not self.streams, "leaked streams"
        assert not self.graphs, "leaked graphs"

    def bytes_at(self, address: int, size: int, kind: str) -> Any:
        """The memory behind an address; it must be of that kind and large enough."""
        assert address in self.memory, f"{address:#x} was never allocated or is freed"
        found, block = self.memory[address]
        assert found == kind, f"{address:#x} is {found} memory, not {kind}"
        assert ctypes.sizeof(block) >= size, f"{ctypes.sizeof(block)} bytes, {size} needed"
        return block

    def stream_of(self, handle: int) -> FakeStream:
        assert handle in self.streams, "no such stream"
        return self.streams[handle]

    # What the adapter calls.

    def cudaGetErrorString(self, status: Status) -> tuple[Status, bytes]:
        return Status.cudaSuccess, f"fake {status.name}".encode()

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return (
            (Status.cudaSuccess, len(self.gpus)) if self.gpus else (Status.cudaErrorInsufficientDriver, None)
        )

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return Status.cudaSuccess, self.driver

    def cudaGetDeviceProperties(self, index: int) -> tuple[Any, ...]:
        name, capability = self.gpus[index]
        major, minor = capability.split(".")
        return Status.cudaSuccess, SimpleNamespace(
            name=name.encode(), major=int(major), minor=int(minor), totalGlobalMem=8 << 30
        )

    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:
        self.events.append(("cudaSetDevice", index))
        return (Status.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        held = sum(ctypes.sizeof(block) for kind, block in self.memory.values() if kind == "device")
        if held + size > self.device_limit:
            return Status.cudaErrorMemoryAllocation, None
        return self._allocate("cudaMalloc", "device", size)

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._allocate("cudaMallocHost", "pinned", size)

    def _allocate(self, name: str, kind: str, size: int) -> tuple[Any, ...]:
        with self._lock:
            block = (ctypes.c_ubyte * size)(*(b"\xcd" * min(size, 64)))  # never zero by chance
            address = ctypes.addressof(block)
            self.memory[address] = (kind, block)
            self.events.append((name, size))
            return Status.cudaSuccess, address

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        return self._free("cudaFree", "device", address)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        return self._free("cudaFreeHost", "pinned", address)

    def _free(self, name: str, kind: str, address: int) -> tuple[Any, ...]:
        self.bytes_at(address, 0, kind)
        self.events.append((name,))
        del self.memory[address]
        return (Status.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        with self._lock:
            self._numbers += 1
            stream = self.streams[self._numbers] = FakeStream(self._numbers)
            self.events.append(("cudaStreamCreateWithFlags", flags))
            return Status.cudaSuccess, stream

    def cudaStreamDestroy(self, stream: FakeStream) -> tuple[Any, ...]:
        assert not stream.pending, "work is still under way"
        del self.streams[int(stream)]
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: Any) -> tuple[Any, ...]:
        self.events.append(("cudaStreamSynchronize", int(stream)))
        if isinstance(stream, FakeStream):
            assert stream.recording is None, "a stream cannot be synchronized while it is captured"
            pending, stream.pending = stream.pending, []
            for work in pending:
                work()
        return (Status.cudaSuccess,)

    def cudaMemcpyAsync(
        self, to: int, source: int, size: int, kind: str, stream: FakeStream
    ) -> tuple[Any, ...]:
        kinds = ("device", "pinned") if kind == "to device" else ("pinned", "device")
        self.bytes_at(to, size, kinds[0])
        self.bytes_at(source, size, kinds[1])
        self.events.append(("cudaMemcpyAsync", kind, size))
        stream.enqueue(lambda: ctypes.memmove(to, source, size))
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: FakeStream, mode: str) -> tuple[Any, ...]:
        self.events.append(("cudaStreamBeginCapture", mode))
        stream.recording = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: FakeStream) -> tuple[Any, ...]:
        recorded, stream.recording = stream.recording, None
        if self.fail_capture:
            return Status.cudaErrorStreamCaptureInvalidated, None
        self.events.append(("cudaStreamEndCapture", len(recorded or ())))
        return Status.cudaSuccess, recorded

    def cudaGraphInstantiate(self, graph: list[Callable[[], None]], flags: int) -> tuple[Any, ...]:
        made = SimpleNamespace(work=list(graph))
        self.graphs.add(id(made))
        return Status.cudaSuccess, made

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:
        return (Status.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[Any, ...]:
        self.graphs.remove(id(graph))
        return (Status.cudaSuccess,)

    def cudaGraphLaunch(self, graph: Any, stream: FakeStream) -> tuple[Any, ...]:
        assert id(graph) in self.graphs, "the graph was destroyed"
        self.events.append(("cudaGraphLaunch",))
        for work in graph.work:
            stream.enqueue(work)
        return (Status.cudaSuccess,)
