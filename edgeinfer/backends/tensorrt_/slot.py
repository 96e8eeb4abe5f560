"""One request's worth of a running engine: a context, a stream, buffers, and the CUDA graphs over them.

The order of one run: large inputs on their way to the device, then the inference with the copies of small
tensors around it, then large outputs on their way back, then the wait for the stream. When addresses and
shapes repeat, the middle part is captured into a CUDA graph, which is then all that is launched. In the bound
mode the caller writes and reads the slot's own memory, and the graph holds everything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from edgeinfer.artifact.device_array import DeviceArray
from edgeinfer.backends.tensorrt_.cuda import Cuda
from edgeinfer.backends.tensorrt_.device_output import DeviceOutput
from edgeinfer.backends.tensorrt_.graphs import Graphs
from edgeinfer.backends.tensorrt_.memory import DeviceBlock, Lease
from edgeinfer.backends.tensorrt_.place import Place, allocator
from edgeinfer.backends.tensorrt_.shapes import choose_profile
from edgeinfer.backends.tensorrt_.shared import Shared
from edgeinfer.backends.tensorrt_.tensors import EngineTensor, check_place, check_range
from edgeinfer.errors import InferenceError, InputError

__all__ = ["Slot"]

# Up to this size a tensor is copied within the graph, by way of the slot's own memory: less than what a call
# of CUDA takes.
_SMALL_BYTES = 64 << 10
# What TensorRT asks of addresses (IExecutionContext::setTensorAddress). A slice of a caller's array may have
# less, and is then copied on the device.
_ALIGNMENT = 256


@final
class Slot:
    """Runs one request at a time, on the device that is current. Not thread-safe; a pool hands slots out.

    Args:
        trt: The module.
        cuda: The device.
        engine: The engine.
        context: An execution context of it, for this slot alone.
        inputs: The engine's inputs.
        outputs: Its outputs.
        cuda_graphs: Whether to capture runs into CUDA graphs.
        shared: What it shares with other slots. None for the bound mode: the caller reads and writes the
            host memory of the slot itself.
    """

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
        shared: Shared | None,
    ) -> None:
        self._cuda, self._engine, self._context, self._shared = cuda, engine, context, shared
        self.inputs = tuple(Place(cuda, tensor) for tensor in inputs)
        self.outputs = tuple(Place(cuda, tensor) for tensor in outputs)
        self._allocators = {place: allocator(trt, place) for place in self.outputs}
        self._to_host = shared is None or shared.device_pool is None
        self._small = None if shared is None else _SMALL_BYTES
        self._profile = 0
        self._shapes: tuple[Any, ...] | None = None
        self._addresses: dict[str, int] = {}
        self._stream = cuda.stream()
        self._handle = int(self._stream)
        self.graphs = Graphs(cuda, self._stream, allowed=cuda_graphs)

    @property
    def buffer_bytes(self) -> int:
        """Device memory of the inputs and outputs."""
        return sum(p.device.size for p in (*self.inputs, *self.outputs) if p.device is not None)

    @property
    def pinned(self) -> bool:
        """Whether all memory on the host is page-locked."""
        return all(p.host is None or p.host.pinned for p in (*self.inputs, *self.outputs))

    @property
    def data_dependent_outputs(self) -> list[str]:
        """The outputs whose shapes are known only after a run."""
        return [place.tensor.name for place in self.outputs if place.dynamic]

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        """Run once. The outputs are the caller's."""
        self.set_shapes(feeds)
        leases: dict[Place, Lease] = {}
        try:
            on_device = self._give_inputs(feeds)
            self._take_outputs(leases)
            self._launch(on_device)
            self._fetch(leases)
            self._cuda.synchronize(self._stream)
            self._fetch_dynamic(leases)
        except BaseException:
            self._settle()
            leases.clear()  # the traceback keeps this frame, and must not keep what was lent
            raise
        return [self._output(place, leases.get(place)) for place in self.outputs]

    def run_staged(self) -> None:
        """Run over what lies in the slot's host memory; for the bound mode."""
        try:
            self._launch(())
            self._cuda.synchronize(self._stream)
        except BaseException:
            self._settle()
            raise

    def set_shapes(self, feeds: Mapping[str, Any]) -> None:
        """Tell the context the shapes of the inputs, unless they are those of the last run.

        Raises:
            InputError: No optimization profile has them.
        """
        shapes = tuple([feeds[place.tensor.name].shape for place in self.inputs])
        if shapes == self._shapes:
            return
        self.graphs.drop()
        self._shapes = None
        self._addresses.clear()
        self._choose_profile(shapes)
        for place, shape in zip(self.inputs, shapes, strict=True):
            name = place.tensor.name
            if not self._context.set_input_shape(name, shape):
                raise InputError("TensorRT refuses the shape.", where=f"input {name!r}", found=shape)
            place.fit(tuple(shape), small=self._small)
            self._point(place, place.address)
            if place.tensor.is_shape:
                if isinstance(feeds[name], DeviceArray):
                    check_place(self._cuda, place.tensor, feeds[name])
                np.copyto(place.view, feeds[name], casting="unsafe")
        missing = self._context.infer_shapes()
        if missing:
            raise InferenceError("TensorRT cannot infer the output shapes.", where=f"inputs {list(missing)}")
        for place in self.outputs:
            name = place.tensor.name
            found = tuple(self._context.get_tensor_shape(name))
            place.dynamic = -1 in found
            if not place.dynamic and self._to_host:
                place.fit(found, small=self._small)
                self._point(place, place.address)
            elif not place.dynamic:
                place.settle(found)
            elif not self._context.set_output_allocator(name, self._allocators[place]):
                raise InferenceError("TensorRT takes no allocator.", where=f"output {name!r}")
        values_count = any(place.tensor.is_shape for place in self.inputs)
        if values_count or self.data_dependent_outputs:
            self.graphs.forbid("shapes depend on data, so there is no CUDA graph")
        self._shapes = None if values_count else shapes

    def free(self) -> None:
        """Give everything back, also after an error of CUDA from which there is no way back."""
        with contextlib.ExitStack() as stack:  # each of these, whatever becomes of the others
            stack.callback(self._cuda.call, "cudaStreamDestroy", self._stream)
            for place in (*self.inputs, *self.outputs):
                stack.callback(place.free)
            stack.callback(setattr, self, "_context", None)  # before the buffers that it points to
            stack.callback(self.graphs.drop)
            self._cuda.synchronize(self._stream)

    def _choose_profile(self, shapes: Sequence[tuple[int, ...]]) -> None:
        tensors = [place.tensor for place in self.inputs]
        index = choose_profile(self._engine, tensors, shapes, first=self._profile)
        if index != self._profile:
            if not self._context.set_optimization_profile_async(index, self._handle):
                raise InferenceError("TensorRT cannot change the optimization profile.", found=index)
            self._profile = index

    def _point(self, place: Place, address: int) -> None:
        name = place.tensor.name
        if self._addresses.get(name) != address:
            if not self._context.set_tensor_address(name, address):
                raise InferenceError("TensorRT refuses an address.", where=f"tensor {name!r}")
            self._addresses[name] = address

    def _give_inputs(self, feeds: Mapping[str, Any]) -> tuple[str, ...]:
        """Put the inputs where the inference reads them; return which lie on the device as they came."""
        assert self._shared is not None
        on_device = []
        for place in self.inputs:
            feed = feeds[place.tensor.name]
            if isinstance(feed, DeviceArray):
                check_place(self._cuda, place.tensor, feed)
                self._cuda.synchronize(feed.stream)  # its producer may still be writing
                aligned = feed.pointer and feed.pointer % _ALIGNMENT == 0
                self._point(place, feed.pointer if aligned else place.address)
                if not aligned and place.nbytes:
                    self._cuda.on_device(place.address, feed.pointer, place.nbytes, self._stream)
                on_device.append(place.tensor.name)
            elif not place.tensor.is_shape:
                check_range(place.tensor, feed)
                self._point(place, place.address)
                if place.inline:
                    np.copyto(place.view, feed, casting="unsafe")
                else:
                    self._shared.send(self._cuda, place, feed, self._stream)
        return tuple(on_device)

    def _take_outputs(self, leases: dict[Place, Lease]) -> None:
        """Borrow memory for the outputs that are not copied by way of the slot's own."""
        for place in self.outputs:
            if not place.dynamic and not self._to_host:
                self._point(place, self._borrow(place, leases))
            elif not place.dynamic and not place.inline:
                self._borrow(place, leases)

    def _borrow(self, place: Place, leases: dict[Place, Lease]) -> int:
        assert self._shared is not None
        pool = self._shared.host_pool if self._to_host else self._shared.device_pool
        lent = not self._to_host or (place.nbytes > _SMALL_BYTES and not place.tensor.is_converted)
        lease = pool.take(place.nbytes) if pool is not None and lent else None
        leases[place] = lease if lease is not None else Lease(place.need_host())
        return int(leases[place].block.address)

    def _launch(self, on_device: tuple[str, ...]) -> None:
        """Enqueue the inference and the copies of small tensors, as a CUDA graph where there is one.

        A graph holds addresses, so there is one for each set of them.
        """
        key = (on_device, tuple(self._addresses.values()))
        if self.graphs.launch(key):
            return
        if self.graphs.may_capture(key, self._context, self._handle):
            self.graphs.capture(key, lambda: self._enqueue(on_device))
            if self.graphs.launch(key):
                return
        self._enqueue(on_device)

    def _enqueue(self, on_device: tuple[str, ...]) -> None:
        for place in self.inputs:
            if place.inline and not place.tensor.is_shape and place.tensor.name not in on_device:
                assert place.host is not None
                self._cuda.to_device(place.address, place.host.address, place.nbytes, self._stream)
        if not self._context.execute_async_v3(self._handle):
            self._raise_errors()
            raise InferenceError("TensorRT could not enqueue the inference.", where="execute_async_v3")
        for place in self.outputs:
            if place.inline and not place.dynamic and not place.tensor.is_shape and self._to_host:
                assert place.host is not None
                self._cuda.to_host(place.host.address, place.address, place.nbytes, self._stream)

    def _fetch(self, leases: dict[Place, Lease]) -> None:
        """Enqueue the copies of large outputs."""
        for place, lease in leases.items() if self._to_host else ():
            self._cuda.to_host(lease.block.address, place.address, place.nbytes, self._stream)

    def _fetch_dynamic(self, leases: dict[Place, Lease]) -> None:
        """Copy the outputs whose shapes are known now; their memory was made while the inference ran."""
        dynamic = [place for place in self.outputs if place.dynamic]
        if not dynamic:
            return
        self._raise_errors()
        copy = self._cuda.to_host if self._to_host else self._cuda.on_device
        for place in dynamic:
            address = self._borrow(place, leases)
            if place.nbytes:
                copy(address, place.address, place.nbytes, self._stream)
        self._cuda.synchronize(self._stream)

    def _raise_errors(self) -> None:
        """Raise what an allocator met, which could not be raised where it was met."""
        for place in self.outputs:
            if place.error is not None:
                error, place.error = place.error, None
                raise error

    def _output(self, place: Place, lease: Lease | None) -> Any:
        tensor = place.tensor
        if lease is None:
            return np.array(place.view, dtype=tensor.public_dtype, copy=True)
        if isinstance(lease.block, DeviceBlock):
            return DeviceOutput(self._cuda, lease, tensor.dtype, place.shape)
        if lease.block is place.host:  # the slot's own memory: nobody else may keep it
            return np.array(lease.array(tensor.dtype, place.shape), dtype=tensor.public_dtype, copy=True)
        return lease.array(tensor.dtype, place.shape)

    def _settle(self) -> None:
        """Wait for what is still under way after an error: it uses memory that is given to others next."""
        with contextlib.suppress(InferenceError):  # the error that is being raised says it
            self._cuda.synchronize(self._stream)
