"""The bound mode of OpenVINO: a request whose inputs and outputs are arrays that do not move."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import numpy as np

from edgeinfer.backends.openvino_.compile import Compiled
from edgeinfer.backends.openvino_.engine import NO_INPUTS, Engine, Infer
from edgeinfer.backends.openvino_.narrowing import check_values, is_wide
from edgeinfer.backends.openvino_.tensors import name_of, new_tensor
from edgeinfer.errors import InferenceError

__all__ = ["OpenVINOBinding"]


@final
class OpenVINOBinding:
    """Buffers for inputs of fixed shapes.

    OpenVINO writes straight into the buffer of an output whose shape its graph knows. Into one of another
    size it would write beyond the end, or not at all (2026.4, on one core), so every other output is copied.

    Args:
        engine: The graph.
        shapes: The shape of each input.
    """

    def __init__(self, engine: Engine, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._engine = engine
        compiled = engine.current()
        ports = compiled.model.inputs
        self._names = [name_of(port, shapes) for port in ports]
        self._tensors = [
            new_tensor(engine.ov, port.element_type, shapes[name])
            for port, name in zip(ports, self._names, strict=True)
        ]
        self.inputs: dict[str, np.ndarray] = {
            name: array for name, (_, array) in zip(self._names, self._tensors, strict=True)
        }
        self._wide = [
            name for port, name in zip(ports, self._names, strict=True) if is_wide(port.element_type)
        ]
        outputs = compiled.model.outputs
        self._bound = {
            index: new_tensor(engine.ov, port.element_type, tuple(port.shape))
            for index, port in enumerate(outputs)
            if port.partial_shape.is_static
            and engine.converts[index] is None
            and not _is_input(port, self._names)
        }
        self._copied = [index for index in range(len(outputs)) if index not in self._bound]
        self._compiled: Compiled | None = None
        self._infer: Infer | None = None
        self._raw: Any = None
        self._prepare()
        buffers = [self._bound[index][1] if index in self._bound else None for index in range(len(outputs))]
        if self._copied:  # a first run tells the shapes
            for index, array in zip(self._copied, self._found(self._infer_once()), strict=True):
                buffers[index] = np.array(array)
        self.outputs: dict[str, np.ndarray] = {
            _output_name(index, port): buffer
            for index, (port, buffer) in enumerate(zip(outputs, buffers, strict=True))
            if buffer is not None
        }
        names = list(self.outputs)
        self._copies = [(names[index], self.outputs[names[index]]) for index in self._copied]

    def run(self) -> None:
        """Read `inputs`, overwrite `outputs`."""
        for name in self._wide:
            check_values(name, self.inputs[name])
        if self._compiled is not self._engine.compiled:  # a run of the graph failed: see `Engine`
            self._prepare()
        found = self._infer_once()
        if not self._copied:
            return
        for (name, buffer), array in zip(self._copies, self._found(found), strict=True):
            if array.shape != buffer.shape:
                raise InferenceError(
                    "An output's shape depends on the data, so it cannot be bound.",
                    where=f"output {name!r}",
                    expected=buffer.shape,
                    found=array.shape,
                    hint="Use session.infer for this model.",
                )
            buffer[...] = array

    def close(self) -> None:
        """Free the request. The arrays stay with those who hold them."""
        self._raw = self._infer = None

    def _prepare(self) -> None:
        self._compiled = self._engine.current()
        self._infer, self._raw = self._engine.new_request(self._compiled)
        for index, (tensor, _) in enumerate(self._tensors):
            self._raw.set_input_tensor(index, tensor)
        for index, (tensor, _) in self._bound.items():
            self._raw.set_output_tensor(index, tensor)

    def _infer_once(self) -> Mapping[Any, np.ndarray]:
        infer, compiled = self._infer, self._compiled
        assert infer is not None
        assert compiled is not None
        try:
            return infer(NO_INPUTS, True, False)
        except Exception:
            self._engine.give_up(compiled)
            raise

    def _found(self, outputs: Mapping[Any, np.ndarray]) -> Iterable[np.ndarray]:
        """Yield the outputs that are copied, as the signature has them."""
        arrays = [*outputs.values()]
        for index in self._copied:
            convert = self._engine.converts[index]
            yield arrays[index] if convert is None else convert(self._raw, index, arrays[index])


def _is_input(port: Any, names: Iterable[str]) -> bool:
    """Whether an output is an input that is passed on: OpenVINO leaves the buffer of such an output alone."""
    return not port.get_names().isdisjoint(names)


def _output_name(index: int, port: Any) -> str:
    """Return a name for messages; the session knows the outputs by their order."""
    names = port.get_names()
    return min(names) if names else f"output {index}"
