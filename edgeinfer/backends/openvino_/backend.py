"""The OpenVINO backend: Intel CPUs, GPUs and NPUs, and CPUs of other makers.

A portable artifact carries the ONNX graph, which OpenVINO compiles when it is loaded. With `export=True` it
carries OpenVINO's own compiled blob instead, which loads faster and is bound to the runtime's version and to
the machine; the manifest says to which.
"""

from __future__ import annotations

import functools
import glob
import io
from collections.abc import Set
from typing import Any, final

import attrs

from edgeinfer.artifact.payload import Payload
from edgeinfer.backends.facts import machine_facts
from edgeinfer.backends.onnx_payload import onnx_source, payload_of_onnx
from edgeinfer.backends.openvino_.cache import verified_cache
from edgeinfer.backends.openvino_.compile import Compiled, compile_onnx, import_blob, vendor_errors
from edgeinfer.backends.openvino_.devices import check_device
from edgeinfer.backends.openvino_.dialect import DIALECT
from edgeinfer.backends.openvino_.options import OpenVINOOptions, find_untrusted
from edgeinfer.backends.openvino_.process import core, vendor_module
from edgeinfer.backends.openvino_.runner import OpenVINORunner
from edgeinfer.backends.openvino_.tensors import input_names
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
from edgeinfer.errors import InputError

__all__ = ["OpenVINOBackend", "OpenVINOOptions"]

NAME = "openvino"
BLOB_NAME = "model.blob"

# What is known of it without a runtime.
_WITHOUT = Capabilities(
    available=False,
    dialect=DIALECT,
    threads_option="threads",
    float16_devices=("GPU", "NPU"),
    tuning_options=({"num_streams": 1}, {"pinning": True}),
    narrow_options={"bfloat16": {"inference_precision": "bf16"}},
)
_PRECISIONS = {"FP32": "float32", "FP16": "float16", "BF16": "bfloat16", "INT8": "int8"}


@final
class OpenVINOBackend:
    """Adapter to `openvino`."""

    name = NAME
    api_version = API_VERSION

    def capabilities(self) -> Capabilities:
        """Return what the installed OpenVINO can do here."""
        try:
            core()  # no longer works in a fork of a process that used it
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
        if not options.trial and not chosen.export:
            return payload
        with verified_cache(chosen.cache):
            compiled = _compile(payload, device, chosen)
        input_names(compiled.model.inputs, [spec.name for spec in model.signature.inputs])
        if not chosen.export:
            return payload
        return Payload(
            entry=BLOB_NAME,
            files={BLOB_NAME: _blob(compiled.model, device)},
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

        def compiled(given: Set[str] = frozenset(), counting: bool = False) -> Compiled:
            """Compile; `counting` with the performance counters of each layer, which no cache has."""
            options = chosen
            if counting:
                properties = {**chosen.properties, "PERF_COUNT": True}
                options = attrs.evolve(chosen, properties=properties, cache_dir=None)
            with verified_cache(options.cache) as removed:
                made = _compile(payload, device, options, given)
            return attrs.evolve(made, notes=(*made.notes, *removed, *_unmet_precision(made.model, options)))

        return OpenVINORunner(vendor_module(), compiled, device, options.signature)


def _unmet_precision(compiled: Any, options: OpenVINOOptions) -> list[str]:
    """Say it where the device computes in another precision than was asked for: OpenVINO does not."""
    asked, name = options.inference_precision, "INFERENCE_PRECISION_HINT"
    if asked == "auto" or name not in compiled.get_property("SUPPORTED_PROPERTIES"):
        return []
    found = compiled.get_property(name).to_string()
    return [] if found == asked else [f"inference_precision {asked} was asked for, and {found} is used"]


@functools.cache
def _capabilities() -> Capabilities:
    vendor = core()
    build = str(vendor_module().get_version())
    return attrs.evolve(
        _WITHOUT,
        available=True,
        version=build.split("-", maxsplit=1)[0],
        devices=tuple(_describe(vendor, name) for name in vendor.available_devices),
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

    ov = vendor_module()
    parameter = ov.op.Parameter(ov.Type.f32, ov.Shape([1]))
    one = ov.op.Constant(np.ones(1, np.float32))
    nothing = ov.Model([ov.opset13.add(parameter, one)], [parameter])
    try:
        # With our options, not the vendor's: OpenVINO hands a model's threads on to the next one, and whether
        # they are pinned goes with them.
        compiled = core().compile_model(nothing, device, OpenVINOOptions().config(device))
        return str(compiled.get_property("RUNTIME_REQUIREMENTS"))
    except RuntimeError:  # a device that does not tell
        return ""


def _requirements(device: str) -> dict[str, tuple[str, ...]]:
    """Return what must match where a blob for the device is loaded."""
    found = _capabilities()
    info = found.device(device)
    facts = {**found.facts, **(info.facts if info is not None else {})}
    return {fact: (glob.escape(value),) for fact, value in facts.items() if value}


def _compile(
    payload: Payload, device: str, options: OpenVINOOptions, given: Set[str] = frozenset()
) -> Compiled:
    config = options.config(device)
    if payload.kind == "device-bound":
        if given:
            raise InputError(
                "The defaults are built into OpenVINO's blob; it takes no other values.",
                where=f"input {min(given)!r}",
                hint="Compile the model without export=True.",
            )
        blob = payload.read()
        return import_blob(
            lambda config: core().import_model(io.BytesIO(blob), device, dict(config)), device, config
        )
    return compile_onnx(
        vendor_module(),
        core(),
        onnx_source(payload),
        device,
        config,
        allow_float64_as_float32=options.allow_float64_as_float32,
        given=given,
    )


def _blob(compiled: Any, device: str) -> bytes:
    with vendor_errors("OpenVINO cannot export the compiled model", device):
        stream = compiled.export_model()
    blob: bytes = stream.getvalue()
    return blob
