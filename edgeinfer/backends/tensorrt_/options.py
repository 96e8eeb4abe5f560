"""The options of the TensorRT backend."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, final

import attrs

__all__ = ["TensorRTOptions", "Triple"]

Triple: TypeAlias = "tuple[Any, Any, Any]"

_CAPABILITY = re.compile(r"\d{1,2}\.\d\Z")
_SOURCES = ("cublas", "cublas_lt", "cudnn", "edge_mask_convolutions", "jit_convolutions")
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
    triples = {str(name): _triple(sizes) for name, sizes in (value or {}).items()}
    for name, (low, opt, high) in triples.items():
        if not 0 <= low <= opt <= high:
            raise ValueError(f"dims[{name!r}] must be (least, usual, greatest), not {(low, opt, high)}")
    return triples


def _profiles(value: Any) -> tuple[dict[str, Triple], ...]:
    return tuple(
        {
            str(name): _triple(tuple(tuple(map(int, shape)) for shape in shapes))
            for name, shapes in profile.items()
        }
        for profile in value or ()
    )


def _check_capabilities(_: object, __: object, values: tuple[str, ...]) -> None:
    for value in values:
        if not _CAPABILITY.match(value):
            raise ValueError(f'a compute capability looks like "8.6", not {value!r}')


def _check_pools(_: object, __: object, pools: Mapping[str, int]) -> None:
    for name, size in pools.items():
        if name not in _POOLS or size < 0:
            raise ValueError(f"memory_pools takes sizes in bytes of {', '.join(_POOLS)}, not {name}={size}")


def _check_weak(_: object, __: object, values: tuple[str, ...] | None) -> None:
    if values is not None and not set(values) <= {"float16", "int8"}:
        raise ValueError(f"weak_precisions takes float16 and int8, not {', '.join(values)}")


def _check_sources(_: object, __: object, names: tuple[str, ...] | None) -> None:
    if names is not None and not set(names) <= set(_SOURCES):
        raise ValueError(f"tactic_sources takes {', '.join(_SOURCES)}, not {', '.join(names)}")


def _path(value: str | os.PathLike[str] | None) -> str | None:
    return None if value is None else str(Path(value))


_BOOL = attrs.validators.instance_of(bool)
_OPTIONAL_INT = attrs.validators.optional(attrs.validators.instance_of(int))


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

    flavour: str | None = None
    compute_capabilities: tuple[str, ...] = attrs.field(
        default=(), converter=_strings, validator=_check_capabilities
    )
    dims: Mapping[str, Triple] = attrs.field(factory=dict, converter=_dims)
    profiles: tuple[Mapping[str, Triple], ...] = attrs.field(default=(), converter=_profiles)
    memory_pools: Mapping[str, int] = attrs.field(factory=dict, converter=dict, validator=_check_pools)
    tactic_sources: tuple[str, ...] | None = attrs.field(
        default=None, converter=attrs.converters.optional(_strings), validator=_check_sources
    )
    optimization_level: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.in_(range(6)))
    )
    timing_cache: bool = attrs.field(default=True, validator=_BOOL)
    tf32: bool = attrs.field(default=False, validator=_BOOL)
    weak_precisions: tuple[str, ...] | None = attrs.field(
        default=None,
        converter=attrs.converters.optional(_strings),
        validator=_check_weak,
    )
    sparse_weights: bool = attrs.field(default=False, validator=_BOOL)
    refit: bool = attrs.field(default=False, validator=_BOOL)
    strip_plan: bool = attrs.field(default=False, validator=_BOOL)
    weight_streaming: bool = attrs.field(default=False, validator=_BOOL)
    version_compatible: bool = attrs.field(default=False, validator=_BOOL)
    exclude_lean_runtime: bool = attrs.field(default=False, validator=_BOOL)
    hardware_compatibility: str = attrs.field(
        default="none", validator=attrs.validators.in_(("none", "same_compute_capability", "ampere_plus"))
    )
    gpu_fallback: bool = attrs.field(default=True, validator=_BOOL)
    max_aux_streams: int | None = attrs.field(default=None, validator=_OPTIONAL_INT)
    progress: bool | Callable[[str, int, int], object] | None = None
    cancel: Callable[[], bool] | None = None
    engine_host_code_allowed: bool = attrs.field(default=False, validator=_BOOL)
    cuda_graphs: bool = attrs.field(default=True, validator=_BOOL)
    max_in_flight: int = attrs.field(default=2, validator=attrs.validators.ge(1))
    weight_streaming_budget_bytes: int | None = attrs.field(default=None, validator=_OPTIONAL_INT)
    runtime_cache: str | None = attrs.field(default=None, converter=_path)

    def to_json(self) -> dict[str, object]:
        """Return what the artifact keeps: not the functions, and no trust decision."""
        left_out = ("progress", "cancel", "engine_host_code_allowed", "runtime_cache")
        fields = attrs.asdict(self, recurse=False)
        return {name: _plain(value) for name, value in fields.items() if name not in left_out}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
