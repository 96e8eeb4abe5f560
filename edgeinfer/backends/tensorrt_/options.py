"""The options of the TensorRT backend."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, final

import attrs

from edgeinfer.backends.option_checks import MAX_THREADS, flag, number, one_of, refuse_option, text

__all__ = ["TensorRTOptions", "Triple", "find_untrusted"]

Triple: TypeAlias = "tuple[Any, Any, Any]"

_CAPABILITY = re.compile(r"\d{1,2}\.\d\Z")
_SOURCES = ("cublas", "cublas_lt", "cudnn", "edge_mask_convolutions", "jit_convolutions")
# What an artifact neither keeps nor may set: functions, files, and the decision to trust it.
_NOT_KEPT = ("progress", "cancel", "engine_host_code_allowed", "runtime_cache")
_POOLS = (
    "workspace",
    "tactic_shared_memory",
    "tactic_dram",
    "dla_managed_sram",
    "dla_local_dram",
    "dla_global_dram",
)


def _strings(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (str(value),) if isinstance(value, (str, float)) else tuple(str(item) for item in value)


def _triple(value: Any) -> Triple:
    low, opt, high = value
    return (low, opt, high)


def _dims(value: Mapping[str, Iterable[int]] | None) -> dict[str, Triple]:
    try:
        triples = {str(name): _triple(sizes) for name, sizes in (value or {}).items()}
        right = all(0 <= low <= opt <= high for low, opt, high in triples.values())
    except (AttributeError, TypeError, ValueError):
        right = False
    if not right:
        raise refuse_option("dims", "(least, usual, greatest) by the name of a dimension", value)
    return triples


def _profiles(value: Any) -> tuple[dict[str, Triple], ...]:
    try:
        return tuple(
            {
                str(name): _triple(tuple(tuple(map(int, shape)) for shape in shapes))
                for name, shapes in profile.items()
            }
            for profile in value or ()
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise refuse_option(
            "profiles", "mappings from input to its least, usual and greatest shape", value
        ) from error


def _pools(value: Any) -> dict[str, int]:
    pools = dict(value) if isinstance(value, Mapping) else {"": 0}
    if not all(name in _POOLS and type(size) is int and size >= 0 for name, size in pools.items()):
        raise refuse_option("memory_pools", f"sizes in bytes of {', '.join(_POOLS)}", value)
    return pools


def _check_capabilities(instance: Any, attribute: Any, values: tuple[str, ...]) -> None:
    for value in values:
        if not _CAPABILITY.match(value):
            raise refuse_option(attribute.name, 'texts such as "8.6"', value, cls=type(instance))


def _among(*choices: str) -> Callable[[Any, Any, Any], None]:
    def check(instance: Any, attribute: Any, values: tuple[str, ...] | None) -> None:
        if values is not None and not set(values) <= set(choices):
            raise refuse_option(attribute.name, f"of {', '.join(choices)}", values, cls=type(instance))

    return check


def _path(value: str | os.PathLike[str] | None) -> str | None:
    if value is not None and not isinstance(value, (str, os.PathLike)):
        raise refuse_option("runtime_cache", "a path, or None", value)
    return None if value is None else str(Path(value))


@final
@attrs.frozen(kw_only=True)
class TensorRTOptions:
    """Options of the TensorRT backend. What a version cannot do is refused, never ignored.

    Attributes:
        flavour: `tensorrt` or `tensorrt-rtx`. None: the first that is installed, in that order.
        compute_capabilities: Build ahead of time for these, such as `("8.6", "8.9")` (TensorRT-RTX only; it
            needs no GPU). Empty: for the GPU of this machine.
        dims: Least, usual and greatest size of symbolic dimensions, by name: `{"N": (1, 4, 8)}`. A dimension
            without a name is called `input.axis`. Others get 1, 1, 8 on the first axis; 1, 128, 512 on other
            axes of inputs up to rank 3; 32, 224, 512 from rank 4 on.
        profiles: Optimization profiles in full instead of `dims`: mappings from input to its least, usual and
            greatest shape; for inputs that are shapes themselves, their values.
        memory_pools: Limits in bytes by pool: `workspace`, `tactic_shared_memory`, `dla_managed_sram`, …
        tactic_sources: Where kernels may come from: `cublas`, `cublas_lt`, `cudnn`, `edge_mask_convolutions`,
            `jit_convolutions`. None: TensorRT's choice. The first three need those libraries.
        optimization_level: 0 (quickest build) to 5 (longest search). None: TensorRT's default.
        timing_cache: Reuse and keep the timings of kernels in `cache_dir`.
        tf32: Let float32 convolutions and products run in TF32 (a mantissa of 10 bits, errors of about 1e-3);
            TensorRT's own default, not ours: what is float32 in the graph is computed in float32.
        weak_precisions: TensorRT 8 only: what the builder may choose, of `float16`, `int8`. None: what the
            graph holds. On later versions precision is in the graph: use ToFloat16 and QuantizeStatic.
        sparse_weights: Use the sparse kernels where weights are 2:4 sparse (see PruneNM).
        refit: Make an engine whose weights can be replaced.
        strip_plan: Leave the weights out of the engine; they must be refitted from the ONNX model.
        weight_streaming: Let weights stay in host memory while running.
        version_compatible: Make an engine for later TensorRT versions of the same major version, too. It
            carries host code unless `exclude_lean_runtime`.
        exclude_lean_runtime: Leave that host code out; the device then needs the lean runtime.
        hardware_compatibility: `none`, `same_compute_capability` or `ampere_plus`.
        gpu_fallback: On a DLA device, let layers that it cannot run go to the GPU. They are reported.
        max_aux_streams: How many further CUDA streams one inference may use. None: TensorRT's choice.
        progress: True, False, or a function of (phase, step, steps). None: shown in a terminal or notebook.
        cancel: A function that is asked at each step; True ends the build.
        engine_host_code_allowed: Load engines that carry host code. That code runs with your rights when the
            engine is loaded: a decision to trust its maker. Only taken from the options of `load`.
        cuda_graphs: Capture inference into a CUDA graph once a shape repeats, and replay it.
        max_in_flight: How many requests may run at once, each with its own context, stream and buffers.
        weight_streaming_budget_bytes: Device memory for weights when they stream. None: TensorRT's choice.
        runtime_cache: TensorRT-RTX: a file in which the kernels made for this GPU are kept between runs.
            It holds executable code: keep it where only you can write.
    """

    flavour: str | None = attrs.field(default=None, validator=text)
    compute_capabilities: tuple[str, ...] = attrs.field(
        default=(), converter=_strings, validator=_check_capabilities
    )
    dims: Mapping[str, Triple] = attrs.field(factory=dict, converter=_dims)
    profiles: tuple[Mapping[str, Triple], ...] = attrs.field(default=(), converter=_profiles)
    memory_pools: Mapping[str, int] = attrs.field(factory=dict, converter=_pools)
    tactic_sources: tuple[str, ...] | None = attrs.field(
        default=None, converter=attrs.converters.optional(_strings), validator=_among(*_SOURCES)
    )
    optimization_level: int | None = attrs.field(default=None, validator=number(0, 5, optional=True))
    timing_cache: bool = attrs.field(default=True, validator=flag())
    tf32: bool = attrs.field(default=False, validator=flag())
    weak_precisions: tuple[str, ...] | None = attrs.field(
        default=None,
        converter=attrs.converters.optional(_strings),
        validator=_among("float16", "int8"),
    )
    sparse_weights: bool = attrs.field(default=False, validator=flag())
    refit: bool = attrs.field(default=False, validator=flag())
    strip_plan: bool = attrs.field(default=False, validator=flag())
    weight_streaming: bool = attrs.field(default=False, validator=flag())
    version_compatible: bool = attrs.field(default=False, validator=flag())
    exclude_lean_runtime: bool = attrs.field(default=False, validator=flag())
    hardware_compatibility: str = attrs.field(
        default="none", validator=one_of("none", "same_compute_capability", "ampere_plus")
    )
    gpu_fallback: bool = attrs.field(default=True, validator=flag())
    max_aux_streams: int | None = attrs.field(default=None, validator=number(0, MAX_THREADS, optional=True))
    progress: bool | Callable[[str, int, int], object] | None = None
    cancel: Callable[[], bool] | None = None
    engine_host_code_allowed: bool = attrs.field(default=False, validator=flag())
    cuda_graphs: bool = attrs.field(default=True, validator=flag())
    max_in_flight: int = attrs.field(default=2, validator=number(1, MAX_THREADS))
    weight_streaming_budget_bytes: int | None = attrs.field(default=None, validator=number(0, optional=True))
    runtime_cache: str | None = attrs.field(default=None, converter=_path)

    def to_json(self) -> dict[str, object]:
        """Return what the artifact keeps: not the functions, and no trust decision."""
        fields = attrs.asdict(self, recurse=False)
        return {name: _plain(value) for name, value in fields.items() if name not in _NOT_KEPT}


def find_untrusted(options: Mapping[str, Any]) -> list[str]:
    """Return the names of the options of an artifact that it may not set."""
    return [name for name in _NOT_KEPT if options.get(name)]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
