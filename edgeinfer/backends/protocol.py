"""What a backend is. Third parties implement these Protocols and inherit from nothing.

A backend is found through the entry-point group `edgeinfer.backends`; see `docs/writing_a_backend.md`, and
`edgeinfer.testing.conformance` for the suite that says whether it is right. The `Session` owns names, shapes,
dtypes, closing, timing, thread-safety and the wrapping of foreign exceptions, once for all backends, so an
adapter only has to talk to its runtime.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import attrs
import numpy as np

from edgeinfer.artifact.payload import Payload
from edgeinfer.artifact.signature import Signature
from edgeinfer.backends.dialect import QDQDialect
from edgeinfer.backends.reports import ExecutionReport, LayerTime
from edgeinfer.values import as_frozenset, as_tuple

__all__ = [
    "API_VERSION",
    "Backend",
    "Bindable",
    "Binding",
    "Capabilities",
    "CompileOptions",
    "DeviceInfo",
    "Explains",
    "LoadOptions",
    "ModelToCompile",
    "Profiles",
    "Runner",
    "is_same_device",
]


API_VERSION = 1


def is_same_device(one: str, other: str) -> bool:
    """Whether two names mean one device of a backend: `GPU` and `GPU.0` are the first of their kind."""
    return one.removesuffix(".0") == other.removesuffix(".0")


@final
@attrs.frozen(kw_only=True)
class DeviceInfo:
    """One device that a backend can use here.

    Attributes:
        name: Its name within the backend, such as `CPU` or `GPU.0`.
        description: Its full name, for people.
        precisions: The precisions that it executes: `float32`, `float16`, `bfloat16`, `int8`, …
        facts: What device-bound artifacts can be bound to, such as `compute_capability`.
    """

    name: str
    description: str = ""
    precisions: frozenset[str] = attrs.field(default=frozenset({"float32"}), converter=as_frozenset)
    facts: Mapping[str, str] = attrs.field(factory=dict)


@final
@attrs.frozen(kw_only=True)
class Capabilities:
    """What a backend can do on this machine, now.

    Attributes:
        available: Whether it can load and run something here.
        reason: When it cannot: why, and what to install.
        version: The runtime's version.
        devices: What it can run on; the first is the default.
        compile_devices: Devices that it can compile for without having them, such as `GPU`.
        dialect: The Q/DQ graphs that it wants, or None when it runs no quantized graph.
        facts: What artifacts can be bound to on every device, such as `runtime_version`.
        reference: Whether it runs any ONNX graph as the graph says, and gives every tensor of it: models are
            looked into with it, and others' results judged by its own.
        reference_options: The options with which it does so, also where others would be faster.
        threads_option: The name of the option for the threads within an operator, if there is one.
        spin_option: The name of the option, a bool, for whether idle threads wait by spinning, if there is
            one.
        float16_devices: What the names of devices begin with that compute in float16 faster than in float32.
        tuning_options: Sets of options, besides threads, that are faster than the default on some models and
            machines: what a tuner measures. They must not change what is computed.
        narrow_options: By the name of a precision, such as `bfloat16`: the options with which a device that
            has it natively computes in it what the graph says in float32. They change the numbers, so a tuner
            judges closeness with them.
    """

    available: bool
    reason: str = ""
    version: str = ""
    devices: tuple[DeviceInfo, ...] = attrs.field(default=(), converter=as_tuple)
    compile_devices: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    dialect: QDQDialect | None = None
    facts: Mapping[str, str] = attrs.field(factory=dict)
    reference: bool = False
    reference_options: Mapping[str, object] = attrs.field(factory=dict)
    threads_option: str | None = None
    spin_option: str | None = None
    float16_devices: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    tuning_options: tuple[Mapping[str, object], ...] = attrs.field(default=(), converter=as_tuple)
    narrow_options: Mapping[str, Mapping[str, object]] = attrs.field(factory=dict)

    def threads(self, count: int) -> dict[str, object] | None:
        """Return the options for so many threads within an operator; None where there is no such option."""
        return {self.threads_option: count} if self.threads_option else None

    def device(self, name: str) -> DeviceInfo | None:
        """Return the device of that name, or the default one for an empty name."""
        if not name:
            return self.devices[0] if self.devices else None
        return next((device for device in self.devices if is_same_device(device.name, name)), None)


@final
@attrs.frozen(kw_only=True)
class CompileOptions:
    """What `Backend.compile` is asked for.

    Attributes:
        device: The device name within the backend; empty for the backend's default.
        options: The backend's own options: its frozen value, or a mapping; check it with `options_from`.
        cache_dir: A folder for timing caches and the like, or None.
        trial: Let the runtime compile the model even where the payload does not need it, so that what it
            refuses is refused at once. False where the payload is loaded next, which tells the same.
    """

    device: str = ""
    options: object = None
    cache_dir: Path | None = None
    trial: bool = True


@final
@attrs.frozen(kw_only=True)
class LoadOptions:
    """What `Backend.load` is asked for.

    Attributes:
        device: The device name within the backend; empty for that of the payload.
        options: The backend's own options, which add to those in `payload.options`.
        signature: The inputs and outputs of the artifact; None when they are not known.
    """

    device: str = ""
    options: object = None
    signature: Signature | None = None


@runtime_checkable
class Runner(Protocol):
    """Runs feeds that were validated.

    `thread_safe` may be False: the session then lets one thread in at a time. A runner with a true
    `takes_optional_inputs` finds inputs that have a default among the feeds when the caller gave them;
    without it the session refuses them. One with a true `takes_device_arrays` is given arrays in device
    memory.
    """

    thread_safe: bool

    def run(self, feeds: Mapping[str, np.ndarray], /) -> Sequence[np.ndarray]:
        """Run once.

        Args:
            feeds: Every input by name: C-contiguous, of the signature's dtype, of a fitting shape; strings
                are `str` objects. Only valid during the call: a runtime must neither write into it nor keep
                it, which one does that passes an input on as an output.

        Returns:
            The outputs in the signature's order. They belong to the caller: no later run may change them, and
            they share memory neither with the feeds nor with each other. Strings are object arrays of `str`.
        """
        ...

    def close(self) -> None:
        """Free everything. Called once."""
        ...


@runtime_checkable
class Binding(Protocol):
    """Buffers that are bound to a runner, so that a run allocates nothing.

    No two of them share memory. What a run cannot write into its buffer, such as an output of another shape,
    is an error of that run and of the next one with the same data: never an old value.
    """

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]

    def run(self) -> None:
        """Read `inputs`, overwrite `outputs`."""
        ...

    def close(self) -> None:
        """Free the buffers."""
        ...


@runtime_checkable
class Bindable(Protocol):
    """A Runner that has a bound mode; without it the session copies."""

    def bind(self, shapes: Mapping[str, tuple[int, ...]], /) -> Binding:
        """Bind buffers for inputs of exactly these shapes.

        The session asks only where no tensor has strings, or values of less than a byte. An optional input
        without a shape keeps its default.
        """
        ...


@runtime_checkable
class Explains(Protocol):
    """A Runner that knows what really ran."""

    def execution(self) -> ExecutionReport:
        """Return each executed layer with its device and precision."""
        ...


@runtime_checkable
class Profiles(Protocol):
    """A Runner that can time its layers."""

    def profile(self, feeds: Mapping[str, np.ndarray], runs: int, /) -> Sequence[LayerTime]:
        """Run `runs` times with the runtime's profiler, beside what the runner does otherwise.

        Args:
            feeds: As for `Runner.run`.
            runs: At least 1.

        Returns:
            The layers that ran, in execution order. One that holds others, such as `If`, is left out.
        """
        ...


class ModelToCompile(Protocol):
    """What a backend may ask of the model that it compiles; `edgeinfer.Model` has it.

    The graph itself is `ir`, an `onnx_ir.Model`. It must not be changed.
    """

    @property
    def ir(self) -> Any:
        """The graph."""
        ...

    @property
    def signature(self) -> Signature:
        """The inputs and outputs."""
        ...

    @property
    def nbytes(self) -> int:
        """The size of all weights in bytes."""
        ...

    def to_bytes(self) -> bytes:
        """Return the serialized `ModelProto` with all weights inline (under 2 GB)."""
        ...

    def save(self, path: str | os.PathLike[str], *, external_data: bool | None = None) -> Path:
        """Write the `.onnx` file, with its weights in a file beside it where `external_data` says so."""
        ...


@runtime_checkable
class Backend(Protocol):
    """An adapter to one runtime."""

    name: str
    api_version: int

    def capabilities(self) -> Capabilities:
        """Return what can be done here. It never raises because a runtime is missing."""
        ...

    def compile(self, model: ModelToCompile, options: CompileOptions, /) -> Payload:
        """Turn a model into payload files."""
        ...

    def load(self, payload: Payload, options: LoadOptions, /) -> Runner:
        """Make a payload ready to run. Integrity and `requires` were checked before."""
        ...
