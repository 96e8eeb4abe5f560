"""The recipe of a target: which transforms `optimize` applies when none are named."""

from __future__ import annotations

from typing import Any

import attrs

from edgeinfer.devices.profile import Target
from edgeinfer.transforms.contract import Pipeline, Transform

__all__ = ["hand_down", "recipe"]

# Devices that execute float16 faster than float32.
_HALF_DEVICES = ("GPU", "NPU", "CUDA", "DLA")


def recipe(target: Target | None, calibration: Any) -> tuple[Transform, ...]:
    """Return simplify, fuse, and the best precision that the target executes and that can be reached."""
    from edgeinfer.transforms import FuseBatchNorm, QuantizeInt8, Simplify, ToFloat16

    if calibration is not None and _runs_int8(target):
        # Weights that are stored as float16 are computed with in float32, and that is what is quantized.
        simplify = Simplify(widen_weights=True)
        quantize = QuantizeInt8(calibration=calibration, target=target)
        if target is None or not _runs_float16(target):
            return (simplify, FuseBatchNorm(), quantize)
        from edgeinfer.quantization.search.int8_or_float16 import Int8OrFloat16

        known = target.profile is not None or target.backend == "tensorrt"
        return (simplify, FuseBatchNorm(), Int8OrFloat16(quantize, known_to_pay=known))
    if target is not None and _runs_float16(target):
        return (Simplify(), FuseBatchNorm(), ToFloat16())
    return (Simplify(), FuseBatchNorm())


def _runs_int8(target: Target | None) -> bool:
    return target is None or target.profile is None or "int8" in target.profile.precisions


def _runs_float16(target: Target) -> bool:
    if target.profile is not None:
        return "float16" in target.profile.precisions
    return target.backend == "tensorrt" or target.device.upper().startswith(_HALF_DEVICES)


def hand_down(transform: Any, target: Target | None, calibration: Any) -> Any:
    """Give a transform the target and the calibration of `optimize` where it takes one and has none."""
    if isinstance(transform, Pipeline):
        steps = tuple(hand_down(step, target, calibration) for step in transform.transforms)
        return attrs.evolve(transform, transforms=steps)
    if not attrs.has(type(transform)):
        return transform
    names = {field.name for field in attrs.fields(type(transform))}
    given = {"target": target, "calibration": calibration}
    missing = {
        name: value
        for name, value in given.items()
        if value is not None and name in names and getattr(transform, name) is None
    }
    return attrs.evolve(transform, **missing) if missing else transform
