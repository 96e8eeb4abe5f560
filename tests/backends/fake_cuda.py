"""A FAKE of `cuda.bindings.runtime`: host memory that is called device memory, and streams that are lists.

It computes nothing and knows no GPU. It is stricter than the real thing: work that was enqueued happens only
when the stream is synchronized, every address is checked against what was allocated, of which kind and on
which device, what is used while another device is current is an error, and so is what is freed twice, leaked,
or used after being freed.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorInvalidDevice = 101
    cudaErrorIllegalAddress = 700
    cudaErrorHostMemoryAlreadyRegistered = 712
    cudaErrorHostMemoryNotRegistered = 713
    cudaErrorStreamCaptureInvalidated = 901


class Block(NamedTuple):
    kind: str
    memory: Any
    device: int


class FakeStream:
    def __init__(self, number: int, device: int) -> None:
        self.number, self.device = number, device
        self.pending: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None

    def __int__(self) -> int:
        return self.number

    def enqueue(self, work: Callable[[], None]) -> None:
        (self.pending if self.recording is None else self.recording).append(work)


class FakeCuda:
    """Stands in for the module; `events` is what was called, in order."""

    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice="to device",
        cudaMemcpyDeviceToHost="to host",
        cudaMemcpyDeviceToDevice="on device",
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread local")

    def __init__(self, *gpus: tuple[str, str], driver: int = 13000) -> None:
        self.gpus, self.driver = gpus, driver
        self.events: list[tuple[Any, ...]] = []
        self.memory: dict[int, Block] = {}
        self.streams: dict[int, FakeStream] = {}
        self.graphs: dict[int, int] = {}
        self.fail_capture = False
        self.allow_pageable = False  # copies from and to memory that is not page-locked, of any size
        self.pageable_bytes = 1 << 20  # beyond, it is slow: the adapter must not do it
        self.fail_copy_in: int | None = None  # how many copies to the device work before one fails
        self.failing: set[str] = set()
        self.device_limit = 1 << 40
        self._current = threading.local()
        self._lock = threading.RLock()
        self._numbers = 100

    # What tests ask.

    def calls(self, *names: str) -> list[tuple[Any, ...]]:
        return [event for event in self.events if event[0] in names]

    def names(self) -> list[str]:
        return [event[0] for event in self.events]

    def assert_nothing_left(self) -> None:
        assert not self.memory, f"leaked memory: {[block.kind for block in self.memory.values()]}"
        assert not self.streams, "leaked streams"
        assert not self.graphs, "leaked graphs"

    @property
    def device(self) -> int:
        """The device that is current for this thread."""
        return getattr(self._current, "device", 0)

    @contextlib.contextmanager
    def used(self, device: int) -> Iterator[None]:
        """Make a device current, as an application or another library does."""
        before = self.device
        self._current.device = device
        try:
            yield
        finally:
            assert self.device == device, f"device {device} was current, and {self.device} was left behind"
            self._current.device = before

    def assert_current(self, device: int, what: str) -> None:
        assert self.device == device, f"{what} of device {device} used while {self.device} is current"

    def bytes_at(self, address: int, size: int, kind: str) -> Any:
        """The memory behind an address; it must be of that kind, of this device, and large enough."""
        start, block = self._find(address)
        assert block is not None, f"{address:#x} was never allocated or is freed"
        assert block.kind == kind, f"{address:#x} is {block.kind} memory, not {kind}"
        if block.kind == "device":
            self.assert_current(block.device, "memory")
        rest = ctypes.sizeof(block.memory) - (address - start)
        assert rest >= size, f"{rest} bytes, {size} needed"
        return (ctypes.c_ubyte * size).from_address(address)

    def stream_of(self, handle: int) -> FakeStream:
        assert handle in self.streams, "no such stream"
        self.assert_current(self.streams[handle].device, "a stream")
        return self.streams[handle]

    def _find(self, address: int) -> tuple[int, Block | None]:
        with self._lock:
            for start, block in self.memory.items():
                if start <= address < start + ctypes.sizeof(block.memory):
                    return start, block
        return address, None

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
            name=name.encode(),
            major=int(major),
            minor=int(minor),
            totalGlobalMem=8 << 30,
            integrated=int(capability in ("7.2", "8.7", "11.0")),
        )

    def cudaGetDevice(self) -> tuple[Any, ...]:
        return Status.cudaSuccess, self.device

    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:
        if index >= len(self.gpus):
            return (Status.cudaErrorInvalidDevice,)
        self.events.append(("cudaSetDevice", index))
        self._current.device = index
        return (Status.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        held = sum(ctypes.sizeof(block.memory) for block in self.memory.values() if block.kind == "device")
        if held + size > self.device_limit:
            return Status.cudaErrorMemoryAllocation, None
        return self._allocate("cudaMalloc", "device", size)

    def _allocate(self, name: str, kind: str, size: int) -> tuple[Any, ...]:
        if name in self.failing:
            return Status.cudaErrorMemoryAllocation, None
        with self._lock:
            raw = (ctypes.c_ubyte * (size + 256))()
            address = ctypes.addressof(raw) + -ctypes.addressof(raw) % 256  # as the real one aligns
            ctypes.memset(address, 0xCD, min(size, 64))  # never zero by chance
            block = (ctypes.c_ubyte * size).from_address(address)
            block._raw = raw
            self.memory[address] = Block(kind, block, self.device)
            self.events.append((name, size))
            return Status.cudaSuccess, address

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        return self._free("cudaFree", "device", address)

    def cudaHostRegister(self, address: int, size: int, flags: int) -> tuple[Any, ...]:
        if "cudaHostRegister" in self.failing:
            return (Status.cudaErrorInvalidValue,)
        with self._lock:
            pages = set(range(address // 4096, (address + size - 1) // 4096 + 1))
            for start, block in self.memory.items():
                end = start + ctypes.sizeof(block.memory) - 1
                if block.kind == "registered" and pages & set(range(start // 4096, end // 4096 + 1)):
                    return (Status.cudaErrorHostMemoryAlreadyRegistered,)
            block = (ctypes.c_ubyte * size).from_address(address)
            self.memory[address] = Block("registered", block, self.device)
            self.events.append(("cudaHostRegister", size))
        return (Status.cudaSuccess,)

    def cudaHostUnregister(self, address: int) -> tuple[Any, ...]:
        if address not in self.memory:
            return (Status.cudaErrorHostMemoryNotRegistered,)
        return self._free("cudaHostUnregister", "registered", address)

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (Status.cudaSuccess,)

    def cudaMemcpy(self, to: int, source: int, size: int, kind: str) -> tuple[Any, ...]:
        if kind == "to device":
            ctypes.memmove(self._address(to, size), source, size)
        else:
            ctypes.memmove(to, self._address(source, size), size)
        return (Status.cudaSuccess,)

    def _address(self, address: int, size: int) -> int:
        self.bytes_at(address, size, "device")
        return address

    def _free(self, name: str, kind: str, address: int) -> tuple[Any, ...]:
        with self._lock:
            block = self.memory[address]
            assert block.kind == kind, f"{address:#x} is {block.kind} memory, not {kind}"
            self.assert_current(block.device, f"{kind} memory")
            self.events.append((name,))
            del self.memory[address]
        return (Status.cudaSuccess,)

    def cudaPointerGetAttributes(self, address: int) -> tuple[Any, ...]:
        block = self._find(address)[1]
        found = (2, block.device) if block is not None and block.kind == "device" else (0, -1)
        return Status.cudaSuccess, SimpleNamespace(type=found[0], device=found[1])

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        with self._lock:
            self._numbers += 1
            stream = self.streams[self._numbers] = FakeStream(self._numbers, self.device)
            self.events.append(("cudaStreamCreateWithFlags", flags))
            return Status.cudaSuccess, stream

    def cudaStreamDestroy(self, stream: FakeStream) -> tuple[Any, ...]:
        self.stream_of(int(stream))
        assert not stream.pending, "work is still under way"
        del self.streams[int(stream)]
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: Any) -> tuple[Any, ...]:
        self.events.append(("cudaStreamSynchronize", int(stream)))
        if isinstance(stream, FakeStream):
            self.stream_of(int(stream))
            assert stream.recording is None, "a stream cannot be synchronized while it is captured"
            pending, stream.pending = stream.pending, []
            for work in pending:
                work()
        if "cudaStreamSynchronize" in self.failing:
            return (Status.cudaErrorIllegalAddress,)
        return (Status.cudaSuccess,)

    def cudaMemcpyAsync(
        self, to: int, source: int, size: int, kind: str, stream: FakeStream
    ) -> tuple[Any, ...]:
        kinds = {
            "to device": ("device", "registered"),
            "to host": ("registered", "device"),
            "on device": ("device", "device"),
        }[kind]
        self.stream_of(int(stream))
        if kind == "to device" and self.fail_copy_in is not None:
            self.fail_copy_in -= 1
            if self.fail_copy_in < 0:
                return (Status.cudaErrorInvalidValue,)
        self._check(to, size, kinds[0])
        read = None
        locked = self._locked_bytes(source, size) if kind == "to device" else size
        if 0 < locked < size:
            return (Status.cudaErrorInvalidValue,)
        if locked == 0 and size <= self.pageable_bytes:
            read = ctypes.string_at(source, size)  # what is not page-locked is read at once
        else:
            self._check(source, size, kinds[1])
        self.events.append(("cudaMemcpyAsync", kind, size))

        def copy() -> None:
            self._check(to, size, kinds[0])  # still there when the copy happens
            if read is None:
                self._check(source, size, kinds[1])
            ctypes.memmove(to, source if read is None else read, size)

        stream.enqueue(copy)
        return (Status.cudaSuccess,)

    def _locked_bytes(self, address: int, size: int) -> int:
        """How much of a range of the host is page-locked."""
        with self._lock:
            return sum(
                max(0, min(address + size, start + ctypes.sizeof(block.memory)) - max(address, start))
                for start, block in self.memory.items()
                if block.kind == "registered"
            )

    def _check(self, address: int, size: int, kind: str) -> None:
        if kind == "device" or not self.allow_pageable:
            self.bytes_at(address, size, kind)

    def cudaStreamBeginCapture(self, stream: FakeStream, mode: str) -> tuple[Any, ...]:
        self.stream_of(int(stream))
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
        self.graphs[id(made)] = self.device
        return Status.cudaSuccess, made

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:
        return (Status.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[Any, ...]:
        self.assert_current(self.graphs.pop(id(graph)), "a graph")
        return (Status.cudaSuccess,)

    def cudaGraphLaunch(self, graph: Any, stream: FakeStream) -> tuple[Any, ...]:
        assert id(graph) in self.graphs, "the graph was destroyed"
        self.assert_current(self.graphs[id(graph)], "a graph")
        self.events.append(("cudaGraphLaunch",))
        for work in graph.work:
            self.stream_of(int(stream)).enqueue(work)
        return (Status.cudaSuccess,)
