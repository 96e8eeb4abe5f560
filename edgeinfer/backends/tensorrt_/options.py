"""The options of the TensorRT backend.

Values are checked when options are made; what depends on the version is checked when it is known: by
`check_options` of the build, and by the loading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import attrs

from edgeinfer.backends.options import options_from
from edgeinfer.backends.tensorrt_ import validators as check
from edgeinfer.backends.tensorrt_.validators import Triple
from edgeinfer.errors import ArtifactTrustError, OptionsError

__all__ = ["TensorRTOptions", "Triple"]

_SOURCES = ("cublas", "cublas_lt", "cudnn", "edge_mask_convolutions", "jit_convolutions")
_POOLS = (
    "workspace",
    "tactic_shared_memory",
    "tactic_dram",
    "dla_managed_sram",
    "dla_local_dram",
    "dla_global_dram",
)
# When an option counts. Of a session: when loading; an artifact may keep it as its default. Of the loader
# alone: it names a file or is a decision of trust, so an artifact must not bring it along.
_OF_SESSION = {"of": "session"}
_OF_LOADER = {"of": "loader"}


def _option(default: Any, validator: Any, converter: Any = None, **metadata: Any) -> Any:
    return attrs.field(default=default, validator=validator, converter=converter, metadata=metadata)


def _flag(default: bool, **metadata: Any) -> Any:
    return _option(default, check.flag, **metadata)


def _mapping(validator: Any, converter: Any) -> Any:
    return attrs.field(factory=dict, validator=validator, converter=converter)


_optional = attrs.converters.optional


@final
@attrs.frozen(kw_only=True)
class TensorRTOptions:
    """Options of the TensorRT backend. What a version cannot do is refused, never ignored.

    Options up to `cancel` are those of compiling. The next ones, up to the budget, count when loading; an
    artifact keeps them as its defaults. The others are given to `load` alone: they name files, or are
    decisions of trust.

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
        timing_cache: Reuse and keep the timings of kernels in `cache_dir`; without one, in the process.
        tf32: Let float32 convolutions and products run in TF32 (a mantissa of 10 bits, errors of about 1e-3);
            TensorRT's own default, not ours: what is float32 in the graph is computed in float32.
        weak_precisions: TensorRT 8 only: what the builder may choose, of `float16`, `int8`. None: what the
            graph holds. On later versions precision is in the graph: use ToFloat16 and QuantizeStatic.
        sparse_weights: Use the sparse kernels where weights are 2:4 sparse (see PruneNM).
        refit: Make an engine whose weights can be replaced when it is loaded; see `refit_from`.
        strip_plan: Leave the weights out of the engine. The artifact keeps the ONNX model beside it, from
            which `load` refits them: several engines of one model share those bytes.
        weight_streaming: Let weights stay in host memory while running.
        version_compatible: Make an engine for later TensorRT versions of the same major version, too. It
            carries host code unless `exclude_lean_runtime`.
        exclude_lean_runtime: Leave that host code out; the device then needs the same version of TensorRT,
            its lean runtime (`tensorrt-lean`), or `lean_runtime`.
        hardware_compatibility: `none`, `same_compute_capability` or `ampere_plus`.
        gpu_fallback: On a DLA device, let layers that it cannot run go to the GPU. They are reported.
        max_aux_streams: How many further CUDA streams one inference may use. None: TensorRT's choice.
        progress: True, False, or a function of (phase, step, steps). None: shown in a terminal or notebook.
        cancel: A function that is asked at each step; True ends the build.
        cuda_graphs: Capture inference into a CUDA graph once a shape repeats, and replay it.
        max_in_flight: How many requests may run at once, each with its own context, stream and buffers.
        outputs: `host`: numpy arrays. `device`: `infer` returns arrays that stay on the GPU, with
            `__cuda_array_interface__`, for PyTorch, CuPy or the next session.
        pin_memory: Page-lock an input array that comes again, until it is freed, and the memory of large
            outputs, so that the GPU copies by itself. Otherwise they are copied once more on the host.
        copy_threads: How many threads copy a large input array that is not page-locked, the caller's
            included. None: half of the cores, six at most (eight with `copy_library`).
        weight_streaming_budget_bytes: Device memory for weights when they stream. None: TensorRT's choice.
        engine_host_code_allowed: Load engines that carry host code. That code runs with your rights when the
            engine is loaded: a decision to trust its maker.
        runtime_cache: TensorRT-RTX: a file in which the kernels made for this GPU are kept between runs.
            It holds executable code: keep it where only you can write.
        refit_from: An ONNX file of the same graph, whose weights replace the engine's (`refit`).
        copy_library: The library of `copy_library.build_copy_library`, whose threads copy large inputs
            without the interpreter's lock. None: threads of Python. It is code: give one that you trust.
        lean_runtime: The library of the lean runtime (`libnvinfer_lean.so.…`) of the version that built the
            engine, for engines built with `exclude_lean_runtime`. It is code: give one that you trust.
    """

    flavour: str | None = _option(None, check.optional(check.one_of("tensorrt", "tensorrt-rtx")))
    compute_capabilities: tuple[str, ...] = _option((), check.capabilities, check.as_names)
    dims: Mapping[str, Triple] = _mapping(check.dims, check.as_dims)
    profiles: tuple[Mapping[str, Triple], ...] = _option((), check.profiles, check.as_profiles)
    memory_pools: Mapping[str, int] = _mapping(check.pools(*_POOLS), check.as_pools)
    tactic_sources: tuple[str, ...] | None = _option(
        None, check.optional(check.names_of(*_SOURCES)), _optional(check.as_names)
    )
    optimization_level: int | None = _option(None, check.optional(check.whole(0, 5)), check.as_whole)
    timing_cache: bool = _flag(True)
    tf32: bool = _flag(False)
    weak_precisions: tuple[str, ...] | None = _option(
        None, check.optional(check.names_of("float16", "int8")), _optional(check.as_names)
    )
    sparse_weights: bool = _flag(False)
    refit: bool = _flag(False)
    strip_plan: bool = _flag(False)
    weight_streaming: bool = _flag(False)
    version_compatible: bool = _flag(False)
    exclude_lean_runtime: bool = _flag(False)
    hardware_compatibility: str = _option(
        "none", check.one_of("none", "same_compute_capability", "ampere_plus")
    )
    gpu_fallback: bool = _flag(True)
    max_aux_streams: int | None = _option(None, check.optional(check.whole(0)), check.as_whole)
    progress: bool | Callable[[str, int, int], object] | None = attrs.field(
        default=None, validator=check.optional(check.progress)
    )
    cancel: Callable[[], bool] | None = attrs.field(default=None, validator=check.optional(check.callback))
    cuda_graphs: bool = _flag(True, **_OF_SESSION)
    max_in_flight: int = _option(2, check.whole(1), check.as_whole, **_OF_SESSION)
    outputs: str = _option("host", check.one_of("host", "device"), **_OF_SESSION)
    pin_memory: bool = _flag(True, **_OF_SESSION)
    copy_threads: int | None = _option(
        None, check.optional(check.whole(1, 64)), check.as_whole, **_OF_SESSION
    )
    weight_streaming_budget_bytes: int | None = _option(
        None, check.optional(check.whole(0)), check.as_whole, **_OF_SESSION
    )
    engine_host_code_allowed: bool = _flag(False, **_OF_LOADER)
    runtime_cache: str | None = _option(None, check.optional(check.path), check.as_path, **_OF_LOADER)
    refit_from: str | None = _option(None, check.optional(check.path), check.as_path, **_OF_LOADER)
    copy_library: str | None = _option(None, check.optional(check.path), check.as_path, **_OF_LOADER)
    lean_runtime: str | None = _option(None, check.optional(check.path), check.as_path, **_OF_LOADER)

    def __attrs_post_init__(self) -> None:
        if self.dims and self.profiles:
            raise OptionsError(
                "Both dims and profiles are given, and profiles say all.",
                where="option dims",
                expected="dims or profiles",
                hint="Leave one of them out.",
            )
        if self.exclude_lean_runtime and not self.version_compatible:
            raise OptionsError(
                "exclude_lean_runtime goes with version_compatible.",
                where="option exclude_lean_runtime",
                hint="Only version_compatible engines hold a lean runtime; leave the option out.",
            )

    def for_compiling(self) -> TensorRTOptions:
        """Return the options, of which none would be ignored when compiling.

        Raises:
            OptionsError: One is the loader's alone, or would do nothing.
        """
        for name in _names("loader"):
            if getattr(self, name) != getattr(_DEFAULTS, name):
                raise OptionsError(
                    f"{name} is an option of loading, and an artifact does not keep it.",
                    where=f"option {name}",
                    hint=f"Leave it out here, and give it to load: load(..., options={{{name!r}: …}}).",
                )
        self._check_budget()
        return self

    @classmethod
    def for_loading(cls, kept: Mapping[str, object], given: object, *, flavour: str) -> TensorRTOptions:
        """Return the options of a session: those of the artifact, and what the loader gave.

        Args:
            kept: What the artifact's manifest has.
            given: What the loader gave: None, a mapping or an instance.
            flavour: The flavour of TensorRT that built the engine.

        Raises:
            ArtifactError: The manifest has what is the loader's to decide.
            OptionsError: A given option was decided when the engine was built, or would do nothing.
        """
        for name in _names("loader"):
            if kept.get(name) not in (None, getattr(_DEFAULTS, name)):
                raise ArtifactTrustError(
                    f"The artifact's manifest sets {name}, which only whoever loads it may.",
                    where=f"option {name}",
                    found=kept[name],
                    hint="It is not one that edgeinfer wrote; take the artifact from its source again.",
                )
        built = options_from(cls, kept, backend="tensorrt")
        merged = options_from(cls, kept, given, backend="tensorrt")
        for name in _names("build"):
            found = getattr(merged, name)
            if found != getattr(built, name) and not (name == "flavour" and found == flavour):
                raise OptionsError(
                    f"{name} is decided when a model is compiled, and not when it is loaded.",
                    where=f"option {name}",
                    expected=f"what it was built with: {getattr(built, name)!r}",
                    found=repr(found),
                    hint="Leave it out here, or compile the model again with it.",
                )
        merged._check_budget()
        return merged

    def _check_budget(self) -> None:
        if self.weight_streaming_budget_bytes is not None and not self.weight_streaming:
            raise OptionsError(
                "A budget for streaming weights is given, and the engine does not stream them.",
                where="option weight_streaming_budget_bytes",
                hint="Compile the model with weight_streaming=True, or leave the budget out.",
            )

    def to_json(self) -> dict[str, object]:
        """Return what the artifact keeps: not the functions, and nothing that is the loader's."""
        left_out = {"progress", "cancel", *_names("loader")}
        fields = attrs.asdict(self, recurse=False)
        return {name: _plain(value) for name, value in fields.items() if name not in left_out}


def _names(of: str) -> list[str]:
    fields = attrs.fields(TensorRTOptions)
    return [field.name for field in fields if field.metadata.get("of", "build") == of]


_DEFAULTS = TensorRTOptions()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
