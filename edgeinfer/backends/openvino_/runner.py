"""Running a model that OpenVINO compiled.

Where the time of a call goes when the model is small (medians): OpenVINO's own inference about 6 µs, its
Python dispatch of inputs and outputs (`compiled_model(x)`) as much again or more. So requests are kept with
their input tensors set, and the extension's `infer` is called directly: small inputs are copied into those
tensors, large ones are lent for the call. The extension copies the outputs into new arrays, which the caller
owns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, final

import numpy as np

from edgeinfer.backends.reports import ExecutionReport, LayerTime
from edgeinfer.errors import InferenceError

__all__ = ["OpenVINORunner"]

# A request's `infer`, the inputs that are copied into buffers, those that are lent, and `set_input_tensor`.
# A plain tuple, because it is unpacked on each run, and Python unpacks no other type as quickly.
_Request: TypeAlias = tuple[
    Callable[..., Mapping[Any, np.ndarray]],
    tuple[tuple[str, np.ndarray], ...],
    tuple[tuple[int, str, Any], ...],
    Callable[..., None],
]

# Up to this size copying an input costs less than telling OpenVINO where it is (about 3 µs).
_COPY_BYTES = 32 << 10


@final
class OpenVINORunner:
    """Runs one `CompiledModel`. Each call takes a request from a pool, so threads do not wait for each other.

    Args:
        ov: The `openvino` module.
        compiled: The compiled model.
        device: The device name that it was compiled for.
        counting: Compiles the model again with performance counters.
        notes: What the execution report must say besides.
    """

    thread_safe = True

    def __init__(
        self,
        ov: Any,
        compiled: Any,
        device: str,
        counting: Callable[[], Any],
        notes: Sequence[str] = (),
    ) -> None:
        self._ov = ov
        self._compiled = compiled
        self._device = device
        self._counting = counting
        self._notes = tuple(notes)
        self._bfloat16 = tuple(
            index for index, port in enumerate(compiled.outputs) if port.element_type == ov.Type.bf16
        )
        self._pool: deque[_Request] = deque()

    def run(self, feeds: Mapping[str, np.ndarray], /) -> Sequence[np.ndarray]:
        """Run once; see `Runner`."""
        pool = self._pool  # `close` replaces it, so what comes back late is dropped with the old one
        try:
            request = pool.pop()
        except IndexError:
            request = self._new_request(feeds)
        infer, copied, lent, set_input = request
        for name, buffer in copied:
            buffer[...] = feeds[name]
        for index, name, element_type in lent:
            set_input(index, self._tensor(feeds[name], element_type))
        outputs = [*infer(_NO_INPUTS, False, False).values()]
        pool.append(request)
        for index in self._bfloat16:
            outputs[index] = _as_bfloat16(outputs[index])
        return outputs

    def bind(self, shapes: Mapping[str, tuple[int, ...]], /) -> _OpenVINOBinding:
        """Bind buffers; see `Bindable`."""
        return _OpenVINOBinding(self, shapes)

    def execution(self) -> ExecutionReport:
        """Return what the compiled model says of itself."""
        from edgeinfer.backends.openvino_.execution import report_of

        return report_of(self._compiled.get_runtime_model(), device=self._device, notes=self._notes)

    def profile(self, feeds: Mapping[str, np.ndarray], runs: int, /) -> Sequence[LayerTime]:
        """Compile again with performance counters, and run; see `Profiles`."""
        from edgeinfer.backends.openvino_.execution import layer_times

        counting = OpenVINORunner(self._ov, self._counting(), self._device, self._counting)
        request = counting._raw_request()
        for index, port in enumerate(counting._compiled.inputs):
            tensor = self._tensor(feeds[_name_of(port, feeds)], port.element_type)
            request.set_input_tensor(index, tensor)
        infos = []
        for _ in range(runs + 1):  # the first one warms up
            request.infer(_NO_INPUTS, True, False)
            infos.append(request.profiling_info)
        return layer_times(infos[1:], counting._compiled.get_runtime_model())

    def close(self) -> None:
        """Free the compiled model and its requests."""
        self._pool = deque(maxlen=0)
        del self._compiled, self._counting

    def _new_request(self, names: Iterable[str]) -> _Request:
        """Return a request; `names` are the signature's, of which OpenVINO may know a port by several."""
        raw = self._raw_request()
        copied, lent = [], []
        for index, port in enumerate(self._compiled.inputs):
            name, kind = _name_of(port, names), port.element_type
            shape = port.partial_shape
            if shape.is_static and port.tensor.size * kind.size <= _COPY_BYTES and kind != self._ov.Type.bf16:
                buffer = np.zeros(tuple(shape.to_shape()), kind.to_dtype())
                raw.set_input_tensor(index, self._tensor(buffer, kind))
                copied.append((name, buffer))
            else:
                lent.append((index, name, kind))
        return raw.infer, tuple(copied), tuple(lent), raw.set_input_tensor

    def _raw_request(self) -> Any:
        """Return a request of the extension itself, without the Python layer over it."""
        extension_class: Any = type(self._compiled).__mro__[1]
        return extension_class.create_infer_request(self._compiled)

    def _tensor(self, array: np.ndarray, element_type: Any) -> Any:
        """Return a tensor on the array's memory. This constructor also takes read-only and 0-d arrays."""
        if element_type == self._ov.Type.bf16:
            return self._ov.Tensor(array.view(np.uint16), array.shape, element_type)
        return self._ov.Tensor(array, array.shape, element_type)


_NO_INPUTS: Mapping[Any, Any] = {}


@final
class _OpenVINOBinding:
    """A request whose inputs and outputs are arrays that do not move."""

    def __init__(self, runner: OpenVINORunner, shapes: Mapping[str, tuple[int, ...]]) -> None:
        raw = runner._raw_request()
        self.inputs: dict[str, np.ndarray] = {}
        for index, port in enumerate(runner._compiled.inputs):
            name, kind = _name_of(port, shapes), port.element_type
            self.inputs[name] = _zeros(shapes[name], kind)
            raw.set_input_tensor(index, runner._tensor(self.inputs[name], kind))
        raw.infer(_NO_INPUTS, True, False)  # a first run tells the outputs' shapes
        self.outputs: dict[str, np.ndarray] = {}
        self._moving = []  # outputs whose shape depends on more than the graph says
        for index, port in enumerate(runner._compiled.outputs):
            name, kind = port.get_any_name(), port.element_type
            if name in self.inputs:  # OpenVINO does not copy it: one buffer is both
                self.outputs[name] = self.inputs[name]
                continue
            self.outputs[name] = _zeros(tuple(raw.get_output_tensor(index).shape), kind)
            raw.set_output_tensor(index, runner._tensor(self.outputs[name], kind))
            if not port.partial_shape.is_static:
                self._moving.append((index, name))
        self._raw = raw
        self._infer = raw.infer

    def run(self) -> None:
        """Read `inputs`, overwrite `outputs`."""
        self._infer(_NO_INPUTS, True, False)
        for index, name in self._moving:
            shape = tuple(self._raw.get_output_tensor(index).shape)
            if shape != self.outputs[name].shape:
                raise InferenceError(
                    "An output's shape depends on the data, so it cannot be bound.",
                    where=f"output {name!r}",
                    expected=self.outputs[name].shape,
                    found=shape,
                    hint="Use session.infer for this model.",
                )

    def close(self) -> None:
        """Free the request. The arrays stay with those who hold them."""
        self._raw = self._infer = None


def _name_of(port: Any, names: Iterable[str]) -> str:
    known: set[str] = port.get_names()
    return next((name for name in names if name in known), None) or next(iter(known))


def _zeros(shape: tuple[int, ...], element_type: Any) -> np.ndarray:
    zeros = np.zeros(shape, element_type.to_dtype())
    return _as_bfloat16(zeros) if element_type.get_type_name() == "bf16" else zeros


def _as_bfloat16(array: np.ndarray) -> np.ndarray:
    """Return the array as what it is: OpenVINO's Python layer calls bfloat16 float16."""
    import ml_dtypes

    return array.view(ml_dtypes.bfloat16)
