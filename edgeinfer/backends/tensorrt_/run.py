"""Running an engine: a pool of slots, the bound mode, device memory, and the end of it all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np

from edgeinfer.backends.reports import ExecutionReport, LayerTime
from edgeinfer.backends.tensorrt_.caches import RuntimeCache
from edgeinfer.backends.tensorrt_.cuda import Cuda
from edgeinfer.backends.tensorrt_.explain import execution_report, inspect_layers
from edgeinfer.backends.tensorrt_.flavours import Flavour
from edgeinfer.backends.tensorrt_.layer_times import LayerClock
from edgeinfer.backends.tensorrt_.options import TensorRTOptions
from edgeinfer.backends.tensorrt_.place import Place
from edgeinfer.backends.tensorrt_.pool import SlotPool
from edgeinfer.backends.tensorrt_.record import BuildRecord
from edgeinfer.backends.tensorrt_.shared import Shared
from edgeinfer.backends.tensorrt_.slot import Slot
from edgeinfer.backends.tensorrt_.tensors import check_range, read_tensors
from edgeinfer.errors import InferenceError

__all__ = ["TensorRTRunner"]


@final
class TensorRTRunner:
    """Runs one engine. Several threads may: each request takes a slot, up to `max_in_flight` of them."""

    thread_safe = True
    takes_device_arrays = True

    def __init__(
        self,
        flavour: Flavour,
        cuda: Cuda,
        runtimes: list[Any],
        engine: Any,
        record: BuildRecord,
        options: TensorRTOptions,
        notes: Sequence[str] = (),
    ) -> None:
        self._trt = flavour.load()
        self._flavour, self._cuda, self._record, self._options = flavour, cuda, record, options
        self._runtimes, self._engine = runtimes, engine
        self._inputs = read_tensors(engine, record.inputs)
        self._outputs = read_tensors(engine, record.outputs)
        self._cache = RuntimeCache(engine, options.runtime_cache) if options.runtime_cache else None
        limit = options.max_in_flight
        self._notes = [*record.notes, *notes]
        self._lone = bool(record.profiles) and not flavour.has("profile_sharing")
        if self._lone and limit > 1:  # a second context may want the profile of the first
            limit = 1
            self._notes.append(f"{flavour} runs one request at a time: its contexts share no profile")
        self._shared = Shared.of(cuda, options, self._outputs)
        self._pool = SlotPool(lambda: self._new_slot(self._shared), limit)
        self._bound: list[Slot] = []
        self._pool.give(self._pool.take())  # the first slot is made now: loading is when memory may run out

    def run(self, feeds: Mapping[str, np.ndarray], /) -> Sequence[np.ndarray]:
        """Run once; see `Runner`.

        Inputs may be `DeviceArray`, which are read where they lie. With `outputs="device"` the outputs are
        `DeviceOutput`.
        """
        slot = self._pool.take()
        try:
            with self._cuda.current():
                return slot.run(feeds)
        finally:
            self._pool.give(slot)

    def bind(self, shapes: Mapping[str, tuple[int, ...]], /) -> TensorRTBinding:
        """Bind pinned buffers for inputs of exactly these shapes; see `Bindable`.

        Where contexts share no profile, it waits for the request that runs, and takes its place until the
        binding is closed: `run` raises an error meanwhile.
        """
        with contextlib.ExitStack() as undo:
            slot = self._another_slot(undo, None)
            with self._cuda.current():
                binding = TensorRTBinding(self._cuda, slot, shapes, self._unbind)
            undo.pop_all()
        self._bound.append(slot)
        return binding

    @property
    def device_memory_bytes(self) -> dict[str, int]:
        """Device memory in bytes by what holds it: contexts, buffers, outputs that stay there, weights."""
        slots = [*self._pool.slots, *self._bound]
        size = getattr(self._engine, "device_memory_size_v2", None)
        scratch = int(self._engine.device_memory_size if size is None else size)
        found = {"contexts": scratch * len(slots), "buffers": sum(slot.buffer_bytes for slot in slots)}
        if self._shared.device_pool is not None:
            found["outputs"] = self._shared.device_pool.held_bytes
        if hasattr(self._engine, "get_engine_stat"):
            found["weights"] = int(self._engine.get_engine_stat(self._trt.EngineStat.TOTAL_WEIGHTS_SIZE))
        return found

    def execution(self) -> ExecutionReport:
        """Return each layer of the engine with its precision, by the engine inspector; see `Explains`."""
        notes = [
            *self._notes,
            *(self._cache.notes if self._cache is not None else ()),
            f"built by {self._record.flavour} {self._record.version} on {self._record.built_on}",
        ]
        memory = ", ".join(f"{what} {size / 1e6:.2f} MB" for what, size in self.device_memory_bytes.items())
        notes.append(f"device memory: {memory}")
        slots = [*self._pool.slots, *self._bound]
        reasons = {slot.graphs.reason for slot in slots if slot.graphs.reason}
        notes.append(
            "; ".join(sorted(reasons))
            or f"{sum(slot.graphs.used for slot in slots)} of {len(slots)} slots run as CUDA graphs now"
        )
        if not all(slot.pinned for slot in slots):
            notes.append("memory of the host cannot be page-locked here, which makes copies slower")
        if not self._flavour.has("inspector"):
            notes.append(f"{self._flavour} does not tell which layers an engine has")
            return ExecutionReport(backend="tensorrt", layers=(), notes=notes)
        with self._cuda.current():
            return execution_report(self._trt, self._engine, self._record, notes)

    def profile(self, feeds: Mapping[str, np.ndarray], runs: int, /) -> Sequence[LayerTime]:
        """Run with TensorRT's profiler, in a context of its own; see `Profiles`.

        Where contexts share no profile, it waits for the request that runs.
        """
        clock = LayerClock(self._trt)
        with contextlib.ExitStack() as undo:
            slot = self._another_slot(undo, self._shared, clock)
            with self._cuda.current():
                for _ in range(runs + 1):  # the first one warms up
                    clock.start_run()
                    slot.run(feeds)
                told = inspect_layers(self._trt, self._engine) if self._flavour.has("inspector") else ()
        return clock.layers(told)

    def close(self) -> None:
        """Wait for the requests that run, then free everything."""
        slots = self._pool.close()
        bound, self._bound = self._bound, []
        with self._cuda.current(), contextlib.ExitStack() as stack:  # each, whatever becomes of the others
            stack.callback(self._drop_engine)
            stack.callback(self._shared.close)
            for slot in (*slots, *bound):
                stack.callback(slot.free)

    def _drop_engine(self) -> None:
        if self._cache is not None:
            self._cache.save()
        # In this order: TensorRT wants its children gone first.
        self._cache = None
        self._engine = None
        while self._runtimes:
            self._runtimes.pop()

    def _another_slot(
        self, undo: contextlib.ExitStack, shared: Shared | None, clock: LayerClock | None = None
    ) -> Slot:
        """Make a slot beside the pool's; where contexts share no profile, in the place of the only one."""
        if self._lone:
            withdrawn = self._pool.withdraw()
            undo.callback(self._pool.restore)
            self._free(withdrawn)
        slot = self._new_slot(shared, clock)
        undo.callback(self._free, slot)
        return slot

    def _new_slot(self, shared: Shared | None, clock: LayerClock | None = None) -> Slot:
        with self._cuda.current():
            context = (
                self._engine.create_execution_context()
                if self._cache is None
                else self._engine.create_execution_context(self._cache.config)
            )
            if context is None:
                raise InferenceError(
                    "TensorRT could not create an execution context.",
                    hint="Device memory may be used up: lower max_in_flight or the profile's greatest sizes.",
                )
            if clock is not None:
                clock.listen(context)
            return Slot(
                self._trt,
                self._cuda,
                self._engine,
                context,
                self._inputs,
                self._outputs,
                cuda_graphs=self._options.cuda_graphs and clock is None,
                shared=shared,
            )

    def _unbind(self, slot: Slot) -> None:
        if slot in self._bound:
            self._bound.remove(slot)
            self._free(slot)
            if self._lone:
                self._pool.restore()

    def _free(self, slot: Slot) -> None:
        with self._cuda.current():
            slot.free()


@final
class TensorRTBinding:
    """The bound mode: `inputs` and `outputs` are page-locked, so a run copies nothing on the host."""

    def __init__(
        self, cuda: Cuda, slot: Slot, shapes: Mapping[str, tuple[int, ...]], free: Callable[[Slot], None]
    ) -> None:
        self._cuda, self._slot, self._free = cuda, slot, free
        empty = {name: np.zeros((), np.int8).reshape((1,) * len(shape)) for name, shape in shapes.items()}
        slot.set_shapes({name: np.broadcast_to(empty[name], shape) for name, shape in shapes.items()})
        if slot.data_dependent_outputs:
            raise InferenceError(
                "Outputs whose shapes depend on data cannot be bound.",
                where=f"outputs {sorted(slot.data_dependent_outputs)}",
                hint="Use session.infer.",
            )
        # Where the engine's dtype is not the signature's, a run converts.
        self._converted_inputs = [place for place in slot.inputs if place.tensor.is_converted]
        self._converted_outputs = [place for place in slot.outputs if place.tensor.is_converted]
        self.inputs: Mapping[str, np.ndarray] = {p.tensor.name: _bound_array(p) for p in slot.inputs}
        self.outputs: Mapping[str, np.ndarray] = {p.tensor.name: _bound_array(p) for p in slot.outputs}

    def run(self) -> None:
        """Read `inputs`, overwrite `outputs`."""
        for place in self._converted_inputs:
            check_range(place.tensor, self.inputs[place.tensor.name])
            np.copyto(place.view, self.inputs[place.tensor.name], casting="unsafe")
        with self._cuda.current():
            self._slot.run_staged()
        for place in self._converted_outputs:
            self.outputs[place.tensor.name][...] = place.view

    def close(self) -> None:
        """Free the buffers. The arrays stay readable: their memory is the process's own."""
        self._free(self._slot)


def _bound_array(place: Place) -> np.ndarray:
    """Return what the caller writes or reads: the slot's own memory, unless values are converted."""
    tensor = place.tensor
    array = np.zeros(place.shape, tensor.public_dtype) if tensor.is_converted else place.view
    array[...] = 0
    return array
