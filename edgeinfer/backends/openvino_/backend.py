"""The OpenVINO backend: Intel CPUs, GPUs and NPUs, and CPUs of other makers.

A portable artifact carries the ONNX graph, which OpenVINO compiles when it is loaded. With `export=True` it
carries OpenVINO's own compiled blob instead, which loads faster and is bound to the runtime's version and to
the machine; the manifest says to which.
"""

from __future__ import annotations

import functools
import glob
import io
import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, final

import attrs

from edgeinfer.artifact.artifact import Payload
from edgeinfer.backends.base import (
    API_VERSION,
    Capabilities,
    CompileOptions,
    DeviceInfo,
    LoadOptions,
    machine_facts,
    options_from,
    payload_of_onnx,
)
from edgeinfer.backends.onnx_payload import onnx_source
from edgeinfer.backends.openvino_.compile import Compiled, compile_onnx, import_blob, vendor_errors
from edgeinfer.backends.openvino_.devices import check_device
from edgeinfer.backends.openvino_.dialect import DIALECT
from edgeinfer.backends.openvino_.runner import OpenVINORunner
from edgeinfer.backends.openvino_.tensors import input_names
from edgeinfer.errors import BackendUnavailableError, InputError
from edgeinfer.forking import abandon_in_children, keep_forever
from edgeinfer.model.model import Model

__all__ = ["OpenVINOBackend", "OpenVINOOptions"]

NAME = "openvino"
BLOB_NAME = "model.blob"

_PRECISIONS = {"FP32": "float32", "FP16": "float16", "BF16": "bfloat16", "INT8": "int8"}


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _flag_or_none(_: object, __: object, value: bool | None) -> None:
    if value is not None and not isinstance(value, bool):
        raise TypeError("pinning is True, False or None")


def _path(value: str | Path | None) -> str | None:
    return None if value is None else str(value)


@final
@attrs.frozen(kw_only=True)
class OpenVINOOptions:
    """Options of the OpenVINO backend.

    Attributes:
        performance_hint: `LATENCY`, `THROUGHPUT`, `CUMULATIVE_THROUGHPUT`, or empty for the device's default.
        num_streams: How many requests the device works on at once; None leaves it to the hint.
        threads: CPU threads; 0 lets the runtime choose.
        inference_precision: `f32`, `f16` or `bf16`: what the float parts of the graph are computed in.
            `auto` is the vendor's choice: bfloat16 on CPUs that have it, float16 on GPUs, which changes the
            numbers. The default is `f32`, because precision belongs into the graph. NPUs have only their own
            choice.
        execution_mode: `PERFORMANCE` or `ACCURACY`; None is the runtime's default.
        pinning: Whether OpenVINO pins its CPU threads to cores of its own choice; None leaves it to OpenVINO.
            The default is False: OpenVINO would move the calling thread to one core and back on each call
            (2.5 µs), against `pin_cores` and against other sessions of the process.
        cache_dir: A folder where OpenVINO caches compiled models, which makes later loads quick.
        export: Make a device-bound artifact from OpenVINO's compiled blob.
        allow_float64_as_float32: Accept that OpenVINO computes float64 as float32; else a model that computes
            in float64 is refused.
        properties: Further OpenVINO properties by their names, such as `{"ENABLE_HYPER_THREADING": False}`.
    """

    performance_hint: str = attrs.field(
        default="LATENCY",
        converter=_upper,
        validator=attrs.validators.in_(("", "LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT")),
    )
    num_streams: int | None = attrs.field(
        default=None,
        validator=attrs.validators.optional([attrs.validators.instance_of(int), attrs.validators.ge(1)]),
    )
    threads: int = attrs.field(
        default=0, validator=[attrs.validators.instance_of(int), attrs.validators.ge(0)]
    )
    inference_precision: str = attrs.field(
        default="f32", validator=attrs.validators.in_(("f32", "f16", "bf16", "auto"))
    )
    execution_mode: str | None = attrs.field(
        default=None,
        converter=_upper,
        validator=attrs.validators.optional(attrs.validators.in_(("PERFORMANCE", "ACCURACY"))),
    )
    pinning: bool | None = attrs.field(default=False, validator=_flag_or_none)
    cache_dir: str | None = attrs.field(default=None, converter=_path)
    export: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))
    allow_float64_as_float32: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))
    properties: Mapping[str, object] = attrs.field(
        factory=dict,
        validator=attrs.validators.instance_of(Mapping),  # type: ignore[type-abstract]
    )

    def config(self, device: str) -> dict[str, object]:
        """Return the properties that OpenVINO takes for these options on a device."""
        config: dict[str, object] = {}
        if self.performance_hint:
            config["PERFORMANCE_HINT"] = self.performance_hint
        if self.inference_precision != "auto" and not device.startswith("NPU"):
            config["INFERENCE_PRECISION_HINT"] = self.inference_precision
        if self.num_streams is not None:
            config["NUM_STREAMS"] = self.num_streams
        if self.threads:
            config["INFERENCE_NUM_THREADS"] = self.threads
        if self.execution_mode is not None:
            config["EXECUTION_MODE_HINT"] = self.execution_mode
        if self.pinning is not None:
            config["ENABLE_CPU_PINNING"] = self.pinning
        if self.cache_dir is not None:
            config["CACHE_DIR"] = self.cache_dir
        return {**config, **self.properties}


@final
class OpenVINOBackend:
    """Adapter to `openvino`."""

    name = NAME
    api_version = API_VERSION

    def capabilities(self) -> Capabilities:
        """Return what the installed OpenVINO can do here."""
        try:
            _core()  # no longer works in a fork of a process that used it
            return _capabilities()
        except ImportError as error:
            return Capabilities(available=False, reason=f"openvino cannot be imported: {error}")
        except Exception as error:  # a runtime whose libraries do not fit this machine
            return Capabilities(available=False, reason=f"openvino does not work here: {error}")

    def compile(self, model: Model, options: CompileOptions, /) -> Payload:
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
        # A cache folder belongs to the machine that compiles, not to the artifact.
        kept = attrs.asdict(chosen, filter=lambda field, _: field.name not in ("cache_dir", "export"))
        payload = payload_of_onnx(model, device=device, options=kept)
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
        )

    def load(self, payload: Payload, options: LoadOptions, /) -> OpenVINORunner:
        """Compile the ONNX graph, or import the blob.

        Raises:
            DeviceError: The device is not here, or no longer supported by OpenVINO.
            OptionsError: An option is unknown or refused.
            CompileError: OpenVINO refuses the model.
        """
        import openvino as ov

        chosen = options_from(OpenVINOOptions, payload.options, options.options, backend=NAME)
        device = check_device(options.device or payload.device or "CPU", _capabilities())

        def compiled(given: Set[str] = frozenset(), counting: bool = False) -> Compiled:
            properties = {**chosen.properties, "PERF_COUNT": True} if counting else chosen.properties
            return _compile(payload, device, attrs.evolve(chosen, properties=properties), given)

        return OpenVINORunner(ov, compiled, device, options.signature)


@final
class _Runtime:
    """OpenVINO's core. It does not work in a fork of a process that used it: there it would hang."""

    def __init__(self) -> None:
        # oneDNN keeps 1,024 kernels for the entire process, which took 500 MB where each call had another
        # shape; a graph keeps those of its last shapes itself.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
        import openvino as ov

        self._core = ov.Core()
        self._forked = False
        abandon_in_children(self)

    @property
    def core(self) -> Any:
        """The core.

        Raises:
            BackendUnavailableError: This process is a fork of one that used it.
        """
        if self._forked:
            raise BackendUnavailableError(
                "OpenVINO does not work in a fork of a process that used it.",
                hint="Start children with multiprocessing's 'spawn' or 'forkserver', or use OpenVINO only in "
                "them.",
            )
        return self._core

    def _after_fork(self) -> None:
        self._forked = True
        keep_forever(self._core)


@functools.cache
def _runtime() -> _Runtime:
    return _Runtime()


def _core() -> Any:
    return _runtime().core


def _compile(
    payload: Payload, device: str, options: OpenVINOOptions, given: Set[str] = frozenset()
) -> Compiled:
    import openvino as ov

    core = _core()
    config = options.config(device)
    if payload.kind == "device-bound":
        if given:
            raise InputError(
                "The defaults are built into OpenVINO's blob; it takes no other values.",
                where=f"input {min(given)!r}",
                hint="Compile the model without export=True.",
            )
        return import_blob(
            lambda config: core.import_model(io.BytesIO(payload.read()), device, dict(config)), device, config
        )
    return compile_onnx(
        ov,
        core,
        onnx_source(payload),
        device,
        config,
        allow_float64_as_float32=options.allow_float64_as_float32,
        given=given,
    )


@functools.cache
def _capabilities() -> Capabilities:
    core = _core()
    from openvino import get_version

    return Capabilities(
        available=True,
        version=str(get_version()).split("-", maxsplit=1)[0],
        devices=tuple(_describe(core, name) for name in core.available_devices),
        dialect=DIALECT,
        facts={**machine_facts(), "openvino_build": str(get_version())},
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
    import openvino as ov

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


def _blob(compiled: Any, device: str) -> bytes:
    with vendor_errors("OpenVINO cannot export the compiled model", device):
        stream = compiled.export_model()
    blob: bytes = stream.getvalue()
    return blob
