"""The TensorRT backend: `tensorrt` 8.5 to 11 and TensorRT-RTX, on NVIDIA GPUs and Jetson's DLA.

Split by concern: `tensorrt_flavours` (what a version can do), `_options` and `_validators`, `_record`.
Building: `_build`, `_profiles`, `_parse` (errors that name ONNX nodes), `_precision`, `_progress`.
Loading, which needs no ONNX: `_load`, `_refit`. Running: `_run` (a pool of slots), `_slot` (one request),
`_place` and `_tensors`, `_graphs`, `_shapes`, `_explain`. Memory: `_cuda`, `_memory`, `_staging`,
`_copy_library`, `_input_locks`, `_shared`, `_device_output`. For all: `_dialect`, `_caches`,
`_kept_engines`, `_log`.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from pathlib import Path
from typing import Any, final

import attrs

from edgeinfer.artifact.artifact import IN_MEMORY_BYTES
from edgeinfer.artifact.payload import Payload
from edgeinfer.backends.facts import machine_facts
from edgeinfer.backends.options import options_from
from edgeinfer.backends.protocol import (
    API_VERSION,
    Capabilities,
    CompileOptions,
    DeviceInfo,
    LoadOptions,
    ModelToCompile,
)
from edgeinfer.backends.tensorrt_.cuda import Cuda, Gpu, find_gpus
from edgeinfer.backends.tensorrt_.dialect import DIALECT
from edgeinfer.backends.tensorrt_.flavours import BUILDERS, INSTALL, Flavour, choose_flavour, find_flavours
from edgeinfer.backends.tensorrt_.kept_engines import ENGINES
from edgeinfer.backends.tensorrt_.load import load_engine, new_runtime
from edgeinfer.backends.tensorrt_.options import TensorRTOptions
from edgeinfer.backends.tensorrt_.record import NAME as RECORD
from edgeinfer.backends.tensorrt_.record import BuildRecord
from edgeinfer.backends.tensorrt_.run import TensorRTRunner
from edgeinfer.errors import BackendUnavailableError, DeviceError

__all__ = ["TensorRTBackend", "TensorRTOptions"]

NAME, RUNTIME = "tensorrt", "tensorrt-runtime"
ENGINE = "model.engine"
_DEVICE = re.compile(r"(GPU|DLA)(?:\.(\d+))?\Z")
# What is known of it without a runtime: every device has float16, whatever its name.
_WITHOUT = Capabilities(available=False, dialect=DIALECT, float16_devices=("",))
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


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
            return attrs.evolve(_WITHOUT, reason=str(error))
        if not flavours:
            lines = "; or ".join(BUILDERS.values())
            return attrs.evolve(_WITHOUT, reason=f"TensorRT is not installed: {lines}")
        gpus, reason = _usable_gpus(flavours)
        facts = machine_facts() | dict.fromkeys(INSTALL, "not installed")
        facts |= {flavour.name: flavour.version for flavour in flavours}
        # What runs engines of plain TensorRT that do not carry the lean runtime.
        facts[RUNTIME] = next((f.version for f in flavours if f.name != "tensorrt-rtx"), "not installed")
        return attrs.evolve(
            _WITHOUT,
            available=bool(gpus),
            reason=reason,
            version=", ".join(map(str, flavours)),
            devices=[*map(_device_info, gpus), *(_dla_devices(flavours[0], gpus[0]) if gpus else ())],
            compile_devices=("GPU",) if any(f.has("ahead_of_time") for f in flavours) else (),
            facts=facts,
        )

    def compile(self, model: ModelToCompile, options: CompileOptions, /) -> Payload:
        """Build an engine: for the GPU here, or ahead of time where the flavour and the options have it.

        Raises:
            BackendUnavailableError: No flavour is installed, or not the one asked for.
            DeviceError: There is no such GPU here, and no ahead-of-time build was asked for.
            OptionsError: An option is refused.
            CompileError: TensorRT refuses the model; it names the node and the reason.
        """
        from edgeinfer.backends.onnx_payload import onnx_files
        from edgeinfer.backends.tensorrt_.build import build_engine, check_options, digest_of

        chosen = options_from(TensorRTOptions, options.options, backend=NAME).for_compiling()
        flavour = choose_flavour(chosen.flavour)
        device = options.device or "GPU"
        index, dla_core = _parse_device(device)
        check_options(flavour, chosen, dla_core)
        gpu = None if chosen.compute_capabilities else _gpu_to_build_on(flavour, index, device)

        def build() -> tuple[bytes | Path, BuildRecord]:
            with Cuda.open(gpu.index).current() if gpu is not None else contextlib.nullcontext():
                engine, record = build_engine(
                    flavour, model, chosen, gpu=gpu, dla_core=dla_core, cache_dir=options.cache_dir
                )
            return _content(engine), record

        # What is not compiled to be kept is one of many engines of a search, which come again.
        kept = not options.trial and options.cache_dir is None and chosen.timing_cache
        key = (str(flavour), gpu, dla_core, repr(chosen), digest_of(model)) if kept else None
        engine, record = ENGINES.get(key, build) if kept else build()
        return Payload(
            entry=ENGINE,
            # The weights that were stripped are kept as the ONNX model, from which TensorRT refits them.
            files={
                ENGINE: engine,
                RECORD: record.encode(),
                **(onnx_files(model) if record.stripped else {}),
            },
            kind="device-bound",
            device=device,
            requires=_requirements(flavour, chosen, gpu),
            options=chosen.to_json(),
        )

    def load(self, payload: Payload, options: LoadOptions, /) -> TensorRTRunner:
        """Deserialize an engine, whose hash, version and hardware were checked before.

        Raises:
            DeviceError: There is no such GPU here, or TensorRT does not start on it.
            ArtifactError: The artifact is not one that edgeinfer wrote, or its weights do not fit.
            ArtifactMismatchError: TensorRT itself says that the engine does not fit.
            BackendUnavailableError: The flavour that built the engine is not installed.
            OptionsError: An option would do nothing; or the engine carries host code, which was not allowed.
        """
        index, _ = _parse_device(options.device or payload.device or "GPU")
        return load_engine(payload, options.options, index)


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
    # Asked of a runtime: making a builder takes seconds and loads what only builds need.
    if not gpu.integrated or not flavour.has("dla"):
        return []
    try:
        with Cuda.open(gpu.index).current():
            cores = int(new_runtime(flavour).num_DLA_cores)
    except DeviceError:  # said by whoever loads an engine; asking for capabilities never fails
        return []
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
    runtime = RUNTIME if options.exclude_lean_runtime else flavour.name
    requires[runtime] = (f"{major}.*",) if options.version_compatible else (flavour.version,)
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
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix="edgeinfer-"))
    path = Path(_FOLDERS[-1].name) / ENGINE
    path.write_bytes(memoryview(engine))
    return path
