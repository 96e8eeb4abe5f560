"""The TensorRT backend: `tensorrt` 8.5 to 11 and TensorRT-RTX, on NVIDIA GPUs and Jetson's DLA.

Split by concern: `tensorrt_flavours` (what a version can do), `_options`, `_profiles`, `_parse` (errors
that name ONNX nodes), `_build`, `_cuda`, `_slot` and `_run`, `_explain`, `_precision`, `_progress`,
`_dialect`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, final

from edgeinfer.artifact.artifact import IN_MEMORY_BYTES, Payload
from edgeinfer.atomic import scratch_folder
from edgeinfer.backends.base import (
    API_VERSION,
    Capabilities,
    CompileOptions,
    DeviceInfo,
    LoadOptions,
    machine_facts,
    options_from,
)
from edgeinfer.backends.option_checks import options_of_artifact
from edgeinfer.backends.tensorrt_.build import BuildRecord, build_engine, check_options
from edgeinfer.backends.tensorrt_.cuda import Cuda, Gpu, find_gpus
from edgeinfer.backends.tensorrt_.dialect import DIALECT
from edgeinfer.backends.tensorrt_.flavours import (
    INSTALL,
    Flavour,
    LogCapture,
    choose_flavour,
    find_flavours,
    logger_of,
)
from edgeinfer.backends.tensorrt_.options import TensorRTOptions, find_untrusted
from edgeinfer.backends.tensorrt_.run import TensorRTRunner
from edgeinfer.errors import (
    ArtifactError,
    ArtifactMismatchError,
    BackendUnavailableError,
    DeviceError,
    OptionsError,
)
from edgeinfer.model.model import Model

__all__ = ["TensorRTBackend", "TensorRTOptions"]

NAME = "tensorrt"
ENGINE, RECORD = "model.engine", "build.json"
_DEVICE = re.compile(r"(GPU|DLA)(?:\.(\d+))?\Z")


@final
class TensorRTBackend:
    """Adapter to TensorRT in all its flavours.

    Devices are `GPU`, `GPU.1`, … and, on Jetson, `DLA`, `DLA.1` (core 1; what it cannot run goes to the
    first GPU).
    """

    name = NAME
    api_version = API_VERSION

    def capabilities(self) -> Capabilities:
        """Return what the installed flavours can do with the GPUs here."""
        try:
            flavours = find_flavours()
        except BackendUnavailableError as error:
            return Capabilities(available=False, reason=str(error), dialect=DIALECT)
        if not flavours:
            lines = "; or ".join(INSTALL.values())
            return Capabilities(
                available=False, reason=f"TensorRT is not installed: {lines}", dialect=DIALECT
            )
        gpus, reason = _usable_gpus(flavours)
        facts = machine_facts() | dict.fromkeys(INSTALL, "not installed")
        facts |= {flavour.name: flavour.version for flavour in flavours}
        return Capabilities(
            available=bool(gpus),
            reason=reason,
            version=", ".join(map(str, flavours)),
            devices=[*map(_device_info, gpus), *(_dla_devices(flavours[0], gpus[0]) if gpus else ())],
            compile_devices=("GPU",) if any(f.has("ahead_of_time") for f in flavours) else (),
            dialect=DIALECT,
            facts=facts,
        )

    def compile(self, model: Model, options: CompileOptions, /) -> Payload:
        """Build an engine: for the GPU here, or ahead of time where the flavour and the options have it.

        Raises:
            BackendUnavailableError: No flavour is installed, or not the one asked for.
            DeviceError: There is no such GPU here, and no ahead-of-time build was asked for.
            OptionsError: An option is refused.
            CompileError: TensorRT refuses the model; it names the node and the reason.
        """
        chosen = options_from(TensorRTOptions, options.options, backend=NAME)
        flavour = choose_flavour(chosen.flavour)
        device = options.device or "GPU"
        index, dla_core = _parse_device(device)
        check_options(flavour, chosen, dla_core)
        gpu = None if chosen.compute_capabilities else _gpu_to_build_on(flavour, index, device)
        if gpu is not None:
            Cuda.open(gpu.index).use()
        engine, record = build_engine(
            flavour, model, chosen, gpu=gpu, dla_core=dla_core, cache_dir=options.cache_dir
        )
        return Payload(
            entry=ENGINE,
            files={ENGINE: _content(engine), RECORD: record.encode()},
            kind="device-bound",
            device=device,
            requires=_requirements(flavour, chosen, gpu),
            options=chosen.to_json(),
        )

    def load(self, payload: Payload, options: LoadOptions, /) -> TensorRTRunner:
        """Deserialize an engine, whose hash, version and hardware were checked before.

        Raises:
            ArtifactTrustError: The artifact names a file, or vouches for its own code.
            DeviceError: There is no such GPU here.
            ArtifactMismatchError: TensorRT itself says that the engine does not fit.
            OptionsError: The engine carries host code, and that was not allowed.
        """
        kept = options_of_artifact(
            TensorRTOptions, payload.options, backend=NAME, find_untrusted=find_untrusted
        )
        chosen = options_from(TensorRTOptions, kept, options.options, backend=NAME)
        record = BuildRecord.decode(payload.read(RECORD))
        flavour = choose_flavour(record.flavour)
        index, _ = _parse_device(options.device or payload.device or "GPU")
        cuda = Cuda.open(index)
        cuda.use()
        _check_trust(record, chosen)
        _check_version(record, flavour)
        trt = flavour.load()
        content = payload.read()
        with LogCapture(trt) as log:
            runtime = trt.Runtime(logger_of(trt))
            _check_validity(trt, flavour, runtime, content)
            if record.host_code:
                runtime.engine_host_code_allowed = True
            if record.dla_core is not None:
                runtime.DLA_core = record.dla_core
            engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise ArtifactMismatchError(
                f"{flavour} refuses the engine.",
                where=f"built by {record.flavour} {record.version} on {record.built_on}",
                found="; ".join(log.errors) or "no message",
                hint="Compile the model on this machine.",
            )
        if chosen.weight_streaming and chosen.weight_streaming_budget_bytes is not None:
            engine.weight_streaming_budget_v2 = chosen.weight_streaming_budget_bytes
        return TensorRTRunner(flavour, cuda, runtime, engine, record, chosen)


def _usable_gpus(flavours: tuple[Flavour, ...]) -> tuple[tuple[Gpu, ...], str]:
    gpus, reason = find_gpus()
    usable = tuple(gpu for gpu in gpus if any(f.supports(gpu.compute_capability) for f in flavours))
    if gpus and not usable:
        names = " and ".join(map(str, flavours))
        found = ", ".join(f"{gpu.name} (compute capability {gpu.compute_capability})" for gpu in gpus)
        reason = f"{names} does not run on {found}: {INSTALL['tensorrt']}"
    return usable, reason


def _device_info(gpu: Gpu) -> DeviceInfo:
    precisions = {"float32", "float16", "int8"}
    if float(gpu.compute_capability) >= 8.0:
        precisions.add("bfloat16")
    return DeviceInfo(
        name=f"GPU.{gpu.index}" if gpu.index else "GPU",
        description=f"{gpu.name}, {gpu.memory_bytes / 1e9:.1f} GB, compute {gpu.compute_capability}",
        precisions=precisions,
        facts={"compute_capability": gpu.compute_capability, "cuda_driver": gpu.cuda_driver},
    )


def _dla_devices(flavour: Flavour, gpu: Gpu) -> list[DeviceInfo]:
    if not flavour.has("dla"):
        return []
    trt = flavour.load()
    cores = int(trt.Builder(logger_of(trt)).num_DLA_cores)
    facts = _device_info(gpu).facts
    return [
        DeviceInfo(
            name=f"DLA.{core}" if core else "DLA",
            description=f"deep-learning accelerator, core {core} of {cores}",
            precisions={"float16", "int8"},
            facts=facts,
        )
        for core in range(cores)
    ]


def _parse_device(device: str) -> tuple[int, int | None]:
    """Return the CUDA ordinal and the DLA core, if any."""
    match = _DEVICE.match(device)
    if match is None:
        raise DeviceError(
            "TensorRT has no such device.", expected="GPU, GPU.1, … or DLA, DLA.1", found=device
        )
    number = int(match[2] or 0)
    return (number, None) if match[1] == "GPU" else (0, number)


def _gpu_to_build_on(flavour: Flavour, index: int, device: str) -> Gpu:
    gpus, reason = find_gpus()
    for gpu in gpus:
        if gpu.index == index and flavour.supports(gpu.compute_capability):
            return gpu
        if gpu.index == index:
            raise DeviceError(
                f"{flavour} does not run on this GPU.",
                where=f"device {device}",
                expected="a GeForce RTX or RTX PRO GPU",
                found=f"{gpu.name}, compute capability {gpu.compute_capability}",
                hint=f"Install plain TensorRT: {INSTALL['tensorrt']}.",
            )
    hint = "Build on the machine that will run it; there is no cross-build for Jetson or data-centre GPUs."
    if flavour.has("ahead_of_time"):
        hint = 'Name the GPUs to build for: options={"compute_capabilities": ("8.6", "8.9")}.'
    raise DeviceError(
        f"{flavour} builds for the GPU of this machine, and there is none.",
        where=f"device {device}",
        expected="an NVIDIA GPU with its driver",
        found=reason or ", ".join(gpu.name for gpu in gpus),
        hint=hint,
    )


def _requirements(flavour: Flavour, options: TensorRTOptions, gpu: Gpu | None) -> dict[str, tuple[str, ...]]:
    """Return what TensorRT itself does not check, or only after it has read the engine.

    An engine is bound to the exact version and the architecture of the GPU, unless it was built otherwise.
    """
    requires: dict[str, tuple[str, ...]] = {fact: (value,) for fact, value in machine_facts().items()}
    major = flavour.version.split(".")[0]
    requires[flavour.name] = (f"{major}.*",) if options.version_compatible else (flavour.version,)
    if options.compute_capabilities:
        requires["compute_capability"] = options.compute_capabilities
    elif options.hardware_compatibility == "ampere_plus":
        requires["compute_capability"] = ("8.*", "9.*", "1[0-9].*")
    elif gpu is not None:
        requires["compute_capability"] = (gpu.compute_capability,)
    requires["cuda_driver"] = (f"1[{flavour.min_cuda - 10}-9].*",)
    return requires


def _content(engine: Any) -> bytes | Path:
    """Return the engine in memory, or as a file when it is large."""
    if engine.nbytes <= IN_MEMORY_BYTES:
        return bytes(engine)
    path = scratch_folder() / ENGINE
    path.write_bytes(memoryview(engine))
    return path


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
    built, here = (tuple(map(int, re.findall(r"\d+", v)[:3])) for v in (record.version, flavour.version))
    if here < built:
        raise ArtifactMismatchError(
            f"The engine was built by a newer {flavour.name}.",
            expected=f"{record.version} or newer, of the same major version",
            found=flavour.version,
            hint="Upgrade TensorRT here, or compile the model on this machine.",
        )


def _check_validity(trt: Any, flavour: Flavour, runtime: Any, content: bytes) -> None:
    """Ask TensorRT-RTX whether an engine fits, from its header alone."""
    if not flavour.has("engine_validity"):
        return
    if len(content) < runtime.engine_header_size:
        raise ArtifactError("The engine is shorter than its own header.", where=ENGINE, found=len(content))
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
