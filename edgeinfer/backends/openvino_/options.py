"""Options of the OpenVINO backend, and which of OpenVINO's properties an artifact may set."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import attrs

from edgeinfer.backends.option_checks import (
    MAX_THREADS,
    as_mapping,
    flag,
    number,
    one_of,
    refuse_option,
    text,
    untrusted,
)
from edgeinfer.cpu_quota import cpu_quota, usable_cpus

__all__ = ["OpenVINOOptions", "find_untrusted"]

# Properties that reach no file and no code. Left out on purpose: those with a path (CACHE_DIR, CONFIG_FILE,
# WEIGHTS_PATH, NPUW_CACHE_DIR), what dumps into the current folder (NPUW_DUMP_*), those that hold others
# (DEVICE_PROPERTIES), options of compilers (NPU_COMPILATION_MODE_PARAMS), and numbers of threads.
# fmt: off
_PORTABLE = frozenset({
    "ACTIVATIONS_SCALE_FACTOR", "ALLOW_AUTO_BATCHING", "AUTO_BATCH_TIMEOUT", "CPU_DENORMALS_OPTIMIZATION",
    "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "ENABLE_CPU_PINNING",
    "ENABLE_CPU_RESERVATION", "ENABLE_HYPER_THREADING", "ENABLE_MMAP", "ENABLE_RUNTIME_FALLBACK",
    "ENABLE_STARTUP_FALLBACK", "ENABLE_TENSOR_PARALLEL", "EXECUTION_MODE_HINT",
    "GPU_DISABLE_WINOGRAD_CONVOLUTION", "GPU_ENABLE_LOOP_UNROLLING", "GPU_ENABLE_SDPA_OPTIMIZATION",
    "GPU_HOST_TASK_PRIORITY", "GPU_QUEUE_PRIORITY", "GPU_QUEUE_THROTTLE", "INFERENCE_PRECISION_HINT",
    "KEY_CACHE_GROUP_SIZE", "KEY_CACHE_PRECISION", "KV_CACHE_PRECISION", "LOG_LEVEL",
    "MODEL_DISTRIBUTION_POLICY", "MODEL_PRIORITY", "NPU_TURBO", "PERFORMANCE_HINT",
    "PERFORMANCE_HINT_NUM_REQUESTS", "PERF_COUNT", "SCHEDULING_CORE_TYPE", "TBB_PARTITIONER",
    "VALUE_CACHE_GROUP_SIZE", "VALUE_CACHE_PRECISION", "WORKLOAD_TYPE",
})
# fmt: on
_THREADS_HINT = "0 is one for each core that it may use."


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _check_properties(instance: Any, attribute: Any, value: Any) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise refuse_option(attribute.name, "a mapping of names to values", value, cls=type(instance))
    for holder in (value, *(held for held in value.values() if isinstance(held, Mapping))):
        for properties in (holder, *(held for held in holder.values() if isinstance(held, Mapping))):
            if "CACHE_DIR" in properties:
                raise refuse_option(
                    attribute.name,
                    "properties without CACHE_DIR",
                    value,
                    cls=type(instance),
                    hint="Give the folder as cache_dir, so that what it holds is verified before it is used.",
                )


@final
@attrs.frozen(kw_only=True)
class OpenVINOOptions:
    """Options of the OpenVINO backend.

    Attributes:
        performance_hint: `LATENCY`, `THROUGHPUT`, `CUMULATIVE_THROUGHPUT`, or empty for the device's default.
        num_streams: How many requests the device works on at once, at most 256; None leaves it to the hint.
        threads: CPU threads, at most 256; 0 lets the runtime choose, but no more than the CPU time that the
            container may use.
        inference_precision: `f32`, `f16` or `bf16`: what the float parts of the graph are computed in.
            `auto` is the vendor's choice: bfloat16 on CPUs that have it, float16 on GPUs, which changes the
            numbers. The default is `f32`, because precision belongs into the graph. NPUs have only their own
            choice.
        execution_mode: `PERFORMANCE` or `ACCURACY`; None is the runtime's default.
        pinning: Whether OpenVINO pins its CPU threads to cores of its own choice; None leaves it to OpenVINO.
            The default is False: OpenVINO would move the calling thread to one core and back on each call
            (2.5 µs), against `pin_cores` and against other sessions of the process.
        cache_dir: A folder where OpenVINO caches compiled models, which makes later loads quick. What it
            holds is verified before each use; cached models that changed are removed, with a warning. Never
            taken from an artifact.
        export: Make a device-bound artifact from OpenVINO's compiled blob.
        allow_float64_as_float32: Accept that OpenVINO computes float64 as float32; else a model that computes
            in float64 is refused.
        properties: Further OpenVINO properties by their names, such as `{"ENABLE_HYPER_THREADING": False}`.
            An artifact keeps those that are known to name no file.
    """

    performance_hint: str = attrs.field(
        default="LATENCY",
        converter=_upper,
        validator=one_of("", "LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT"),
    )
    num_streams: int | None = attrs.field(default=None, validator=number(1, MAX_THREADS, optional=True))
    threads: int = attrs.field(default=0, validator=number(0, MAX_THREADS, hint=_THREADS_HINT))
    inference_precision: str = attrs.field(default="f32", validator=one_of("f32", "f16", "bf16", "auto"))
    execution_mode: str | None = attrs.field(
        default=None, converter=_upper, validator=one_of("PERFORMANCE", "ACCURACY", optional=True)
    )
    pinning: bool | None = attrs.field(default=False, validator=flag(optional=True))
    cache_dir: str | None = attrs.field(default=None, converter=_path, validator=text)
    export: bool = attrs.field(default=False, validator=flag())
    allow_float64_as_float32: bool = attrs.field(default=False, validator=flag())
    properties: Mapping[str, object] = attrs.field(
        factory=dict, converter=as_mapping, validator=_check_properties
    )

    @property
    def cache(self) -> Path | None:
        """The cache folder."""
        return Path(self.cache_dir) if self.cache_dir else None

    def config(self, device: str) -> dict[str, object]:
        """Return the properties that OpenVINO takes for these options on a device."""
        config: dict[str, object] = {}
        if self.performance_hint:
            config["PERFORMANCE_HINT"] = self.performance_hint
        if self.inference_precision != "auto" and not device.startswith("NPU"):
            config["INFERENCE_PRECISION_HINT"] = self.inference_precision
        if self.num_streams is not None:
            config["NUM_STREAMS"] = self.num_streams
        if threads := self.threads or _thread_limit(device):
            config["INFERENCE_NUM_THREADS"] = threads
        if self.execution_mode is not None:
            config["EXECUTION_MODE_HINT"] = self.execution_mode
        if self.pinning is not None:
            config["ENABLE_CPU_PINNING"] = self.pinning
        if self.cache_dir:
            config["CACHE_DIR"] = self.cache_dir
        return {**config, **self.properties}

    def portable(self) -> dict[str, object]:
        """Return what an artifact keeps: no folder of this machine, and no property that may name a file."""
        kept = attrs.asdict(self, filter=lambda field, _: field.name not in ("cache_dir", "export"))
        kept["properties"] = {name: value for name, value in self.properties.items() if name in _PORTABLE}
        return kept

    def not_portable(self) -> tuple[str, ...]:
        """Return the names of the properties that an artifact does not keep."""
        return tuple(untrusted(self.properties, _PORTABLE, "properties"))


def find_untrusted(options: Mapping[str, Any]) -> list[str]:
    """Return the names of the options of an artifact that it may not set."""
    found = ["cache_dir"] if options.get("cache_dir") else []
    return found + untrusted(options.get("properties", {}), _PORTABLE, "properties")


def _thread_limit(device: str) -> int:
    """Return how many threads the container's CPU time is good for, or 0 when that is not what limits them.

    OpenVINO looks at the cores that the process may use, not at the time that it may use them for.
    """
    if "CPU" not in device and device != "AUTO":
        return 0
    quota = cpu_quota()
    usable = usable_cpus()
    return usable if quota is not None and math.ceil(quota) <= usable < (os.cpu_count() or 1) else 0
