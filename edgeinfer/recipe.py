"""The recipe of a target: which transforms `optimize` applies when none are named."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from edgeinfer.backends.registry import get_backend
from edgeinfer.devices.profile import Target
from edgeinfer.errors import EdgeInferError, TransformError, TransformOptionError
from edgeinfer.model.model import Model
from edgeinfer.transforms.contract import Transform
from edgeinfer.transforms.pipeline import Pipeline

__all__ = ["hand_down", "recipe"]


def recipe(
    target: Target | None,
    calibration: Any,
    *,
    evaluate: Callable[[Model], float] | None = None,
    max_drop: float | None = None,
    min_sqnr_db: float | None = None,
    effort: str | None = None,
) -> tuple[Transform, ...]:
    """Return simplify, fuse, and the best precision that the target executes and that can be reached.

    Args:
        target: Where the model will run.
        calibration: Representative feeds; without them there is no int8.
        evaluate: See `QuantizeInt8`, as the others.
        max_drop: How much of that metric may be lost.
        min_sqnr_db: The SQNR that the outputs must keep.
        effort: How much the search for int8 tries; None for its default.

    Raises:
        TransformOptionError: An effort is given, and there is no int8 to search for.
    """
    from edgeinfer.transforms import FuseBatchNorm, QuantizeInt8, Simplify, ToFloat16

    if calibration is not None and _runs_int8(target):
        # Weights that are stored as float16 are computed with in float32, and that is what is quantized.
        simplify = Simplify(widen_weights=True)
        quantize = QuantizeInt8(
            calibration=calibration,
            target=target,
            evaluate=evaluate,
            max_drop=max_drop,
            min_sqnr_db=min_sqnr_db,
            effort=effort or "default",
        )
        if target is None or not _runs_float16(target):
            return (simplify, FuseBatchNorm(), quantize)
        from edgeinfer.quantization.search.int8_or_float16 import Int8OrFloat16

        dialect = get_backend(target.backend).capabilities().dialect
        known = target.profile is not None or (dialect is not None and dialect.known_to_pay)
        return (simplify, FuseBatchNorm(), Int8OrFloat16(quantize, known_to_pay=known))
    if effort is not None:
        raise TransformOptionError(
            "There is no int8 to search for, so that an effort says nothing.",
            where="optimize, effort",
            expected="a calibration, and a target that runs int8",
            found="no calibration" if calibration is None else str(target),
        )
    if target is not None and _runs_float16(target):
        return (Simplify(), FuseBatchNorm(), ToFloat16())
    return (Simplify(), FuseBatchNorm())


def _runs_int8(target: Target | None) -> bool:
    return target is None or target.profile is None or "int8" in target.profile.precisions


def _runs_float16(target: Target) -> bool:
    if target.profile is not None:
        return "float16" in target.profile.precisions
    halves = get_backend(target.backend).capabilities().float16_devices
    return any(target.device.upper().startswith(name) for name in halves)


def hand_down(
    transform: Any, target: Target | None, calibration: Any, tolerances: Mapping[str, Any] | None = None
) -> Any:
    """Give a transform the target and the calibration of `optimize` where it takes one and has none.

    A transform that holds models to tolerances (it has all of the attributes) gets those of `optimize`, too.

    A transform takes one when it has an attribute of that name (`_target` and `_calibration` count, too), and
    has none when that is None. It may be an attrs class, a dataclass or any other object; it is copied.

    Raises:
        TransformError: It takes one that cannot be given to it.
    """
    if isinstance(transform, Pipeline):
        steps = tuple(hand_down(step, target, calibration, tolerances) for step in transform.transforms)
        return attrs.evolve(transform, transforms=steps)
    if isinstance(transform, type):
        return transform  # refused by the Pipeline, which says why
    given = {"target": target, "calibration": calibration}
    missing = {name: value for name, value in given.items() if value is not None and _lacks(transform, name)}
    if tolerances and all(getattr(transform, name, "no such attribute") is None for name in tolerances):
        missing |= {name: value for name, value in tolerances.items() if value is not None}
    return _with(transform, missing) if missing else transform


def _lacks(transform: Any, name: str) -> bool:
    """Whether the transform takes a value of that name and has none."""
    for attribute in (name, f"_{name}"):
        if hasattr(transform, attribute):
            return getattr(transform, attribute) is None
    try:
        takes = name in inspect.signature(type(transform)).parameters
    except (TypeError, ValueError):  # a class of an extension module has no signature to read
        return False
    if takes:
        raise TransformError(
            f"{type(transform).__name__} takes a {name}, and does not show whether it has one.",
            where=f"optimize(..., {name}=...)",
            expected=f"an attribute {name!r}, None as long as there is none",
            hint=f"Keep the constructor's {name} in an attribute of that name.",
        )
    return False


def _with(transform: Any, values: Mapping[str, Any]) -> Any:
    """Return a copy of the transform with the values."""
    try:
        if attrs.has(type(transform)):
            return attrs.evolve(transform, **values)
        if dataclasses.is_dataclass(transform) and not isinstance(transform, type):
            changed: Any = dataclasses.replace(transform, **values)
            return changed
        other = copy.copy(transform)
        for name, value in values.items():
            setattr(other, name if hasattr(transform, name) else f"_{name}", value)
    except EdgeInferError:
        raise
    except Exception as error:  # a third party's class may raise anything
        raise TransformError(
            f"{type(transform).__name__} takes a {' and a '.join(values)}, but cannot be given it: {error}",
            where="optimize",
            hint="Give it to the transform's constructor instead, or let the attribute be set on a copy.",
        ) from error
    return other
