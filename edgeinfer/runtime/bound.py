"""The bound mode of a session: buffers that are allocated once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import final

import numpy as np

from edgeinfer.artifact.signature import Signature
from edgeinfer.backends.protocol import Binding, Runner
from edgeinfer.errors import ForkedSessionError, InferenceError, SessionClosedError
from edgeinfer.forking import keep_forever

__all__ = ["BoundSession", "CopyingBinding", "forked_session_error"]


@final
class BoundSession:
    """A session with bound buffers: write `inputs`, call `run()`, read `outputs`.

    The buffers belong to the bound session; each `run` overwrites the outputs. Use one per thread.

    Attributes:
        inputs: The input buffers by name, read-only: write into an array, as in `inputs["x"][...] = x`. An
            optional input has a buffer only where `bind` was given its shape; else its default holds.
        outputs: The output buffers by name, read-only. None of them shares memory with another buffer.
    """

    def __init__(
        self,
        binding: Binding,
        signature: Signature,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        guard: AbstractContextManager[object] | None,
        wrap_error: Callable[[Exception], Exception],
    ) -> None:
        self._binding = binding
        self._run = binding.run
        self._guard = guard
        self._wrap_error = wrap_error
        # A runtime that drops an input which nothing reads has no buffer for it.
        self.inputs: Mapping[str, np.ndarray] = MappingProxyType(
            {
                spec.name: binding.inputs[spec.name]
                if spec.name in binding.inputs
                else np.zeros(shapes[spec.name], spec.dtype)
                for spec in (*signature.inputs, *signature.optional)
                if spec.name in shapes
            }
        )
        # A runtime may know an output by another of its names; the order is the signature's.
        self.outputs: Mapping[str, np.ndarray] = MappingProxyType(
            {
                spec.name: buffer
                for spec, buffer in zip(signature.outputs, binding.outputs.values(), strict=True)
            }
        )
        self._closed = self._forked = False

    def run(self) -> None:
        """Run once over the buffers.

        Raises:
            InferenceError: The runtime failed, or an output has another shape than at binding.
            SessionClosedError: The session or this is closed.
        """
        if self._closed:
            if self._forked:
                raise forked_session_error()
            raise SessionClosedError("The bound session is closed.", hint="Call session.bind() again.")
        try:
            if self._guard is None:
                self._run()
            else:
                with self._guard:
                    self._run()
        except Exception as error:
            if self._closed:
                raise SessionClosedError("The bound session was closed while it ran.") from error
            raise self._wrap_error(error) from error

    def close(self) -> None:
        """Free the binding; the session does so too when it closes. The arrays stay readable."""
        if not self._closed:
            self._closed = True
            self._binding.close()

    def _after_fork(self) -> None:
        self._closed = self._forked = True
        keep_forever(self._binding)

    def __enter__(self) -> BoundSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def forked_session_error() -> ForkedSessionError:
    """Return what every use of a session in a forked child raises."""
    return ForkedSessionError(
        "The session belongs to the process that loaded it, and this is a fork of that.",
        hint="Load the artifact in the child. Start children with multiprocessing's 'spawn' or 'forkserver': "
        "not every runtime works in a fork of a process that used it.",
    )


@final
class CopyingBinding:
    """The bound mode of runners that have none: fixed buffers, at the price of a copy."""

    def __init__(self, runner: Runner, signature: Signature, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._runner = runner
        self.inputs: Mapping[str, np.ndarray] = {
            spec.name: np.full(shapes[spec.name], "" if spec.dtype == object else 0, spec.dtype)
            for spec in (*signature.inputs, *signature.optional)
            if spec.name in shapes
        }
        first = runner.run(self.inputs)
        self.outputs: Mapping[str, np.ndarray] = {
            spec.name: np.array(array) for spec, array in zip(signature.outputs, first, strict=True)
        }

    def run(self) -> None:
        """Run once over the buffers; see `Binding`."""
        for (name, buffer), array in zip(self.outputs.items(), self._runner.run(self.inputs), strict=True):
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
        """Free nothing: the buffers are plain arrays."""
