"""The OpenVINO backend: Intel CPUs, GPUs and NPUs, and CPUs of other makers.

A portable artifact carries the ONNX graph, which OpenVINO compiles when it is loaded. With `export=True` it
carries OpenVINO's own compiled blob instead, which loads faster and is bound to the runtime's version and to
the machine; the manifest says to which.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import io
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any, final

import attrs

from edgeinfer.artifact.artifact import Payload
from edgeinfer.backends.facts import machine_facts
from edgeinfer.backends.forked import keep_in_forked_children
from edgeinfer.backends.onnx_payload import OnnxSource, onnx_source, payload_of_onnx
from edgeinfer.backends.openvino_.cache import verified_cache
from edgeinfer.backends.openvino_.devices import check_device
from edgeinfer.backends.openvino_.dialect import DIALECT
from edgeinfer.backends.openvino_.options import OpenVINOOptions, find_untrusted
from edgeinfer.backends.openvino_.runner import OpenVINORunner
from edgeinfer.backends.option_checks import notes_on, options_of_artifact
from edgeinfer.backends.options import options_from
from edgeinfer.backends.protocol import (
    API_VERSION,
    Capabilities,
    CompileOptions,
    DeviceInfo,
    LoadOptions,
    ModelToCompile,
)
from edgeinfer.errors import CompileError, OptionsError

__all__ = ["OpenVINOBackend", "OpenVINOOptions"]

NAME = "openvino"
BLOB_NAME = "model.blob"

# What is known of it without a runtime.
_WITHOUT = Capabilities(
    available=False, dialect=DIALECT, threads_option="threads", float16_devices=("GPU", "NPU")
)
_log = logging.getLogger(__name__)
_TELEMETRY = "openvino_telemetry"
_PRECISIONS = {"FP32": "float32", "FP16": "float16", "BF16": "bfloat16", "INT8": "int8"}


@final
class OpenVINOBackend:
    """Adapter to `openvino`."""

    name = NAME
    api_version = API_VERSION

    def capabilities(self) -> Capabilities:
        """Return what the installed OpenVINO can do here."""
        try:
            return _capabilities()
        except ImportError as error:
            return attrs.evolve(_WITHOUT, reason=f"openvino cannot be imported: {error}")
        except Exception as error:  # a runtime whose libraries do not fit this machine
            return attrs.evolve(_WITHOUT, reason=f"openvino does not work here: {error}")

    def compile(self, model: ModelToCompile, options: CompileOptions, /) -> Payload:
        """Return the ONNX graph, or OpenVINO's blob with `export=True`. Both were compiled once.

        Raises:
            DeviceError: The device is not here, or no longer supported by OpenVINO.
            OptionsError: An option is unknown or refused.
            CompileError: OpenVINO refuses the model.
        """
        chosen = options_from(OpenVINOOptions, options.options, backend=NAME)
        if options.cache_dir is not None and chosen.cache_dir is None:
            chosen = attrs.evolve(chosen, cache_dir=options.cache_dir)
        device = check_device(options.device or "CPU", _capabilities())
        kept, notes = chosen.portable(), notes_on(chosen.not_portable())
        payload = attrs.evolve(payload_of_onnx(model, device=device, options=kept), notes=notes)
        with verified_cache(chosen.cache):
            compiled = _compile(onnx_source(payload), device, chosen)
        if not chosen.export:
            return payload
        return Payload(
            entry=BLOB_NAME,
            files={BLOB_NAME: _blob(compiled, device)},
            kind="device-bound",
            device=device,
            requires=_requirements(device),
            options=kept,
            notes=notes,
        )

    def load(self, payload: Payload, options: LoadOptions, /) -> OpenVINORunner:
        """Compile the ONNX graph, or import the blob.

        Raises:
            ArtifactError: The artifact names a file, or an option that is not known.
            DeviceError: The device is not here, or no longer supported by OpenVINO.
            OptionsError: An option that was given to `load` is unknown or refused.
            CompileError: OpenVINO refuses the model.
        """
        kept = options_of_artifact(
            OpenVINOOptions, payload.options, backend=NAME, find_untrusted=find_untrusted
        )
        chosen = options_from(OpenVINOOptions, kept, options.options, backend=NAME)
        device = check_device(options.device or payload.device or "CPU", _capabilities())

        def compiled(options: OpenVINOOptions) -> Any:
            if payload.kind != "device-bound":
                return _compile(onnx_source(payload), device, options)
            with _vendor_errors("OpenVINO cannot import the blob", device):
                return _core().import_model(io.BytesIO(payload.read()), device, options.config(device))

        def counting() -> Any:
            """Compile again, with the performance counters of each layer."""
            properties = {**chosen.properties, "PERF_COUNT": True}
            return compiled(attrs.evolve(chosen, properties=properties, cache_dir=None))

        with verified_cache(chosen.cache) as removed:
            ready = compiled(chosen)
        notes = [*removed, *_unmet_precision(ready, chosen)]
        return keep_in_forked_children(OpenVINORunner(_runtime(), ready, device, counting, notes))


def _unmet_precision(compiled: Any, options: OpenVINOOptions) -> list[str]:
    """Say it where the device computes in another precision than was asked for: OpenVINO does not."""
    asked, name = options.inference_precision, "INFERENCE_PRECISION_HINT"
    if asked == "auto" or name not in compiled.get_property("SUPPORTED_PROPERTIES"):
        return []
    found = compiled.get_property(name).to_string()
    return [] if found == asked else [f"inference_precision {asked} was asked for, and {found} is used"]


def _runtime() -> Any:
    """Import OpenVINO without its telemetry, which sends an event when it is imported.

    OpenVINO has a stand-in for a telemetry package that is not installed; so for the time of its import it is
    not.
    """
    if "openvino" not in sys.modules:
        before = sys.modules.get(_TELEMETRY)
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # what Python takes for "not installed"
        try:
            import openvino
        finally:
            del sys.modules[_TELEMETRY]
            if before is not None:
                sys.modules[_TELEMETRY] = before
    import openvino

    telemetry = getattr(sys.modules.get("openvino.tools.ovc"), "telemetry", None)
    if getattr(telemetry, "consent", False):
        telemetry.consent = False  # type: ignore[union-attr]
        _log.warning(
            "openvino was imported before edgeinfer used it, with its telemetry on. It is off from now on, "
            "but may have sent something. Uninstall openvino-telemetry, or do not import openvino before."
        )
    return openvino


@functools.cache
def _core() -> Any:
    return keep_in_forked_children(_runtime().Core())


@functools.cache
def _capabilities() -> Capabilities:
    core = _core()
    build = str(_runtime().get_version())
    return attrs.evolve(
        _WITHOUT,
        available=True,
        version=build.split("-", maxsplit=1)[0],
        devices=tuple(_describe(core, name) for name in core.available_devices),
        facts={**machine_facts(), "openvino_build": build},
    )


def _describe(core: Any, name: str) -> DeviceInfo:
    native = set(core.get_property(name, "OPTIMIZATION_CAPABILITIES"))
    facts = {"runtime_requirements": _runtime_requirements(name)}
    supported = core.get_property(name, "SUPPORTED_PROPERTIES")
    for key in ("DEVICE_ARCHITECTURE", "NPU_DRIVER_VERSION", "GPU_UARCH_VERSION"):
        if key in supported:
            facts[key.lower()] = str(core.get_property(name, key))
    return DeviceInfo(
        name=name,
        description=str(core.get_property(name, "FULL_DEVICE_NAME")).strip(),
        precisions={ours for theirs, ours in _PRECISIONS.items() if theirs in native},
        facts=facts,
    )


def _runtime_requirements(device: str) -> str:
    """Return what OpenVINO says that a blob for the device needs, asked of a model that does nothing."""
    import numpy as np

    ov = _runtime()
    parameter = ov.op.Parameter(ov.Type.f32, ov.Shape([1]))
    one = ov.op.Constant(np.ones(1, np.float32))
    nothing = ov.Model([ov.opset13.add(parameter, one)], [parameter])
    try:
        # With our options, not the vendor's: OpenVINO hands a model's threads on to the next one, and whether
        # they are pinned goes with them.
        compiled = _core().compile_model(nothing, device, OpenVINOOptions().config(device))
        return str(compiled.get_property("RUNTIME_REQUIREMENTS"))
    except RuntimeError:  # a device that does not tell
        return ""


def _requirements(device: str) -> dict[str, tuple[str, ...]]:
    """Return what must match where a blob for the device is loaded."""
    found = _capabilities()
    info = found.device(device)
    facts = {**found.facts, **(info.facts if info is not None else {})}
    return {fact: (glob.escape(value),) for fact, value in facts.items() if value}


def _compile(source: OnnxSource, device: str, options: OpenVINOOptions) -> Any:
    """Compile a model from memory. With a path, OpenVINO would open the files that the model names itself."""
    core = _core()
    with _vendor_errors("OpenVINO cannot read the model", device):
        # Not `read_model`, which guesses the format: the bytes were looked through as ONNX.
        reader = _runtime().frontend.FrontEndManager().load_by_framework("onnx")
        read = reader.convert(reader.load(io.BytesIO(source.with_addresses())))
    strings = [port.get_any_name() for port in read.inputs if port.element_type.get_type_name() == "string"]
    if strings:  # OpenVINO 2026.4 frees such memory twice when it hands a string through, and aborts
        raise CompileError(
            "Strings cannot be passed to OpenVINO safely.",
            where=f"input {strings[0]!r}",
            hint="Use backend 'onnxruntime', or give the part of the model behind its tokenizer.",
        )
    with _vendor_errors("OpenVINO cannot compile the model", device):
        return core.compile_model(read, device, options.config(device))


def _blob(compiled: Any, device: str) -> bytes:
    with _vendor_errors("OpenVINO cannot export the compiled model", device):
        stream = compiled.export_model()
    blob: bytes = stream.getvalue()
    return blob


@contextlib.contextmanager
def _vendor_errors(what: str, device: str) -> Iterator[None]:
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
