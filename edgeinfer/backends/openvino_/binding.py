"""The bound mode of OpenVINO: a request whose inputs and outputs are arrays that do not move."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import numpy as np

from edgeinfer.backends.openvino_.compile import Compiled
from edgeinfer.backends.openvino_.engine import Engine, Infer
from edgeinfer.backends.openvino_.narrowing import check_values, is_wide
from edgeinfer.backends.openvino_.tensors import new_tensor
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
        names = engine.input_names
        self._tensors = [
            new_tensor(engine.ov, port.element_type, shapes[name])
            for port, name in zip(ports, names, strict=True)
        ]
        self.inputs: dict[str, np.ndarray] = {
            name: array for name, (_, array) in zip(names, self._tensors, strict=True)
        }
        self._wide = [name for port, name in zip(ports, names, strict=True) if is_wide(port.element_type)]
        outputs = compiled.model.outputs
        # OpenVINO leaves the buffer of an output alone that is an input passed on, by any of its names.
        passed_on = set[str]().union(*(port.get_names() for port in ports))
        self._bound = {
            index: new_tensor(engine.ov, port.element_type, tuple(port.shape))
            for index, port in enumerate(outputs)
            if port.partial_shape.is_static
            and engine.converts[index] is None
            and passed_on.isdisjoint(port.get_names())
        }
        self._copied = [index for index in range(len(outputs)) if index not in self._bound]
        self._compiled: Compiled | None = None
        self._infer: Infer | None = None
        self._raw: Any = None
        self._prepare()
        buffers = {index: array for index, (_, array) in self._bound.items()}
        if self._copied:  # a first run tells the shapes
            found = zip(self._copied, self._found(self._infer_once()), strict=True)
            buffers |= {index: np.array(array) for index, array in found}
        self.outputs: dict[str, np.ndarray] = {
            name: buffers[index] for index, name in enumerate(engine.output_names)
        }

    def run(self) -> None:
        """Read `inputs`, overwrite `outputs`."""
        for name in self._wide:
            check_values(name, self.inputs[name])
        if self._compiled is not self._engine.compiled:  # a run of the graph failed: see `Engine`
            self._prepare()
        found = self._infer_once()
        if not self._copied:
            return
        for index, array in zip(self._copied, self._found(found), strict=True):
            name = self._engine.output_names[index]
            buffer = self.outputs[name]
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
        found = self._engine.run(compiled, infer, self._raw, True, False)
        if self._engine.compiled is compiled or self._engine.closed:
            return found
        self._prepare()  # a call in another thread failed meanwhile
        return self._infer_once()

    def _found(self, outputs: Mapping[Any, np.ndarray]) -> Iterable[np.ndarray]:
        """Yield the outputs that are copied, as the signature has them."""
        arrays = [*outputs.values()]
        for index in self._copied:
            convert = self._engine.converts[index]
            yield arrays[index] if convert is None else convert(self._raw, index, arrays[index])
