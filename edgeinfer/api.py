"""The four verbs: `optimize`, `compile`, `load`, `infer`. They validate and delegate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import onnx_ir as ir

from edgeinfer.artifact.artifact import Artifact
from edgeinfer.devices.profile import Target
from edgeinfer.errors import OptionsError, TransformOptionError
from edgeinfer.graph.build import compile_model
from edgeinfer.graph.confined import Limits, compile_confined
from edgeinfer.model.model import Model, ModelSource
from edgeinfer.recipe import hand_down, recipe
from edgeinfer.transforms.contract import GIVEN_KEY, Transform
from edgeinfer.transforms.pipeline import Pipeline

__all__ = ["compile", "optimize"]


def optimize(
    model: ModelSource,
    transforms: Iterable[Transform | ir.passes.PassBase] | Transform | None = None,
    *,
    target: Target | str | None = None,
    calibration: Any = None,
    evaluate: Callable[[Model], float] | None = None,
    max_drop: float | None = None,
    min_sqnr_db: float | None = None,
    effort: str | None = None,
) -> Model:
    """Apply transforms to a model, or the recipe of a target.

    Args:
        model: A path, bytes, `onnx.ModelProto`, `onnx_ir.Model` or Model. It is not changed.
        transforms: What to apply, in order. None: the recipe of the target, which is to simplify, to fuse,
            and then the best precision that the target executes and that can be reached (int8 with
            calibration, fp16 on GPU and NPU, else float32).
        target: A Target, a device profile (`"jetson-orin-nano"`) or a backend (`"openvino:NPU"`). It is
            handed down to transforms that take one, and remembered in the model.
        calibration: A re-iterable of feeds (mappings from input name to array with the batch axis), or one of
            the sources of `edgeinfer.quantization`. Handed down to transforms that take one.
        evaluate: From a Model to the task's metric, of which more is better; with `max_drop` it holds
            `QuantizeInt8` to it.
        max_drop: How much of that metric may be lost.
        min_sqnr_db: The SQNR in dB that the outputs of an int8 model must keep.
        effort: How much the recipe's search for int8 tries: `fast`, `default` or `thorough`. Where transforms
            are named, `QuantizeInt8(effort=...)` takes it.

    Returns:
        A new Model; `model.history` says what was done, `model.report` says it at length.

    Raises:
        ModelError: The model cannot be read.
        TargetError: There is no such target.
        TransformError: A transform cannot be applied, or a tolerance or an effort is given that none of them
            takes.
    """
    loaded = Model.load(model)
    parsed = Target.parse(target) if target is not None else None
    tolerances: dict[str, Any] = {"evaluate": evaluate, "max_drop": max_drop, "min_sqnr_db": min_sqnr_db}
    if transforms is None:
        steps: tuple[Any, ...] = recipe(parsed, calibration, effort=effort, **tolerances)
    elif effort is not None:
        raise TransformOptionError(
            "The effort is the recipe's, and transforms are named here.",
            where="optimize, effort",
            found=effort,
            hint="Give it to the transform: QuantizeInt8(effort=...).",
        )
    elif isinstance(transforms, Iterable):
        steps = tuple(transforms)
    else:
        steps = (transforms,)
    pipeline = Pipeline(tuple(hand_down(step, parsed, calibration, tolerances) for step in steps))
    _require_kept(tolerances, pipeline)
    result, report = pipeline.apply(_noting_given(loaded))
    result.ir.meta.pop(GIVEN_KEY, None)
    if parsed is not None:
        result = result.with_metadata(edgeinfer_target=str(parsed))
    return attrs.evolve(result, report=report)


def _noting_given(model: Model) -> Model:
    """Return the model with a note of itself, against which transforms tell the speed of what they make."""
    noted = model.copy_ir()
    noted.meta[GIVEN_KEY] = model.ir
    return Model(noted, model.path)


def _require_kept(tolerances: Mapping[str, Any], pipeline: Pipeline) -> None:
    """Refuse tolerances that no transform keeps: they would be forgotten silently."""
    given = [name for name, value in tolerances.items() if value is not None]
    steps = [getattr(step, "quantize", step) for step in pipeline.transforms]
    if given and not any(all(getattr(step, name, None) is not None for name in given) for step in steps):
        raise TransformOptionError(
            "Nothing in these transforms keeps a tolerance.",
            where=f"optimize, {', '.join(given)}",
            expected="QuantizeInt8 among the transforms, or none named, and a calibration",
            found=", ".join(type(step).__name__ for step in steps) or "no transforms",
        )


def compile(  # noqa: A001 (the verb of the design)
    model: ModelSource,
    target: Target | str | None = None,
    *,
    device: str | None = None,
    options: object = None,
    cache_dir: str | os.PathLike[str] | None = None,
    backend: Target | str | None = None,
    limits: Limits | Mapping[str, Any] | bool | None = None,
) -> Artifact:
    """Compile a model for a target.

    Args:
        model: A path, bytes, `onnx.ModelProto`, `onnx_ir.Model` or Model.
        target: A Target, a device profile, or a backend with or without a device (`"openvino:GPU"`). None:
            the model's target, else the best backend that is available on this machine. A model that was
            tuned for this backend is compiled with the options that it was tuned with.
        device: The device name within the backend. None: that of the target, else the backend's default.
        options: The backend's frozen options value, or a mapping of the same names, which wins over what the
            model was tuned with.
        cache_dir: A folder for the runtime's caches.
        backend: Another name of `target`.
        limits: For a model that you do not trust, given by its path or bytes: read and compile it in a child
            process of limited time and memory. True: 120 s and 4 GiB; others as `{"timeout_s": 10,
            "max_bytes": 1 << 30}`. See docs/security.md for what this does not do.

    Returns:
        The Artifact, in memory; `save` writes it.

    Raises:
        ModelError: The model cannot be read, or takes or gives something else than tensors.
        BackendError: The backend is unknown or not available, or the device or an option is.
        CompileError: The runtime refused the model, or a limit was reached.
    """
    if target is not None and backend is not None:
        raise OptionsError(
            "`backend` is another name of `target`; give one of them.", found=f"{target!r} and {backend!r}"
        )
    chosen = target if target is not None else backend
    if limits is not None and limits is not False:
        if cache_dir is not None or not (options is None or isinstance(options, Mapping)):
            raise OptionsError(
                "A confined compiler takes options as a mapping, and no cache.", where="compile, limits"
            )
        return compile_confined(
            model,
            str(chosen) if chosen is not None else None,
            Limits.of(limits),
            device=device,
            options=options,
        )
    return compile_model(model, chosen, device=device, options=options, cache_dir=cache_dir)
