"""Reading and compiling a graph with OpenVINO, so that it gives right answers or a typed refusal."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any, final

import attrs

from edgeinfer.backends.onnx_payload import OnnxSource
from edgeinfer.backends.onnx_wire import without_initializers
from edgeinfer.backends.openvino_.narrowing import check_graph, graphs_of
from edgeinfer.backends.openvino_.turns import OneAtATime, Overlapping, Turns
from edgeinfer.errors import CompileError, OptionsError
from edgeinfer.values import as_tuple

__all__ = ["Compiled", "compile_onnx", "import_blob", "vendor_errors"]

Config = Mapping[str, object]

# A dynamic graph keeps the kernels of each shape that it has met, 5,000 by OpenVINO's default: 4,096 shapes
# of two convolutions took 536 MB, of two matrix products 5.4 GB. With as many as this number of shapes needs
# (and fewer in oneDNN's own cache, see `openvino_`) it is 21 and 90 MB, at the same speed on new shapes.
_KEPT_SHAPES = 16
_DEFAULT_CAPACITY = 5000


@final
@attrs.frozen(kw_only=True)
class Compiled:
    """A compiled model, and what must be known to run it.

    Attributes:
        model: OpenVINO's `CompiledModel`.
        dynamic: Whether shapes within it depend on the inputs: then it remembers the shapes of the last run,
            those of a failed one, too.
        reports_errors: Whether `infer` may be called. Where one thread runs a dynamic graph it does not raise
            what goes wrong, and leaves the old output (2026.4): `start_async` and `wait` do. `Overlapping`
            needs them, too.
        turns: How the runs of a dynamic graph follow one another.
        notes: For the execution report.
    """

    model: Any
    dynamic: bool
    reports_errors: bool
    turns: Turns | None = None
    notes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)


def compile_onnx(
    ov: Any,
    core: Any,
    source: OnnxSource,
    device: str,
    config: Config,
    *,
    allow_float64_as_float32: bool = False,
    given: Set[str] = frozenset(),
) -> Compiled:
    """Compile an ONNX graph.

    Args:
        ov: The `openvino` module.
        core: Its core.
        source: The model, all in memory: with a path, OpenVINO would open the files that the model names.
        device: The device name.
        config: OpenVINO's properties.
        allow_float64_as_float32: Whether the user accepted that.
        given: Inputs with a default that are inputs here, not constants.

    Raises:
        CompileError: OpenVINO refuses the model, or would compute something else.
        OptionsError: It refuses a property.
    """
    content = source.with_addresses()
    if given:
        content = without_initializers(content, given)
    with vendor_errors("OpenVINO cannot read the model", device):
        # Not `read_model`, which guesses the format: the bytes were looked through as ONNX.
        reader = ov.frontend.FrontEndManager().load_by_framework("onnx")
        model = reader.convert(reader.load(io.BytesIO(content)))
    _refuse_strings(model)
    notes = check_graph(model, allow_float64_as_float32=allow_float64_as_float32)
    _return_bfloat16_in_float32(ov, model)
    dynamic = _is_dynamic(model)
    if dynamic:
        config = {**_bounded_cache(device, model), **_one_stream(device, config), **config}

    def compile_model(config: Config) -> Any:
        with vendor_errors("OpenVINO cannot compile the model", device):
            return core.compile_model(model, device, dict(config))

    return _compiled(compile_model, device, config, dynamic, notes)


def import_blob(read: Callable[[Config], Any], device: str, config: Config) -> Compiled:
    """Import what `export_model` wrote; `read` does so with properties."""

    def import_model(config: Config) -> Any:
        with vendor_errors("OpenVINO cannot import the blob", device):
            return read(config)

    return _compiled(import_model, device, config, None, ())


def _compiled(
    compile_model: Callable[[Config], Any],
    device: str,
    config: Config,
    dynamic: bool | None,
    notes: tuple[str, ...],
) -> Compiled:
    model = compile_model(config)
    if dynamic is None:
        dynamic = _is_dynamic(model.get_runtime_model())
    if not (dynamic and device.startswith("CPU")):
        return Compiled(model=model, dynamic=dynamic, reports_errors=True, notes=notes)
    streams, threads = model.get_property("NUM_STREAMS"), model.get_property("INFERENCE_NUM_THREADS")
    if (
        streams == 1 and threads <= 1
    ):  # without a stream the calling thread runs the graph, and errors reach it
        model = compile_model({**config, "NUM_STREAMS": 0})
    turns: Turns = Overlapping() if streams > 1 else OneAtATime()
    return Compiled(model=model, dynamic=True, reports_errors=streams < 2, turns=turns, notes=notes)


def _is_dynamic(model: Any) -> bool:
    return any(
        output.partial_shape.is_dynamic
        for graph in graphs_of(model)
        for op in graph.get_ops()
        for output in op.outputs()
    )


def _one_stream(device: str, config: Config) -> Config:
    """Return what lets one thread run a dynamic graph, if it is known that one will; see `Compiled`."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    one = allowed == 1 or config.get("INFERENCE_NUM_THREADS") == 1
    return {"NUM_STREAMS": 0} if one and device.startswith(("CPU", "HETERO")) else {}


def _bounded_cache(device: str, model: Any) -> Config:
    operators = sum(op.get_type_name() != "Constant" for op in model.get_ops())
    kept = min(_KEPT_SHAPES * operators, _DEFAULT_CAPACITY)
    return {"CPU_RUNTIME_CACHE_CAPACITY": kept} if device.startswith("CPU") else {}


def _refuse_strings(model: Any) -> None:
    """OpenVINO 2026.4 frees such memory twice when it hands a string input through, and aborts."""
    strings = [port.get_any_name() for port in model.inputs if port.element_type.get_type_name() == "string"]
    if strings:
        raise CompileError(
            "Strings cannot be passed to OpenVINO safely.",
            where=f"input {strings[0]!r}",
            hint="Use backend 'onnxruntime', or give the part of the model behind its tokenizer.",
        )


def _return_bfloat16_in_float32(ov: Any, model: Any) -> None:
    """Convert bfloat16 outputs: without bfloat16 hardware OpenVINO cuts bits off, unrounded.

    The runner rounds. OpenVINO's own preprocessing step for this takes away names of inputs.
    """
    for result in model.get_results():
        source = result.input_value(0)
        if source.get_element_type() == ov.Type.bf16:
            converted = ov.opset13.convert(source, "f32")
            result.input(0).replace_source_output(converted.output(0))
    model.validate_nodes_and_infer_types()


@contextlib.contextmanager
def vendor_errors(what: str, device: str) -> Iterator[None]:
    """Turn OpenVINO's exceptions into OptionsError, for a refused property, and CompileError."""
    try:
        yield
    except Exception as error:
        # "Exception from file:line:" are the steps of the way; what comes after the last one is the message.
        message = re.split(r"Exception from [^\n]*\n", str(error))[-1].strip() or str(error)
        where = f"device {device}"
        if re.search(r"Unsupported property|Wrong value|property key|Property was not found", message):
            raise OptionsError(f"OpenVINO refuses an option: {message}", where=where) from error
        raise CompileError(f"{what}: {message}", where=where) from error
