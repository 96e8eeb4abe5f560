"""The CUDA runtime, through cuda-python: every call checked, memory and streams as integers.

The rest of the adapter talks to `Cuda` only.
"""

from __future__ import annotations

import importlib
from typing import Any, final

import attrs

from edgeinfer.errors import DeviceError, InferenceError

__all__ = ["Cuda", "Gpu", "find_gpus"]


@final
@attrs.frozen(kw_only=True)
class Gpu:
    """One CUDA device.

    Attributes:
        index: Its CUDA ordinal.
        name: Its full name.
        compute_capability: Such as `8.7`.
        memory_bytes: Its memory.
        cuda_driver: The newest CUDA version that the driver supports, such as `13.0`.
        integrated: It shares the host's memory, as on Jetson.
    """

    index: int
    name: str
    compute_capability: str
    memory_bytes: int
    cuda_driver: str
    integrated: bool = False


def find_gpus() -> tuple[tuple[Gpu, ...], str]:
    """Return the NVIDIA GPUs here and, when there are none, the reason."""
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError, RuntimeError) as error:  # not installed, or its libraries are not
        return (), f"cuda-python is needed to use a GPU: pip install cuda-python ({error or 'not found'})"
    cuda = Cuda(runtime)
    try:
        count = cuda.call("cudaGetDeviceCount")
        driver = cuda.call("cudaDriverGetVersion")
        found = [cuda.call("cudaGetDeviceProperties", index) for index in range(count)]
    except InferenceError as error:
        return (), f"no NVIDIA GPU can be used here: {error.what}"
    gpus = tuple(_gpu(index, properties, driver) for index, properties in enumerate(found))
    return gpus, "" if gpus else "no NVIDIA GPU was found here"


def _gpu(index: int, properties: Any, driver: int) -> Gpu:
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Gpu(
        index=index,
        name=name.rstrip("\0"),
        compute_capability=f"{properties.major}.{properties.minor}",
        memory_bytes=int(properties.totalGlobalMem),
        cuda_driver=f"{driver // 1000}.{driver % 1000 // 10}",
        integrated=bool(properties.integrated),
    )


@final
class Cuda:
    """Calls of the CUDA runtime on one device.

    Which device is current is a property of each thread, and others change it, too: `torch.cuda.set_device`,
    a session on another GPU. So whatever touches the device stands in a block of `current`.
    """

    def __init__(self, runtime: Any, device: int = 0) -> None:
        self._runtime = runtime
        self.device = device

    @classmethod
    def open(cls, device: int) -> Cuda:
        """Return the runtime for a device that is there.

        Raises:
            DeviceError: There is no such GPU, with the reason.
        """
        gpus, reason = find_gpus()
        if not any(gpu.index == device for gpu in gpus):
            raise DeviceError(
                reason[:1].upper() + reason[1:] if reason else "There is no such GPU.",
                expected=f"CUDA device {device}",
                found=", ".join(gpu.name for gpu in gpus) or "none",
                hint="Run on a machine with an NVIDIA GPU and its driver (nvidia-smi lists it).",
            )
        return cls(importlib.import_module("cuda.bindings.runtime"), device)

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the runtime.

        Raises:
            InferenceError: It does not return cudaSuccess.
        """
        status, *values = getattr(self._runtime, function)(*arguments)
        if int(status) != 0:
            self._runtime.cudaGetLastError()  # else TensorRT takes it for an error of its own next call
            text = self._runtime.cudaGetErrorString(status)[1]
            message = text.decode() if isinstance(text, bytes) else str(text)
            raise InferenceError(
                f"{message} ({getattr(status, 'name', int(status))})",
                where=function,
                facts={"cuda_error": int(status)},
            )
        return values[0] if len(values) == 1 else tuple(values)

    def current(self) -> _Current:
        """Make the device current for this thread while a block runs, and then again what was."""
        return _Current(self)

    def stream(self) -> Any:
        """Create a stream that does not wait for the legacy default stream."""
        return self.call("cudaStreamCreateWithFlags", 1)  # cudaStreamNonBlocking

    def to_device(self, device: int, host: int, size: int, stream: Any) -> None:
        """Enqueue a copy from host memory. What is not page-locked is read before this returns."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", device, host, size, kind, stream)

    def to_host(self, host: int, device: int, size: int, stream: Any) -> None:
        """Enqueue a copy to pinned host memory."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", host, device, size, kind, stream)

    def on_device(self, to: int, source: int, size: int, stream: Any) -> None:
        """Enqueue a copy within device memory."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self.call("cudaMemcpyAsync", to, source, size, kind, stream)

    def copy_to_host(self, host: int, device: int, size: int) -> None:
        """Copy to any host memory, and wait for the end of it."""
        self.call("cudaMemcpy", host, device, size, self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def synchronize(self, stream: Any) -> None:
        """Wait for all that is enqueued on a stream."""
        self.call("cudaStreamSynchronize", stream)

    def page_lock(self, address: int, size: int) -> bool:
        """Let the GPU copy from and to memory of the process; return whether it can.

        Memory that stays the process's own, unlike that of cudaMallocHost: it can be read when the lock is
        gone, and in a forked child.
        """
        try:
            self.call("cudaHostRegister", address, size, 0)
        except InferenceError:  # a platform that cannot, too much of it, or locked by somebody else
            return False
        return True

    def page_unlock(self, address: int) -> None:
        """Undo `page_lock`."""
        self.call("cudaHostUnregister", address)

    def begin_capture(self, stream: Any) -> None:
        """Begin to record what this thread enqueues on the stream."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Any) -> Any:
        """Return an executable graph of what was recorded."""
        graph = self.call("cudaStreamEndCapture", stream)
        try:
            return self.call("cudaGraphInstantiate", graph, 0)
        finally:
            self.call("cudaGraphDestroy", graph)


@final
class _Current:
    """The block of `Cuda.current`. A class, since it is on the path of every inference."""

    __slots__ = ("_before", "_cuda")

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda

    def __enter__(self) -> None:
        self._before = self._cuda.call("cudaGetDevice")
        if self._before != self._cuda.device:
            self._cuda.call("cudaSetDevice", self._cuda.device)

    def __exit__(self, *_: object) -> None:
        if self._before != self._cuda.device:
            self._cuda.call("cudaSetDevice", self._before)
