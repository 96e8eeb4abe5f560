"""Running an engine: a pool of slots, the bound mode, device memory, and the end of it all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np

from edgeinfer.backends.reports import ExecutionReport
from edgeinfer.backends.tensorrt_.caches import RuntimeCache
from edgeinfer.backends.tensorrt_.cuda import Cuda
from edgeinfer.backends.tensorrt_.explain import execution_report
from edgeinfer.backends.tensorrt_.flavours import Flavour
from edgeinfer.backends.tensorrt_.options import TensorRTOptions
from edgeinfer.backends.tensorrt_.record import BuildRecord
from edgeinfer.backends.tensorrt_.slot import Slot
from edgeinfer.backends.tensorrt_.tensors import check_range, read_tensors
from edgeinfer.errors import InferenceError, SessionClosedError

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
        if record.profiles and not flavour.has("profile_sharing") and limit > len(record.profiles):
            limit = len(record.profiles)
            self._notes.append(
                f"{flavour} runs {limit} request(s) at a time: one for each optimization profile"
            )
        self._pool = _Pool(self._new_slot, limit)
        self._bound: list[Slot] = []
        self._pool.give(self._pool.take())  # the first slot is made now: loading is when memory may run out

    def run(self, feeds: Mapping[str, np.ndarray], /) -> Sequence[np.ndarray]:
        """Run once; see `Runner`. Inputs may be `DeviceArray`, which are read where they lie."""
        slot = self._pool.take()
        try:
            with self._cuda.current():
                return slot.run(feeds)
        finally:
            self._pool.give(slot)

    def bind(self, shapes: Mapping[str, tuple[int, ...]], /) -> TensorRTBinding:
        """Bind pinned buffers for inputs of exactly these shapes; see `Bindable`."""
        slot = self._new_slot()
        try:
            with self._cuda.current():
                binding = TensorRTBinding(self._cuda, slot, shapes, self._unbind)
        except BaseException:
            self._free(slot)
            raise
        self._bound.append(slot)
        return binding

    @property
    def device_memory_bytes(self) -> dict[str, int]:
        """Device memory in bytes by what holds it: `contexts`, `buffers`, and `weights` where it is known."""
        slots = [*self._pool.slots, *self._bound]
        size = getattr(self._engine, "device_memory_size_v2", None)
        scratch = int(self._engine.device_memory_size if size is None else size)
        found = {"contexts": scratch * len(slots), "buffers": sum(slot.buffer_bytes for slot in slots)}
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
        reasons = {slot.graph_reason for slot in slots if slot.graph_reason}
        notes.append(
            "; ".join(sorted(reasons))
            or f"{sum(slot.uses_graph for slot in slots)} of {len(slots)} slots run as CUDA graphs now"
        )
        if not self._flavour.has("inspector"):
            notes.append(f"{self._flavour} does not tell which layers an engine has")
            return ExecutionReport(backend="tensorrt", layers=(), notes=notes)
        with self._cuda.current():
            return execution_report(self._trt, self._engine, self._record, notes)

    def close(self) -> None:
        """Wait for the requests that run, then free everything."""
        slots = self._pool.close()
        for slot in [*slots, *self._bound]:
            self._free(slot)
        self._bound.clear()
        with self._cuda.current():
            if self._cache is not None:
                self._cache.save()
            # In this order: TensorRT wants its children gone first.
            self._cache = None
            self._engine = None
            while self._runtimes:
                self._runtimes.pop()

    def _new_slot(self) -> Slot:
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
            return Slot(
                self._trt,
                self._cuda,
                self._engine,
                context,
                self._inputs,
                self._outputs,
                cuda_graphs=self._options.cuda_graphs,
            )

    def _unbind(self, slot: Slot) -> None:
        if slot in self._bound:
            self._bound.remove(slot)
            self._free(slot)

    def _free(self, slot: Slot) -> None:
        with self._cuda.current():
            slot.free()


@final
class TensorRTBinding:
    """The bound mode: `inputs` and `outputs` are pinned host memory, so a run copies nothing on the host."""

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
        # Where the engine's dtype is not the signature's (int64 on TensorRT 8), a run converts.
        self._converted_inputs = [t for t in slot.inputs if t.is_converted]
        self._converted_outputs = [t for t in slot.outputs if t.is_converted]
        converted = {t.name for t in (*self._converted_inputs, *self._converted_outputs)}
        arrays = {
            t.name: np.zeros(slot.host_view(t).shape, t.public_dtype)
            if t.name in converted
            else slot.host_view(t)
            for t in (*slot.inputs, *slot.outputs)
        }
        self.inputs: Mapping[str, np.ndarray] = {t.name: arrays[t.name] for t in slot.inputs}
        self.outputs: Mapping[str, np.ndarray] = {t.name: arrays[t.name] for t in slot.outputs}
        for array in arrays.values():
            array[...] = 0

    def run(self) -> None:
        """Read `inputs`, overwrite `outputs`."""
        for tensor in self._converted_inputs:
            check_range(tensor, self.inputs[tensor.name])
            self._slot.host_view(tensor)[...] = self.inputs[tensor.name]
        with self._cuda.current():
            self._slot.run_staged()
        for tensor in self._converted_outputs:
            self.outputs[tensor.name][...] = self._slot.host_view(tensor)

    def close(self) -> None:
        """Free the buffers; the arrays must not be touched after this."""
        self.inputs = self.outputs = {}
        self._free(self._slot)


@final
class _Pool:
    """Hands out slots, makes them up to a limit, and lets further requests wait."""

    def __init__(self, make: Callable[[], Slot], limit: int) -> None:
        self._make, self._limit = make, limit
        self._free: list[Slot] = []
        self._making = 0
        self._closed = False
        self._changed = threading.Condition()
        self.slots: list[Slot] = []

    def take(self) -> Slot:
        with self._changed:
            while not self._closed and not self._free and len(self.slots) + self._making >= self._limit:
                self._changed.wait()
            if self._closed:
                raise SessionClosedError("The session is closed.", hint="Load the artifact again.")
            if self._free:
                return self._free.pop()  # the one used last: its memory is warm and its graph is there
            self._making += 1
        slot = None
        try:
            slot = self._make()
        finally:
            with self._changed:
                self._making -= 1
                if slot is not None:
                    self.slots.append(slot)
                self._changed.notify()
        return slot

    def give(self, slot: Slot) -> None:
        with self._changed:
            self._free.append(slot)
            self._changed.notify_all()

    def close(self) -> list[Slot]:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while len(self._free) < len(self.slots) or self._making:
                self._changed.wait()
            slots, self.slots, self._free = self.slots, [], []
            return slots
