"""Loading an engine: which runtime takes it, what must be decided or fit before, and what is set after."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgeinfer.artifact.payload import Payload
from edgeinfer.backends.tensorrt_.cuda import Cuda
from edgeinfer.backends.tensorrt_.flavours import INSTALL, Flavour, choose_flavour, find_flavours
from edgeinfer.backends.tensorrt_.log import LogCapture, logger_of
from edgeinfer.backends.tensorrt_.options import TensorRTOptions
from edgeinfer.backends.tensorrt_.record import NAME as RECORD
from edgeinfer.backends.tensorrt_.record import BuildRecord
from edgeinfer.backends.tensorrt_.refit import check_refit, refit
from edgeinfer.backends.tensorrt_.run import TensorRTRunner
from edgeinfer.errors import (
    ArtifactError,
    ArtifactFormatError,
    ArtifactMismatchError,
    BackendUnavailableError,
    DeviceError,
    OptionsError,
)

__all__ = ["load_engine", "new_runtime"]


def load_engine(payload: Payload, given: object, index: int) -> TensorRTRunner:
    """Deserialize an engine on a GPU; see `TensorRTBackend.load`.

    Args:
        payload: The engine and its record.
        given: The options that the loader gave.
        index: The CUDA ordinal of the GPU.
    """
    if RECORD not in payload.files:
        raise ArtifactFormatError("The artifact has no record of the engine's build.", where=RECORD)
    record = BuildRecord.decode(payload.read(RECORD))
    chosen = TensorRTOptions.for_loading(payload.options, given, flavour=record.flavour)
    flavour = _flavour_for(record, chosen)
    cuda = Cuda.open(index)
    _check_trust(record, chosen)
    _check_version(record, flavour)
    _check_runtime_cache(flavour, chosen)
    check_refit(record, payload, chosen, flavour)
    trt = flavour.load()
    content = payload.read()
    with cuda.current():
        with LogCapture(trt) as log:
            runtimes = _runtimes(flavour, record, chosen, log)
            _check_validity(trt, flavour, runtimes[-1], content)
            engine = runtimes[-1].deserialize_cuda_engine(content)
        if engine is None:
            raise ArtifactMismatchError(
                f"{flavour} refuses the engine.",
                where=f"built by {record.flavour} {record.version} on {record.built_on}",
                found="; ".join(log.errors) or "no message",
                hint="Compile the model on this machine.",
            )
        if chosen.weight_streaming_budget_bytes is not None:
            _set_budget(flavour, engine, chosen.weight_streaming_budget_bytes)
        note = refit(trt, engine, record, payload, chosen)
        return TensorRTRunner(flavour, cuda, runtimes, engine, record, chosen, notes=(note,) if note else ())


def _flavour_for(record: BuildRecord, options: TensorRTOptions) -> Flavour:
    """Return the flavour that runs an engine.

    An engine without its lean runtime is taken by the version that built it, whole or lean, or by any other
    through the library of the lean runtime of that version (`IRuntime::loadRuntime` in NvInferRuntime.h).
    """
    if options.lean_runtime is not None and not record.lean_runtime_excluded:
        raise OptionsError(
            "This engine needs no other runtime.",
            where="option lean_runtime",
            expected="an engine that was built with exclude_lean_runtime",
            hint="Leave the option out.",
        )
    if not record.lean_runtime_excluded:
        return choose_flavour(record.flavour)
    installed = [flavour for flavour in find_flavours() if flavour.name in (record.flavour, "tensorrt-lean")]
    for flavour in installed:
        if options.lean_runtime is not None or _numbers(flavour.version) == _numbers(record.version):
            return flavour
    if not installed:
        raise BackendUnavailableError(
            "Neither TensorRT nor its lean runtime is installed.",
            expected=f"{record.flavour} or tensorrt-lean, {record.version}",
            found="neither",
            hint=f"{INSTALL['tensorrt-lean']}; or {INSTALL['tensorrt']}",
        )
    raise ArtifactMismatchError(
        "The engine was built without the lean runtime that another version of TensorRT runs it with.",
        expected=f"{record.flavour} {record.version}, or its lean runtime",
        found=", ".join(map(str, installed)),
        hint="Install tensorrt-lean of that version, or name its library: "
        "load(..., options={'lean_runtime': '/path/to/libnvinfer_lean.so'}). Or compile without "
        "exclude_lean_runtime.",
    )


def _runtimes(flavour: Flavour, record: BuildRecord, options: TensorRTOptions, log: LogCapture) -> list[Any]:
    """Return the runtime and, last, the one that it loaded; all must outlive the engine."""
    runtimes = [new_runtime(flavour)]
    if options.lean_runtime is not None:
        if not Path(options.lean_runtime).is_file():
            raise OptionsError(
                "There is no such library.",
                where="option lean_runtime",
                found=options.lean_runtime,
                hint="It is libnvinfer_lean.so.… of the version that built the engine.",
            )
        loaded = runtimes[0].load_runtime(options.lean_runtime)
        if loaded is None:
            raise OptionsError(
                f"{flavour} cannot load that library as a lean runtime.",
                where="option lean_runtime",
                found="; ".join(log.errors) or options.lean_runtime,
                hint=f"It is libnvinfer_lean.so.… of TensorRT {record.version}.",
            )
        runtimes.append(loaded)
    if record.host_code:
        runtimes[-1].engine_host_code_allowed = True
    if record.dla_core is not None:
        runtimes[-1].DLA_core = record.dla_core
    return runtimes


def new_runtime(flavour: Flavour) -> Any:
    """Return a runtime on the device that is current.

    Raises:
        DeviceError: TensorRT does not start here.
    """
    trt = flavour.load()
    with LogCapture(trt) as log:
        runtime = trt.Runtime(logger_of(trt))
    if log.errors:  # then it is an empty shell, whose methods crash the process
        raise DeviceError(
            f"{flavour} cannot start on this GPU.",
            found="; ".join(log.errors),
            hint="Check that the GPU's driver is new enough (nvidia-smi), or start a new process.",
        )
    return runtime


def _check_trust(record: BuildRecord, options: TensorRTOptions) -> None:
    if record.host_code and not options.engine_host_code_allowed:
        raise OptionsError(
            "The engine carries host code, which would run with your rights when it is loaded.",
            where="option engine_host_code_allowed",
            hint="If you trust whoever built it: load(..., options={'engine_host_code_allowed': True}). Else "
            "compile without version_compatible, or with exclude_lean_runtime.",
        )


def _check_version(record: BuildRecord, flavour: Flavour) -> None:
    """A version-compatible engine runs on the version that built it and on later ones of the same major."""
    if _numbers(flavour.version) < _numbers(record.version):
        raise ArtifactMismatchError(
            f"The engine was built by a newer {record.flavour}.",
            expected=f"{record.version} or newer, of the same major version",
            found=flavour.version,
            hint="Upgrade TensorRT here, or compile the model on this machine.",
        )


def _check_runtime_cache(flavour: Flavour, options: TensorRTOptions) -> None:
    if options.runtime_cache is not None and not flavour.has("runtime_cache"):
        raise OptionsError(
            f"{flavour} keeps no kernels: they are in the engine.",
            where="option runtime_cache",
            expected="tensorrt-rtx",
            found=str(flavour),
            hint="Leave the option out.",
        )


def _check_validity(trt: Any, flavour: Flavour, runtime: Any, content: bytes) -> None:
    """Ask TensorRT-RTX whether an engine fits, from its header alone."""
    if not flavour.has("engine_validity"):
        return
    if len(content) < runtime.engine_header_size:
        raise ArtifactError("The engine is shorter than its own header.", found=len(content))
    validity, diagnostics = runtime.get_engine_validity(content[: runtime.engine_header_size])
    if validity == trt.EngineValidity.INVALID:
        reasons = [
            name.lower().replace("_", " ")
            for name, bit in vars(trt.EngineInvalidityDiagnostics).items()
            if name.isupper() and int(diagnostics) & int(bit)
        ]
        raise ArtifactMismatchError(
            f"{flavour} says that the engine cannot run here.",
            found=", ".join(reasons) or f"diagnostics {int(diagnostics)}",
            hint="Compile the model for this GPU, or upgrade its driver.",
        )


def _set_budget(flavour: Flavour, engine: Any, size: int) -> None:
    """Set how many bytes of the weights that can be streamed stay in device memory.

    Version 10.0 has a first form of the budget alone: it is at least `minimum_weight_streaming_budget`, and
    -1 is what keeps all weights on the device.
    """
    streamable, found = int(engine.streamable_weights_size), -1
    if hasattr(engine, "weight_streaming_budget_v2"):
        size = min(size, streamable)
        engine.weight_streaming_budget_v2 = size
        found = int(engine.weight_streaming_budget_v2)
    elif hasattr(engine, "weight_streaming_budget"):
        size = -1 if size >= streamable else max(size, int(engine.minimum_weight_streaming_budget))
        engine.weight_streaming_budget = size
        found = int(engine.weight_streaming_budget)
    if found != size:
        raise OptionsError(
            f"{flavour} does not take that budget for streaming weights.",
            where="option weight_streaming_budget_bytes",
            expected=size,
            found=found,
            hint="Leave the option out, for TensorRT's choice.",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))
