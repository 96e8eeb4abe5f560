"""What a backend is. Third parties implement these Protocols and inherit from nothing.

A backend is found through the entry-point group `edgeinfer.backends`; see `docs/writing_a_backend.md`, and
`edgeinfer.testing.conformance` for the suite that says whether it is right. The `Session` owns names, shapes,
dtypes, closing, timing, thread-safety and the wrapping of foreign exceptions, once for all backends, so an
adapter only has to talk to its runtime.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, final, runtime_checkable

import attrs
import numpy as np

from edgeinfer.artifact.artifact import Payload
from edgeinfer.artifact.signature import Signature
from edgeinfer.display import Table
from edgeinfer.errors import OptionsError
from edgeinfer.model.model import Model
from edgeinfer.values import as_frozenset, as_tuple

__all__ = [
    "API_VERSION",
    "MOVING_OPS",
    "Backend",
    "Bindable",
    "Binding",
    "Capabilities",
    "CompileOptions",
    "DeviceInfo",
    "ExecutionReport",
    "Explains",
    "KernelCosts",
    "LayerExecution",
    "LayerTime",
    "LoadOptions",
    "Payload",
    "Profiles",
    "QDQDialect",
    "Runner",
    "machine_facts",
    "options_from",
    "payload_of_onnx",
    "typical_us",
]

API_VERSION = 1

T = TypeVar("T")


# Operators that move, select or clamp values and never make new ones: input and output share one scale.
MOVING_OPS = frozenset(
    [
        "MaxPool",
        "Reshape",
        "Transpose",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Split",
        "Identity",
        "DepthToSpace",
        "SpaceToDepth",
    ]
)


def _names(names: Iterable[str]) -> frozenset[str]:
    return frozenset(names)


@final
@attrs.frozen(kw_only=True)
class KernelCosts:
    """What a runtime's kernels cost on one thread, to tell where integers gain nothing. Only ratios matter.

    Attributes:
        float_macs: Multiply-accumulates per microsecond of a float convolution or matrix product.
        float_depthwise_macs: The same of a depthwise convolution.
        float_call_us: What each float kernel costs beside that.
        integer_macs: As `float_macs`, in integers.
        integer_depthwise_macs: As `float_depthwise_macs`, in integers.
        integer_ragged_macs: The same when the channels are no multiple of `lanes`.
        integer_call_us: What each integer kernel costs beside that.
        integer_store_us: Per output element of an integer kernel, for requantizing.
        gather_us: Per input position that an integer convolution of under 8 input channels gathers.
        float_weight_us: Per weight element that a float kernel reads, where that takes longest.
        integer_weight_us: The same in integers.
        pool_us: Per input element of a MaxPool whose output is quantized while its input is not: the runtime
            moves the quantizer above the pool, and pools integers in the wrong layout.
        table_us: Per element of an activation that integers look up in a table and float kernels take in.
        quantize_us: Per element that is quantized.
        dequantize_us: Per element that is dequantized.
        reorder_us: Per element in and out of a float kernel among integer ones, for the change of layout.
        lanes: Channels in one vector register.
    """

    float_macs: float
    float_depthwise_macs: float
    float_call_us: float
    integer_macs: float
    integer_depthwise_macs: float
    integer_ragged_macs: float
    integer_call_us: float
    integer_store_us: float
    gather_us: float
    float_weight_us: float
    integer_weight_us: float
    pool_us: float
    table_us: float
    quantize_us: float
    dequantize_us: float
    reorder_us: float
    lanes: int = 16


@final
@attrs.frozen(kw_only=True)
class QDQDialect:
    """Which Q/DQ graphs a runtime accepts and runs fast (measured; see docs/adr).

    Attributes:
        name: The backend's name.
        activation_dtype: `uint8` or `int8`.
        activation_symmetric: Zero points of activations must be 0.
        weight_dtype: The dtype of weights.
        quantize_bias: Biases are int32 behind DequantizeLinear; else they stay float.
        fold_relu: A ReLU may be folded into the range of the quantizer behind it.
        residual_only: On an Add only the residual branch is quantized; the kernel adds the other.
        min_opset: The opset that its graphs need.
        integer_ops: Operators with a constant weight that have an integer kernel worth quantizing for.
        needs_output: Those of them that run in integers only when their own output is quantized, and by
            nothing but that quantizer: float readers then read the dequantized value.
        quantize_outputs: Whether one of `needs_output` may make an output of the model, whose values are then
            8-bit ones behind DequantizeLinear: faster, and as coarse as that. Never where a Concat joins it
            with others on the way.
        epilogue: Operators that such a kernel takes in behind it. `Add` is a residual, `SiLU` is
            `Mul(x, Sigmoid(x))`.
        requantizing: Operators with an integer kernel of their own, each tensor with its own scale.
        moving: Operators that run on integers as they are; inputs and output share one scale.
        requantize_moved: A quantizer stands behind the operators of `moving`, too. Without it the one above
            them, whose scale they share, is the only one.
        wrong_before: Operators that the runtime computes wrongly once it takes the quantizer behind them into
            their kernel; what reads them, or what is computed from them value by value, stays in float.
        bias_where_shared: A convolution without a bias whose output several nodes read gets one, of next to
            nothing.
        keeps_float_by_axis: The runtime quantizes the weights of float layers between quantizers unasked,
            unless their input is dequantized with a scale for each channel; so it is.
        costs: Where given, what would gain nothing from integers stays in float.
    """

    name: str
    activation_dtype: str = "uint8"
    activation_symmetric: bool = False
    weight_dtype: str = "int8"
    quantize_bias: bool = False
    fold_relu: bool = True
    residual_only: bool = False
    min_opset: int = 13
    integer_ops: frozenset[str] = attrs.field(default=frozenset({"Conv", "Gemm", "MatMul"}), converter=_names)
    needs_output: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    quantize_outputs: bool = False
    epilogue: frozenset[str] = attrs.field(default=frozenset({"Relu", "Clip"}), converter=_names)
    requantizing: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    moving: frozenset[str] = attrs.field(default=MOVING_OPS, converter=_names)
    requantize_moved: bool = True
    wrong_before: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    bias_where_shared: bool = False
    keeps_float_by_axis: bool = False
    costs: KernelCosts | None = None


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
    """

    available: bool
    reason: str = ""
    version: str = ""
    devices: tuple[DeviceInfo, ...] = attrs.field(default=(), converter=as_tuple)
    compile_devices: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    dialect: QDQDialect | None = None
    facts: Mapping[str, str] = attrs.field(factory=dict)

    def device(self, name: str) -> DeviceInfo | None:
        """Return the device of that name, or the default one for an empty name."""
        if not name:
            return self.devices[0] if self.devices else None
        return next((device for device in self.devices if device.name == name), None)


@final
@attrs.frozen(kw_only=True)
class CompileOptions:
    """What `Backend.compile` is asked for.

    Attributes:
        device: The device name within the backend; empty for the backend's default.
        options: The backend's own options: its frozen value, or a mapping; check it with `options_from`.
        cache_dir: A folder for timing caches and the like, or None.
    """

    device: str = ""
    options: object = None
    cache_dir: Path | None = None


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


@runtime_checkable
class Backend(Protocol):
    """An adapter to one runtime."""

    name: str
    api_version: int

    def capabilities(self) -> Capabilities:
        """Return what can be done here. It never raises because a runtime is missing."""
        ...

    def compile(self, model: Model, options: CompileOptions, /) -> Payload:
        """Turn a model into payload files."""
        ...

    def load(self, payload: Payload, options: LoadOptions, /) -> Runner:
        """Make a payload ready to run. Integrity and `requires` were checked before."""
        ...


@final
@attrs.frozen(kw_only=True)
class LayerExecution:
    """One layer as the runtime executed it.

    Attributes:
        name: The runtime's name of the layer.
        op_type: The runtime's type of the layer.
        device: Where it ran: an execution provider or a device.
        precision: The precision of its computation: `float32`, `int8`, … or `unknown`.
        onnx_nodes: The names of the ONNX nodes that it implements, as far as the runtime tells.
        kernel: The implementation that the runtime chose, if it tells.
    """

    name: str
    op_type: str
    device: str = ""
    precision: str = ""
    onnx_nodes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    kernel: str = ""


@final
@attrs.frozen(kw_only=True)
class LayerTime:
    """How long the runtime took for one layer, by its own profiler.

    Attributes:
        name: The runtime's name of the layer.
        op_type: The runtime's type of the layer.
        us: Microseconds of one run: `typical_us` of several.
        onnx_names: What it implements, as far as the runtime tells: names of ONNX nodes, or of the tensors
            that they make.
        kernel: The implementation that the runtime chose, if it tells.
    """

    name: str
    op_type: str
    us: float
    onnx_names: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    kernel: str = ""


def typical_us(times: Sequence[float]) -> float:
    """Return the mean of the fastest quarter: other work slows runs down, and profilers round to 1 µs."""
    fastest = sorted(times)[: (len(times) + 3) // 4]
    return float(np.mean(fastest)) if fastest else 0.0


@final
@attrs.frozen(kw_only=True)
class ExecutionReport:
    """What really ran, by the runtime's own account.

    Attributes:
        backend: The backend's name.
        layers: In execution order where the runtime keeps it.
        notes: What else must be said, such as a precision that was asked for and not reached.
    """

    backend: str
    layers: tuple[LayerExecution, ...] = attrs.field(converter=as_tuple)
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)

    def count(self, precision: str) -> int:
        """Return how many layers ran in that precision."""
        return sum(layer.precision == precision for layer in self.layers)

    @property
    def precisions(self) -> dict[str, int]:
        """The number of layers by precision."""
        found = [layer.precision for layer in self.layers]
        return {precision: found.count(precision) for precision in dict.fromkeys(found)}

    def table(self) -> Table:
        """Return one row a layer."""
        summary = ", ".join(f"{count} {precision or '?'}" for precision, count in self.precisions.items())
        rows = [
            (layer.name, layer.op_type, layer.device, layer.precision, layer.kernel) for layer in self.layers
        ]
        return Table(
            title=f"What ran in {self.backend}: {summary}",
            columns=("layer", "type", "device", "precision", "kernel"),
            rows=rows,
            footer="; ".join(self.notes),
        )

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()


def options_from(cls: type[T], *sources: object, backend: str) -> T:
    """Build a backend's frozen options from values, mappings and None; later ones win, name by name.

    Args:
        cls: The attrs class of the options.
        sources: An instance of `cls`, a mapping of the same names, or None. Of an instance only what differs
            from the defaults counts; a mapping can set a value back to its default.
        backend: For the error message.

    Raises:
        OptionsError: A name is unknown or a value is refused.
    """
    known = [field.name for field in attrs.fields(cls)]  # type: ignore[arg-type]
    merged: dict[str, Any] = {}
    for source in sources:
        if source is None:
            continue
        if isinstance(source, cls):
            defaults = cls()
            merged |= {n: getattr(source, n) for n in known if getattr(source, n) != getattr(defaults, n)}
            continue
        if not isinstance(source, Mapping):
            raise OptionsError(
                f"That is no set of options for {backend!r}.",
                expected=f"a {cls.__name__} or a mapping",
                found=type(source).__name__,
            )
        merged |= source
    unknown = sorted(set(map(str, merged)) - set(known))
    if unknown:
        raise OptionsError(
            f"Backend {backend!r} has no option {unknown[0]!r}.",
            where=f"options of {backend!r}",
            hint=f"It has: {', '.join(known)}.",
        )
    try:
        return cls(**merged)
    except (TypeError, ValueError) as error:
        raise OptionsError(
            f"An option of {backend!r} is refused: {error.args[0] if error.args else error}", found=merged
        ) from error


def payload_of_onnx(model: Model, *, device: str, options: Mapping[str, object] | None = None) -> Payload:
    """Return a portable payload: the model as `model.onnx`, with its data beside it when it is large."""
    from edgeinfer.backends.onnx_payload import onnx_files

    return Payload(entry="model.onnx", files=onnx_files(model), device=device, options=options or {})


def machine_facts() -> dict[str, str]:
    """Return the facts that every artifact bound to this kind of machine needs: system and architecture."""
    return {"system": platform.system(), "machine": platform.machine()}
