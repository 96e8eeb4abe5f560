"""Running an ONNX Runtime session.

`InferenceSession.run` spends more on Python's side (checking names, making the tensors) than a small model
spends on inference. So where all inputs and outputs are small and of static shape, buffers that are bound
once are kept in a pool, and a run copies in and out: 2.9 µs instead of 5.2 µs for one Add. Larger and dynamic
ones go through the extension's own `run`, which lends the inputs and allocates the outputs. ONNX Runtime
never writes into an input, and what it returns shares memory with nothing (1.32; the tests hold it to that).
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast, final

import numpy as np

from edgeinfer.backends.onnxruntime_.port import Port
from edgeinfer.backends.reports import ExecutionReport, LayerTime
from edgeinfer.errors import InferenceError
from edgeinfer.lazy import attribute_of
from edgeinfer.numerics.packing import pack, unpack

__all__ = ["OnnxRuntimeRunner"]

# Up to this size of all inputs and outputs together copying costs less than making tensors.
_COPY_BYTES = 32 << 10


@final
class OnnxRuntimeRunner:
    """Runs one `InferenceSession`.

    Args:
        ort: The `onnxruntime` module.
        session: The session.
        diagnose: Creates the session again so that it records where nodes ran, and writes its optimized graph
            to the path that is given, and its profile to a second one.
    """

    thread_safe = True
    takes_optional_inputs = True

    def __init__(self, ort: Any, session: Any, diagnose: Callable[..., Any]) -> None:
        self._ort = ort
        self._session = session
        self._diagnose = diagnose
        required = [Port(value) for value in session.get_inputs()]
        optional = [Port(value) for value in session.get_overridable_initializers()]
        self._inputs = {port.name: port for port in (*required, *optional)}
        self._outputs = {port.name: port for port in map(Port, session.get_outputs())}
        self._names = list(self._outputs)
        self._shapes = {port.name: port.shape for port in required}
        self._count = len(required)
        # The extension's session. Its `run` and that of the public class take the same arguments.
        self._raw = getattr(session, "_sess", session)
        ports = [*required, *self._outputs.values()]
        self._prebind = (
            not self._inputs.keys() & self._outputs.keys()
            and all(port.nbytes is not None for port in ports)
            and sum(port.nbytes or 0 for port in ports) <= _COPY_BYTES
        )
        self._foreign = any(port.foreign for port in (*self._inputs.values(), *self._outputs.values()))
        self._pool: deque[_OrtBinding] = deque()

    def run(self, feeds: Mapping[str, np.ndarray], /) -> Sequence[np.ndarray]:
        """Run once; see `Runner`."""
        if self._prebind and len(feeds) == self._count:
            pool = self._pool  # `close` replaces it, so what comes back late is dropped with the old one
            try:
                binding = pool.pop()
            except IndexError:
                return self._run_before_binding(feeds)
            for name, buffer in binding.inputs.items():
                buffer[...] = feeds[name]
            try:
                binding.run()
            except Exception:  # perhaps an output is not of the shape that the model declares
                outputs = self._run_plainly(feeds)
                self._prebind = False
                return outputs
            outputs = [buffer.copy() for buffer in binding.outputs.values()]
            pool.append(binding)
            return outputs
        return self._run_plainly(feeds)

    def bind(self, shapes: Mapping[str, tuple[int, ...]], /) -> _OrtBinding:
        """Bind buffers; see `Bindable`."""
        return _OrtBinding(self, shapes, self._output_shapes(shapes))

    def execution(self) -> ExecutionReport:
        """Create the session again with recording, and return what it says."""
        report = attribute_of("edgeinfer.backends.onnxruntime_.execution", "report_of")(self._diagnose)
        return cast("ExecutionReport", report)

    def profile(self, feeds: Mapping[str, np.ndarray], runs: int, /) -> Sequence[LayerTime]:
        """Create the session again with its profiler, and run it; see `Profiles`."""
        times = attribute_of("edgeinfer.backends.onnxruntime_.profile", "layer_times")
        return cast("Sequence[LayerTime]", times(self._diagnose, feeds, runs))

    def close(self) -> None:
        """Free the session."""
        self._pool = deque(maxlen=0)
        del self._raw, self._session, self._diagnose

    def _run_before_binding(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run, and bind buffers for the runs after it if the outputs have the shapes that are declared.

        A wrong output shape in a model is a warning to ONNX Runtime, and an error where buffers are bound.
        """
        pool = self._pool
        outputs = self._run_plainly(feeds)
        declared = {name: port.shape for name, port in self._outputs.items()}
        if [array.shape for array in outputs] == list(declared.values()):
            pool.append(_OrtBinding(self, self._shapes, declared))
        else:
            self._prebind = False
        return outputs

    def _run_plainly(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if not self._foreign:
            found: list[np.ndarray] = self._raw.run(self._names, feeds, None)
            return found
        binding, lent = self._session.io_binding(), []
        for name, array in feeds.items():
            port = self._inputs[name]
            if port.dtype == object:
                binding.bind_cpu_input(name, array)
                continue
            lent.append(pack(array) if port.packed else array)
            binding.bind_input(name, "cpu", 0, port.element_type, array.shape, lent[-1].ctypes.data)
        return [_array_of(value, port) for value, port in self._run_unbound(binding)]

    def _run_unbound(self, binding: Any) -> Iterable[tuple[Any, Port]]:
        """Run with outputs that ONNX Runtime allocates; return them."""
        for name in self._names:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        return zip(binding.get_outputs(), self._outputs.values(), strict=True)

    def _output_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the outputs for inputs of these shapes, by a run over made-up values.

        A model may refuse zeros that it divides by, or ones that are its indices. Before 1.30 a division of
        integers by zero ends the process, so ones come first there.
        """
        release = tuple(int(part) for part in self._ort.__version__.split(".")[:2])
        for fill in (0, 1) if release >= (1, 30) else (1, 0):
            try:
                return self._output_shapes_for(shapes, fill)
            except Exception as error:
                refusal = error
        # Declared shapes are as good until a run says that they are wrong.
        if any(port.nbytes is None for port in self._outputs.values()):
            raise refusal
        return {name: port.shape for name, port in self._outputs.items()}

    def _output_shapes_for(
        self, shapes: Mapping[str, tuple[int, ...]], fill: int
    ) -> dict[str, tuple[int, ...]]:
        binding = self._session.io_binding()
        feeds = {name: np.zeros(shape, self._inputs[name].dtype) for name, shape in shapes.items()}
        for name, array in feeds.items():
            array[...] = fill
            element_type = self._inputs[name].element_type
            binding.bind_input(name, "cpu", 0, element_type, array.shape, array.ctypes.data)
        return {port.name: tuple(value.shape()) for value, port in self._run_unbound(binding)}


@final
class _OrtBinding:
    """An IOBinding on arrays that do not move."""

    def __init__(
        self,
        runner: OnnxRuntimeRunner,
        shapes: Mapping[str, tuple[int, ...]],
        output_shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        binding = runner._session.io_binding()
        self.inputs = {name: np.zeros(shape, runner._inputs[name].dtype) for name, shape in shapes.items()}
        self.outputs = {
            name: np.zeros(shape, runner._outputs[name].dtype) for name, shape in output_shapes.items()
        }
        for name, array in self.inputs.items():
            element_type = runner._inputs[name].element_type
            binding.bind_input(name, "cpu", 0, element_type, array.shape, array.ctypes.data)
        # ONNX Runtime writes nothing into a bound output that is an input itself, and takes none whose shape
        # the model declares wrongly.
        self._copied: list[tuple[int, Port]] = []
        for index, (name, array) in enumerate(self.outputs.items()):
            port = runner._outputs[name]
            if name in self.inputs or not port.allows(array.shape):
                self._copied.append((index, port))
                binding.bind_output(name, "cpu")
            else:
                binding.bind_output(name, "cpu", 0, port.element_type, array.shape, array.ctypes.data)
        self._run: Any = runner._raw.run_with_iobinding
        self._public = binding
        self._binding = getattr(binding, "_iobinding", binding)

    def run(self) -> None:
        """Read `inputs`, overwrite `outputs`. ONNX Runtime refuses a bound output of another shape."""
        self._run(self._binding, None)
        if not self._copied:
            return
        values = self._public.get_outputs()
        for index, port in self._copied:
            array, buffer = _array_of(values[index], port), self.outputs[port.name]
            if array.shape != buffer.shape:
                raise InferenceError(
                    "An output's shape depends on the data, so it cannot be bound.",
                    where=f"output {port.name!r}",
                    expected=buffer.shape,
                    found=array.shape,
                    hint="Use session.infer for this model.",
                )
            buffer[...] = array

    def close(self) -> None:
        """Free the binding. The arrays stay with those who hold them."""
        self._run = self._binding = self._public = None


def _array_of(value: Any, port: Port) -> np.ndarray:
    if not port.foreign:
        return np.array(value.numpy())  # an input that is passed on is the caller's memory
    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    size = -(-count * port.bits // 8)
    copied = np.frombuffer(bytearray(ctypes.string_at(value.data_ptr(), size)), np.uint8)
    return unpack(copied, shape, port.dtype) if port.packed else copied.view(port.dtype).reshape(shape)
