"""Building an engine: builder configuration, timing cache, progress, and what must be remembered about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeinfer.backends.protocol import ModelToCompile
from edgeinfer.backends.tensorrt_.caches import timing_cache
from edgeinfer.backends.tensorrt_.cuda import Gpu, find_gpus
from edgeinfer.backends.tensorrt_.flavours import Flavour
from edgeinfer.backends.tensorrt_.log import LogCapture, logger_of
from edgeinfer.backends.tensorrt_.options import TensorRTOptions
from edgeinfer.backends.tensorrt_.parse import build_error, parse_onnx
from edgeinfer.backends.tensorrt_.precision import graph_precisions, used_precisions
from edgeinfer.backends.tensorrt_.profiles import add_profiles
from edgeinfer.backends.tensorrt_.progress import progress_monitor
from edgeinfer.backends.tensorrt_.record import BuildRecord
from edgeinfer.backends.tensorrt_.tensors import DTYPES
from edgeinfer.errors import CompileError, OptionsError
from edgeinfer.model.model import Model

__all__ = ["build_engine", "check_options", "digest_of"]

# Options that are plain builder flags: the option, the feature that a version needs for it, the flag.
_FLAGS = (
    ("sparse_weights", "sparse_weights", "SPARSE_WEIGHTS"),
    ("refit", "refit", "REFIT"),
    ("strip_plan", "strip_plan", "STRIP_PLAN"),
    ("weight_streaming", "weight_streaming", "WEIGHT_STREAMING"),
    ("version_compatible", "version_compatible", "VERSION_COMPATIBLE"),
    ("exclude_lean_runtime", "version_compatible", "EXCLUDE_LEAN_RUNTIME"),
)
_WEAK_FLAGS = {"float16": "FP16", "int8": "INT8"}


def build_engine(
    flavour: Flavour,
    source: ModelToCompile,
    options: TensorRTOptions,
    *,
    gpu: Gpu | None,
    dla_core: int | None = None,
    cache_dir: Path | None = None,
) -> tuple[Any, BuildRecord]:
    """Parse and build.

    Args:
        flavour: Which TensorRT.
        source: The model.
        options: The backend's options.
        gpu: The GPU to build on; None for an ahead-of-time build.
        dla_core: The DLA core to build for, or None.
        cache_dir: Where the timing cache is kept, or None.

    Returns:
        The serialized engine, as a buffer, and its record.

    Raises:
        OptionsError: A dimension or profile does not fit the model.
        CompileError: TensorRT refuses the model, or the build was cancelled.
    """
    model = Model(source.ir)
    trt = flavour.load()
    builder = _new_builder(trt, flavour)
    config = builder.create_builder_config()
    notes = _configure(trt, flavour, config, options, model, dla_core)
    network, parser = parse_onnx(
        trt, flavour, builder, model, config=config if dla_core is not None else None
    )
    notes += _check_io(flavour, network, model)
    profiles = add_profiles(flavour, builder, network, config, model.signature, options)
    if dla_core is not None:
        notes += _dla_fallback(network, config)
    cancelled: list[bool] = []
    with (
        LogCapture(trt) as log,
        timing_cache(flavour, config, gpu, options, cache_dir) as cache_notes,
        progress_monitor(trt, flavour, config, options, cancelled),
    ):
        engine = builder.build_serialized_network(network, config)
    del parser  # it owns the weights that the network points to, so it must outlive the build
    if engine is None:
        if cancelled:
            raise CompileError("The build was cancelled.", where="option cancel")
        raise build_error(flavour, model, log.errors)
    record = BuildRecord(
        flavour=flavour.name,
        version=flavour.version,
        built_on=gpu.name if gpu is not None else "no GPU",
        inputs=tuple((spec.name, str(spec.dtype)) for spec in model.signature.inputs),
        outputs=tuple((spec.name, str(spec.dtype)) for spec in model.signature.outputs),
        profiles=profiles,
        precisions=graph_precisions(model),
        notes=(*notes, *cache_notes),
        host_code=options.version_compatible and not options.exclude_lean_runtime,
        lean_runtime_excluded=options.exclude_lean_runtime,
        refittable=options.refit,
        stripped=options.strip_plan,
        dla_core=dla_core,
    )
    return engine, record


def digest_of(source: ModelToCompile) -> str:
    """Return the digest of all that a model computes with."""
    return Model(source.ir).digest


def check_options(flavour: Flavour, options: TensorRTOptions, dla_core: int | None) -> None:
    """Refuse what this flavour and version cannot do.

    Raises:
        OptionsError: With the option.
    """
    asked = {feature: option for option, feature, _ in _FLAGS if getattr(options, option)}
    asked |= {"ahead_of_time": "compute_capabilities"} if options.compute_capabilities else {}
    asked |= {"optimization_level": "optimization_level"} if options.optimization_level is not None else {}
    asked |= {"aux_streams": "max_aux_streams"} if options.max_aux_streams is not None else {}
    asked |= {"tactic_sources": "tactic_sources"} if options.tactic_sources is not None else {}
    asked |= {"dla": "device"} if dla_core is not None else {}
    if options.hardware_compatibility != "none":
        asked["hardware_compatible"] = "hardware_compatibility"
    for feature, option in asked.items():
        if not flavour.has(feature):
            raise OptionsError(
                f"{flavour} cannot do that.",
                where=f"option {option}",
                expected=f"a TensorRT with {feature.replace('_', ' ')}",
                found=str(flavour),
                hint="Leave the option out, or use another flavour or version; see docs/tensorrt.md.",
            )
    if options.weak_precisions is not None and flavour.strongly_typed:
        raise OptionsError(
            f"{flavour} takes precision from the graph alone.",
            where="option weak_precisions",
            hint="Put it there with ToFloat16() or QuantizeStatic(calibration=…, target='tensorrt').",
        )
    if dla_core is None:
        _check_without_dla(options)
    if (options.refit or options.strip_plan) and flavour.has("ahead_of_time"):
        _check_refit_ahead(flavour, options)


def _check_without_dla(options: TensorRTOptions) -> None:
    idle = [f"memory_pools: {pool}" for pool in options.memory_pools if pool.startswith("dla_")]
    if idle or not options.gpu_fallback:
        raise OptionsError(
            "That concerns a DLA, and the model is compiled for a GPU.",
            where="option memory_pools" if idle else "option gpu_fallback",
            found=", ".join(idle) or "gpu_fallback=False",
            hint="Compile with device='DLA', or leave the option out.",
        )


def _check_refit_ahead(flavour: Flavour, options: TensorRTOptions) -> None:
    """RTX compiles some kernels of a refittable engine on a GPU, ahead-of-time builds included (1.7)."""
    gpus, reason = find_gpus()
    if not gpus:
        option = "refit" if options.refit else "strip_plan"
        raise OptionsError(
            f"{flavour} makes engines without fixed weights only on a machine with a GPU.",
            where=f"option {option}",
            expected="an NVIDIA GPU with its driver on the machine that compiles",
            found=reason,
            hint=f"Compile on such a machine, or leave {option} out.",
        )


def _new_builder(trt: Any, flavour: Flavour) -> Any:
    with LogCapture(trt) as log:
        try:
            return trt.Builder(logger_of(trt))
        except TypeError as error:  # pybind11's, for a builder that TensorRT did not make
            raise CompileError(
                f"{flavour} cannot make a builder here.",
                found="; ".join(log.errors) or str(error),
                hint="Check that the GPU's driver is new enough (nvidia-smi), or start a new process.",
            ) from error


def _configure(
    trt: Any, flavour: Flavour, config: Any, options: TensorRTOptions, model: Model, dla_core: int | None
) -> list[str]:
    notes = []
    for option, _, flag in _FLAGS:
        if getattr(options, option):
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if not flavour.strongly_typed:
        allowed = options.weak_precisions
        for precision in sorted(used_precisions(model)) if allowed is None else allowed:
            if precision in _WEAK_FLAGS:
                config.set_flag(getattr(trt.BuilderFlag, _WEAK_FLAGS[precision]))
                notes.append(f"{flavour} was allowed to choose {precision}, and may have kept float32")
    for pool, size in options.memory_pools.items():
        config.set_memory_pool_limit(_member(trt.MemoryPoolType, pool, "memory_pools", flavour), size)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.tactic_sources is not None:
        _set_tactic_sources(trt, flavour, config, options.tactic_sources)
    if options.max_aux_streams is not None:
        config.max_aux_streams = options.max_aux_streams
    if options.hardware_compatibility != "none":
        config.hardware_compatibility_level = _member(
            trt.HardwareCompatibilityLevel, options.hardware_compatibility, "hardware_compatibility", flavour
        )
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the execution report reads it
    if dla_core is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = dla_core
        if options.gpu_fallback:
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    _ahead_of_time(trt, config, options.compute_capabilities)
    return notes


def _set_tactic_sources(trt: Any, flavour: Flavour, config: Any, names: Sequence[str]) -> None:
    sources = 0
    for name in names:
        sources |= 1 << int(_member(trt.TacticSource, name, "tactic_sources", flavour))
    if not config.set_tactic_sources(sources):
        raise OptionsError(
            f"{flavour} does not take those sources of tactics.",
            where="option tactic_sources",
            found=", ".join(names) or "none",
            hint="Leave the option out, for TensorRT's choice.",
        )


def _member(enumeration: Any, name: str, option: str, flavour: Flavour) -> Any:
    """Return a member of an enumeration, of which versions have more or fewer."""
    member = getattr(enumeration, name.upper(), None)
    if member is None:
        raise OptionsError(
            f"{flavour} has no {name!r}.",
            where=f"option {option}",
            found=name,
            hint="Leave it out, or use another version; see docs/tensorrt.md.",
        )
    return member


def _ahead_of_time(trt: Any, config: Any, capabilities: Sequence[str]) -> None:
    if not capabilities:
        return
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        wanted = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}", None)
        if wanted is None:
            known = [name[2:] for name in dir(trt.ComputeCapability) if name.startswith("SM")]
            raise OptionsError(
                f"TensorRT-RTX cannot build for compute capability {capability}.",
                where="option compute_capabilities",
                expected=", ".join(f"{n[:-1]}.{n[-1]}" for n in sorted(known, key=int)),
                found=capability,
                hint="Data-centre and Jetson GPUs need plain TensorRT, on a machine that has one.",
            )
        config.set_compute_capability(wanted, index)


def _check_io(flavour: Flavour, network: Any, model: Model) -> list[str]:
    """Refuse inputs and outputs of dtypes that cannot be given or taken; say which are narrowed."""
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    for tensor in tensors:
        if tensor.dtype.name not in DTYPES:
            raise CompileError(
                f"{flavour} packs values of {tensor.dtype.name}, which cannot be given or taken.",
                where=f"tensor {tensor.name!r}",
                expected="a dtype of whole bytes",
                found=tensor.dtype.name,
                hint="Put the conversion from or to float into the model.",
            )
    wide = {
        spec.name for spec in (*model.signature.inputs, *model.signature.outputs) if spec.dtype == np.float64
    }
    narrowed = sorted(tensor.name for tensor in tensors if tensor.name in wide)
    return [f"TensorRT computes float64 in float32: {', '.join(narrowed)}"] if narrowed else []


def _dla_fallback(network: Any, config: Any) -> list[str]:
    layers = (network.get_layer(index) for index in range(network.num_layers))
    fallen = [layer.name for layer in layers if not config.can_run_on_DLA(layer)]
    if not fallen:
        return [f"all {network.num_layers} layers can run on DLA"]
    return [
        f"{len(fallen)} of {network.num_layers} layers fall back from DLA to the GPU: {', '.join(fallen)}"
    ]
