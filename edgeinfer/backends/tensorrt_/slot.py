"""One request's worth of a running engine: a context, a stream, buffers, and the CUDA graph over them.

The order of one run: stage inputs in pinned memory, enqueue copies to the device, `execute_async_v3`, copies
back, wait for the stream. When a shape repeats, those calls are captured into a CUDA graph, which is then all
that is launched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from edgeinfer.artifact.device_array import DeviceArray
from edgeinfer.backends.tensorrt_.cuda import Buffer, Cuda
from edgeinfer.backends.tensorrt_.tensors import EngineTensor, check_range
from edgeinfer.errors import InferenceError, InputError

__all__ = ["Slot"]

_DEVICE_MEMORY = (2, 3)  # cudaMemoryTypeDevice, cudaMemoryTypeManaged


@final
class Slot:
    """Runs one request at a time. Not thread-safe; a pool hands slots out."""

    def __init__(
        self,
        trt: Any,
        cuda: Cuda,
        engine: Any,
        context: Any,
        inputs: Sequence[EngineTensor],
        outputs: Sequence[EngineTensor],
        *,
        cuda_graphs: bool,
    ) -> None:
        self._cuda, self._engine, self._context = cuda, engine, context
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._stream = cuda.stream()
        self._handle = int(self._stream)
        # An output that decides shapes is written on the host, too.
        self._buffers = {t.name: Buffer(cuda, on_device=not t.is_shape) for t in (*inputs, *outputs)}
        self._allocators = {t.name: _allocator(trt, self._buffers[t.name]) for t in outputs}
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._dynamic_outputs: frozenset[str] = frozenset()
        self._profile = 0
        self._graph: Any = None
        self._runs = 0
        self._elsewhere: set[str] = set()  # inputs whose address is not our buffer's
        self._graphs_allowed = cuda_graphs
        self.graph_reason = "" if cuda_graphs else "CUDA graphs were switched off"

    @property
    def uses_graph(self) -> bool:
        """Whether the next run of the same shapes launches a CUDA graph."""
        return self._graph is not None

    @property
    def buffer_bytes(self) -> int:
        """Device memory of the inputs and outputs."""
        return sum(buffer.device_bytes for buffer in self._buffers.values())

    def run(self, feeds: Mapping[str, Any]) -> list[np.ndarray]:
        """Run once. The outputs are fresh arrays."""
        self.set_shapes(feeds)
        on_device = {t.name: f for t in self.inputs if isinstance(f := feeds[t.name], DeviceArray)}
        for tensor in self.inputs:
            if tensor.name in on_device:
                self._use_device_array(tensor, on_device[tensor.name])
            else:
                self._stage(tensor, feeds[tensor.name])
        self._execute(skip=frozenset(on_device))
        return [
            np.array(self.host_view(tensor), dtype=tensor.public_dtype, copy=True) for tensor in self.outputs
        ]

    def run_staged(self) -> None:
        """Run over what lies in the host buffers."""
        self._execute(skip=frozenset())

    def host_view(self, tensor: EngineTensor) -> np.ndarray:
        """Return the pinned host memory of a tensor, in the engine's dtype and the present shape."""
        return self._buffers[tensor.name].view(tensor.dtype, self._shape(tensor.name))

    def set_shapes(self, feeds: Mapping[str, Any]) -> None:
        """Tell the context the shapes of the inputs, unless they are those of the last run.

        Raises:
            InputError: No optimization profile has them.
        """
        shapes = {t.name: tuple(feeds[t.name].shape) for t in self.inputs}
        values_matter = any(tensor.is_shape for tensor in self.inputs)
        if shapes == self._shapes and not values_matter:
            return
        self._drop_graph()
        self._shapes = None
        self._choose_profile(shapes)
        for tensor in self.inputs:
            shape = shapes[tensor.name]
            if not self._context.set_input_shape(tensor.name, shape):
                raise InputError("TensorRT refuses the shape.", where=f"input {tensor.name!r}", found=shape)
            self._reserve(tensor, shape)
            if tensor.is_shape:
                self._buffers[tensor.name].view(tensor.dtype, shape)[...] = feeds[tensor.name]
        missing = self._context.infer_shapes()
        if missing:
            raise InferenceError("TensorRT cannot infer the output shapes.", where=f"inputs {list(missing)}")
        found = {t.name: tuple(self._context.get_tensor_shape(t.name)) for t in self.outputs}
        self._dynamic_outputs = frozenset(name for name, shape in found.items() if -1 in shape)
        for tensor in self.outputs:
            if tensor.name in self._dynamic_outputs:
                self._context.set_output_allocator(tensor.name, self._allocators[tensor.name])
            else:
                self._reserve(tensor, found[tensor.name])
        self._shapes = shapes
        self._runs = 0

    @property
    def data_dependent_outputs(self) -> frozenset[str]:
        """The outputs whose shapes are known only after a run."""
        return self._dynamic_outputs

    def free(self) -> None:
        """Give everything back."""
        self._cuda.call("cudaStreamSynchronize", self._stream)
        self._drop_graph()
        self._context = None  # before the buffers that it points to
        for buffer in self._buffers.values():
            buffer.free()
        self._cuda.call("cudaStreamDestroy", self._stream)

    def _shape(self, name: str) -> tuple[int, ...]:
        if name in self._dynamic_outputs:
            shape: tuple[int, ...] = self._allocators[name].shape
            return shape
        return tuple(self._context.get_tensor_shape(name))

    def _choose_profile(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        count = self._engine.num_optimization_profiles
        for index in (self._profile, *(i for i in range(count) if i != self._profile)):
            if all(self._fits(tensor, shapes[tensor.name], index) for tensor in self.inputs):
                if index != self._profile:
                    if not self._context.set_optimization_profile_async(index, self._handle):
                        raise InferenceError("TensorRT cannot change the optimization profile.", found=index)
                    self._profile = index
                return
        ranges = [
            f"{t.name} {tuple(low)} to {tuple(high)}"
            for index in range(count)
            for t in self.inputs
            if not t.is_shape
            for low, _, high in [self._engine.get_tensor_profile_shape(t.name, index)]
        ]
        raise InputError(
            "The shapes are outside of what the engine was built for.",
            expected="; ".join(ranges),
            found=", ".join(f"{name} {shape}" for name, shape in shapes.items()),
            hint="Compile again with options={'dims': {name: (least, usual, greatest)}}.",
        )

    def _fits(self, tensor: EngineTensor, shape: tuple[int, ...], profile: int) -> bool:
        if tensor.is_shape:
            return True
        low, _, high = self._engine.get_tensor_profile_shape(tensor.name, profile)
        low, high = tuple(low), tuple(high)
        return len(low) == len(shape) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))

    def _reserve(self, tensor: EngineTensor, shape: tuple[int, ...]) -> None:
        buffer = self._buffers[tensor.name]
        buffer.ensure(int(np.prod(shape, dtype=np.int64)) * tensor.dtype.itemsize)
        address = buffer.host if tensor.is_shape else buffer.device
        if not self._context.set_tensor_address(tensor.name, address):
            raise InferenceError("TensorRT refuses an address.", where=f"tensor {tensor.name!r}")

    def _stage(self, tensor: EngineTensor, array: np.ndarray) -> None:
        check_range(tensor, array)
        np.copyto(self.host_view(tensor), array, casting="unsafe")
        if tensor.name in self._elsewhere:
            self._elsewhere.discard(tensor.name)
            self._context.set_tensor_address(tensor.name, self._buffers[tensor.name].device)

    def _use_device_array(self, tensor: EngineTensor, array: DeviceArray) -> None:
        if array.dtype != tensor.dtype or tensor.is_shape:
            raise InputError(
                "This input cannot be read where it lies in device memory.",
                where=f"input {tensor.name!r}",
                expected=f"{tensor.dtype} on the {'host' if tensor.is_shape else 'device'}",
                found=f"{array.dtype} on the device",
                hint="Pass it as a numpy array.",
            )
        self._check_place(tensor, array)
        self._cuda.call("cudaStreamSynchronize", array.stream)  # its producer may still be writing
        if not self._context.set_tensor_address(tensor.name, array.pointer):
            raise InferenceError("TensorRT refuses an address.", where=f"tensor {tensor.name!r}")
        self._elsewhere.add(tensor.name)

    def _check_place(self, tensor: EngineTensor, array: DeviceArray) -> None:
        if not array.nbytes:
            return
        found = self._cuda.call("cudaPointerGetAttributes", array.pointer)
        if int(found.type) not in _DEVICE_MEMORY:
            raise InputError(
                "An input that says so is not in the memory of a GPU.",
                where=f"input {tensor.name!r}",
                found=f"address {array.pointer:#x}",
                hint="Its owner may have freed it already.",
            )
        if found.device != self._cuda.device:
            raise InputError(
                "An input lies on another GPU than the session's.",
                where=f"input {tensor.name!r}",
                expected=f"GPU.{self._cuda.device}",
                found=f"GPU.{found.device}",
                hint=f"Move it there first: tensor.to('cuda:{self._cuda.device}').",
            )

    def _execute(self, skip: frozenset[str]) -> None:
        if self._graph is not None and not skip:
            self._cuda.call("cudaGraphLaunch", self._graph, self._stream)
        elif self._runs and self._may_capture(skip):
            self._capture()
            if self._graph is not None:
                self._cuda.call("cudaGraphLaunch", self._graph, self._stream)
            else:
                self._enqueue(skip)
        else:
            self._enqueue(skip)
        self._cuda.call("cudaStreamSynchronize", self._stream)
        self._fetch_dynamic()
        self._runs += 1

    def _enqueue(self, skip: frozenset[str]) -> None:
        for tensor in self.inputs:
            if tensor.name not in skip and not tensor.is_shape:
                buffer = self._buffers[tensor.name]
                self._cuda.to_device(buffer.device, buffer.host, self._size(tensor), self._stream)
        if not self._context.execute_async_v3(self._handle):
            raise InferenceError("TensorRT could not enqueue the inference.", where="execute_async_v3")
        for tensor in self.outputs:
            if tensor.name not in self._dynamic_outputs and not tensor.is_shape:
                buffer = self._buffers[tensor.name]
                self._cuda.to_host(buffer.host, buffer.device, self._size(tensor), self._stream)

    def _fetch_dynamic(self) -> None:
        for tensor in self.outputs:
            if tensor.name in self._dynamic_outputs:
                buffer = self._buffers[tensor.name]
                self._cuda.to_host(buffer.host, buffer.device, self._size(tensor), self._stream)
        if self._dynamic_outputs:
            self._cuda.call("cudaStreamSynchronize", self._stream)

    def _size(self, tensor: EngineTensor) -> int:
        return int(np.prod(self._shape(tensor.name), dtype=np.int64)) * tensor.dtype.itemsize

    def _may_capture(self, skip: frozenset[str]) -> bool:
        if not self._graphs_allowed or skip:
            return False
        if self._dynamic_outputs or any(tensor.is_shape for tensor in self.inputs):
            self.graph_reason = "shapes depend on data, so there is no CUDA graph"
            return False
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._handle):
            self.graph_reason = "TensorRT says that this inference cannot be captured into a CUDA graph"
            self._graphs_allowed = False
        return self._graphs_allowed

    def _capture(self) -> None:
        """Record one run as a CUDA graph. It never runs here: the caller launches it, or enqueues as before.

        The first run of a shape is not captured: TensorRT then still sets itself up (its guide asks for one
        plain run before a capture).
        """
        self._cuda.begin_capture(self._stream)
        try:
            self._enqueue(frozenset())
        except InferenceError as error:
            self._no_graph(error)
        try:
            graph = self._cuda.end_capture(self._stream)
        except InferenceError as error:
            self._no_graph(error)
        else:
            self._graph = graph
            if not self._graphs_allowed:
                self._drop_graph()

    def _no_graph(self, error: InferenceError) -> None:
        self._graphs_allowed = False
        self.graph_reason = f"the capture into a CUDA graph failed: {error.what}"

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._cuda.call("cudaGraphExecDestroy", self._graph)
            self._graph = None


def _allocator(trt: Any, buffer: Buffer) -> Any:
    class OutputAllocator(trt.IOutputAllocator):  # type: ignore[misc]
        """Gives TensorRT room for an output whose shape it learns while it runs."""

        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shape: tuple[int, ...] = ()

        # The arguments are positional, as TensorRT gives them: name, memory, size, alignment (, stream).
        def reallocate_output(self, *given: Any) -> int:
            buffer.ensure(int(given[2]))  # cudaMalloc aligns to 256 bytes, which is all that TensorRT needs
            return buffer.device

        def reallocate_output_async(self, *given: Any) -> int:
            return self.reallocate_output(*given)

        def notify_shape(self, _: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return OutputAllocator()
