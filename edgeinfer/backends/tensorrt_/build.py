"""Building an engine: builder configuration, timing cache, progress, and what must be remembered about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeinfer.atomic import write_file
from edgeinfer.backends.protocol import ModelToCompile
from edgeinfer.backends.tensorrt_.cuda import Gpu
from edgeinfer.backends.tensorrt_.flavours import Flavour, LogCapture, logger_of
from edgeinfer.backends.tensorrt_.options import TensorRTOptions, Triple
from edgeinfer.backends.tensorrt_.parse import build_error, parse_onnx
from edgeinfer.backends.tensorrt_.precision import graph_precisions, used_precisions
from edgeinfer.backends.tensorrt_.profiles import plan_profiles
from edgeinfer.backends.tensorrt_.progress import progress_monitor
from edgeinfer.backends.tensorrt_.record import BuildRecord
from edgeinfer.errors import CompileError, OptionsError
from edgeinfer.model.model import Model

__all__ = ["build_engine", "check_options"]

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
    model: ModelToCompile,
    options: TensorRTOptions,
    *,
    gpu: Gpu | None,
    dla_core: int | None = None,
    cache_dir: Path | None = None,
) -> tuple[Any, BuildRecord]:
    """Parse and build.

    Args:
        flavour: Which TensorRT.
        model: The model.
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
    trt = flavour.load()
    graph = Model(model.ir)
    builder = trt.Builder(logger_of(trt))
    config = builder.create_builder_config()
    notes = _configure(trt, flavour, config, options, graph, dla_core)
    network, parser = parse_onnx(
        trt, flavour, builder, graph, config=config if dla_core is not None else None
    )
    profiles = _add_profiles(builder, network, config, graph, options)
    if dla_core is not None:
        notes += _dla_fallback(network, config)
    cancelled: list[bool] = []
    with (
        LogCapture(trt) as log,
        _timing_cache(flavour, config, gpu, options, cache_dir) as cache_notes,
        progress_monitor(trt, flavour, config, options, cancelled),
    ):
        engine = builder.build_serialized_network(network, config)
    del parser  # it owns the weights that the network points to, so it must outlive the build
    if engine is None:
        if cancelled:
            raise CompileError("The build was cancelled.", where="option cancel")
        raise build_error(flavour, graph, log.errors)
    record = BuildRecord(
        flavour=flavour.name,
        version=flavour.version,
        built_on=gpu.name if gpu is not None else "no GPU",
        inputs=tuple((spec.name, str(spec.dtype)) for spec in model.signature.inputs),
        outputs=tuple((spec.name, str(spec.dtype)) for spec in model.signature.outputs),
        profiles=profiles,
        precisions=graph_precisions(graph),
        notes=(*notes, *cache_notes),
        host_code=options.version_compatible and not options.exclude_lean_runtime,
        dla_core=dla_core,
    )
    return engine, record


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
    if options.exclude_lean_runtime and not options.version_compatible:
        raise OptionsError(
            "exclude_lean_runtime goes with version_compatible.", where="option exclude_lean_runtime"
        )


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
        config.set_memory_pool_limit(_member(trt.MemoryPoolType, pool, "memory_pools"), size)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.tactic_sources is not None:
        sources = (int(_member(trt.TacticSource, name, "tactic_sources")) for name in options.tactic_sources)
        config.set_tactic_sources(sum(1 << source for source in sources))
    if options.max_aux_streams is not None:
        config.max_aux_streams = options.max_aux_streams
    if options.hardware_compatibility != "none":
        levels = trt.HardwareCompatibilityLevel
        config.hardware_compatibility_level = getattr(levels, options.hardware_compatibility.upper())
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the execution report reads it
    if dla_core is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = dla_core
        if options.gpu_fallback:
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    _ahead_of_time(trt, config, options.compute_capabilities)
    return notes


def _member(enumeration: Any, name: str, option: str) -> Any:
    member = getattr(enumeration, name.upper(), None)
    if member is None:
        raise OptionsError(f"This TensorRT has no {name!r}.", where=f"option {option}", found=name)
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


def _add_profiles(
    builder: Any, network: Any, config: Any, model: Model, options: TensorRTOptions
) -> tuple[dict[str, Triple], ...]:
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    shape_inputs = frozenset(tensor.name for tensor in tensors if tensor.is_shape_tensor)
    profiles = plan_profiles(model.signature, options, shape_inputs=shape_inputs)
    for ranges in profiles:
        profile = builder.create_optimization_profile()
        for tensor in tensors:
            if tensor.name in ranges:
                give = profile.set_shape_input if tensor.name in shape_inputs else profile.set_shape
                give(tensor.name, *ranges[tensor.name])
        config.add_optimization_profile(profile)
    if not profiles and _has_open_shapes(network):
        # TensorRT 8 wants a profile where shapes depend on data, even if no input is dynamic.
        config.add_optimization_profile(builder.create_optimization_profile())
    return profiles


def _has_open_shapes(network: Any) -> bool:
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return any(-1 in layer.get_output(index).shape for layer in layers for index in range(layer.num_outputs))


def _dla_fallback(network: Any, config: Any) -> list[str]:
    layers = (network.get_layer(index) for index in range(network.num_layers))
    fallen = [layer.name for layer in layers if not config.can_run_on_DLA(layer)]
    if not fallen:
        return [f"all {network.num_layers} layers can run on DLA"]
    return [
        f"{len(fallen)} of {network.num_layers} layers fall back from DLA to the GPU: {', '.join(fallen)}"
    ]


@contextlib.contextmanager
def _timing_cache(
    flavour: Flavour,
    config: Any,
    gpu: Gpu | None,
    options: TensorRTOptions,
    cache_dir: Path | None,
) -> Iterator[list[str]]:
    """Start from the timings of earlier builds with this version on such a GPU, and keep the new ones."""
    notes: list[str] = []
    if cache_dir is None or gpu is None or not options.timing_cache or not flavour.has("timing_cache"):
        yield notes
        return
    path = cache_dir / f"{flavour.name}-{flavour.version}-sm{gpu.compute_capability}.timing"
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        notes.append(f"the timing cache {path.name} does not fit this TensorRT and was started anew")
        config.set_timing_cache(config.create_timing_cache(b""), False)
    yield notes
    cache_dir.mkdir(parents=True, exist_ok=True)
    write_file(path, bytes(config.get_timing_cache().serialize()))
