"""A compiled model that is compiled again after a run that failed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, final

import numpy as np

from edgeinfer.artifact.signature import Signature
from edgeinfer.backends.openvino_.compile import Compiled
from edgeinfer.backends.openvino_.tensors import Convert, converter, input_names

__all__ = ["NO_INPUTS", "Engine", "Infer"]

# The extension's `infer`: inputs, whether the outputs may share OpenVINO's memory, whether strings are `str`.
Infer: TypeAlias = "Callable[[Mapping[Any, Any], bool, bool], Mapping[Any, np.ndarray]]"

NO_INPUTS: Mapping[Any, Any] = {}


@final
class Engine:
    """What the requests of one graph share.

    OpenVINO 2026.4 infers the shapes within a dynamic graph only where those of its inputs changed since the
    last run. After a run that failed there, the same inputs give the output of an earlier run, even in
    another request. So such a graph is given up after a failure.

    Attributes:
        ov: The `openvino` module.
        signature: The inputs and outputs, where they are known.
        compiled: What requests run now, or None after a failure.
        pool: For requests that wait for their next use; another one once they are out of date.
        input_names: The signature's name of each input of the compiled model.
        output_names: The signature's name of each output, or its number.
        converts: What makes the signature's array of each output's array; None for nothing.
        closed: Whether `close` was called.
    """

    def __init__(
        self, ov: Any, compile_model: Callable[[], Compiled], signature: Signature | None = None
    ) -> None:
        self.ov = ov
        self.signature = signature
        self.closed = False
        self.pool: deque[Any] = deque()
        self._compile = compile_model
        self._lock = threading.Lock()
        self.compiled: Compiled | None = compile_model()
        inputs, outputs = self.compiled.model.inputs, self.compiled.model.outputs
        self.input_names = (
            tuple(port.get_any_name() for port in inputs)
            if signature is None
            else input_names(inputs, [spec.name for spec in signature.inputs])
        )
        specs = [None] * len(outputs) if signature is None else signature.outputs
        self.output_names = tuple(
            str(index) if spec is None else spec.name for index, spec in enumerate(specs)
        )
        self.converts: tuple[Convert | None, ...] = tuple(map(converter, outputs, specs))

    def current(self) -> Compiled:
        """Return the compiled model, compiled again if it was given up."""
        with self._lock:
            if self.compiled is None:
                self.compiled = self._compile()
            return self.compiled

    def give_up(self, compiled: Compiled) -> None:
        """Do not use it again after a run of it failed, unless it remembers nothing."""
        with self._lock:
            if compiled.dynamic and self.compiled is compiled and not self.closed:
                self.compiled, self.pool = None, deque()

    def new_request(self, compiled: Compiled) -> tuple[Infer, Any]:
        """Return how to run a request, and the request: the extension's own, without the Python layer."""
        extension_class: Any = type(compiled.model).__mro__[1]
        raw = extension_class.create_infer_request(compiled.model)
        return (raw.infer if compiled.reports_errors else _waiting(raw)), raw

    def run(
        self, compiled: Compiled, infer: Infer, request: Any, shared: bool, strings: bool
    ) -> Mapping[Any, np.ndarray]:
        """Run a request once, whose inputs are set.

        Args:
            compiled: What the request was made of. It is given up if the run fails.
            infer: How to run it; see `new_request`.
            request: The request.
            shared: Whether the outputs may share OpenVINO's memory.
            strings: Whether strings are `str`.
        """
        turns = compiled.turns
        try:
            if turns is None:
                return infer(NO_INPUTS, shared, strings)
            return turns.run(
                lambda: infer(NO_INPUTS, shared, strings), request, lambda: self.give_up(compiled)
            )
        except Exception:
            self.give_up(compiled)
            raise

    def close(self) -> None:
        """Free the compiled model and its requests."""
        self.closed = True
        self.pool = deque(maxlen=0)
        self.compiled = None
        del self._compile


def _waiting(raw: Any) -> Infer:
    """Return an `infer` that starts and waits; see `Compiled.reports_errors`."""

    def infer(inputs: Mapping[Any, Any], _: bool, __: bool) -> Mapping[Any, np.ndarray]:
        raw.start_async(inputs, None)
        raw.wait()
        found: Mapping[Any, np.ndarray] = raw.results
        return found

    return infer
