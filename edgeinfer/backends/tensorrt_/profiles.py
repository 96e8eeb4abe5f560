"""Optimization profiles: the range of shapes that an engine is built for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeinfer.artifact.signature import Dim, Signature, TensorSpec
from edgeinfer.backends.tensorrt_.options import TensorRTOptions, Triple
from edgeinfer.errors import OptionsError

__all__ = ["plan_profiles"]

# Least, usual, greatest size of a dimension about which nothing was said: a batch, a sequence, an image side.
_BATCH: Triple = (1, 1, 8)
_SEQUENCE: Triple = (1, 128, 512)
_SIDE: Triple = (32, 224, 512)


def plan_profiles(
    signature: Signature, options: TensorRTOptions, *, shape_inputs: frozenset[str] = frozenset()
) -> tuple[dict[str, Triple], ...]:
    """Return one mapping a profile, from input to its least, usual and greatest shape; none if all is static.

    Args:
        signature: The inputs, with symbolic dimensions.
        options: `profiles`, or `dims` and the defaults that are described there.
        shape_inputs: Inputs whose values are shapes; for these a profile holds values.

    Raises:
        OptionsError: A profile or a dimension names what is not there, does not fit, or is missing.
    """
    if options.profiles:
        return tuple(_checked(signature, profile, shape_inputs) for profile in options.profiles)
    known = {_name(spec, axis, dim) for spec in signature.inputs for axis, dim in enumerate(spec.shape or ())}
    unknown = sorted(set(options.dims) - known)
    if unknown:
        raise OptionsError(
            f"The model has no symbolic dimension {unknown[0]!r}.",
            where="option dims",
            expected=", ".join(sorted(known)) or "none: all shapes are static",
            found=unknown,
        )
    if shape_inputs:
        raise OptionsError(
            "The values of an input are shapes, so its range must be given.",
            where=f"input {min(shape_inputs)!r}",
            expected=f"profiles=[{{{min(shape_inputs)!r}: (least, usual, greatest), …}}]",
        )
    profile = {}
    for spec in signature.inputs:
        if spec.shape is None:
            raise OptionsError(
                "TensorRT needs the rank of every input.",
                where=f"input {spec.name!r}",
                hint="Give the input a shape with FixShapes.",
            )
        if not spec.is_static:
            profile[spec.name] = _range(spec, options.dims)
    return (profile,) if profile else ()


def _name(spec: TensorSpec, axis: int, dim: Dim) -> str:
    return dim if isinstance(dim, str) else f"{spec.name}.{axis}" if dim is None else ""


def _range(spec: TensorSpec, dims: Mapping[str, Triple]) -> Triple:
    sizes = []
    for axis, dim in enumerate(spec.shape or ()):
        if isinstance(dim, int):
            sizes.append((dim, dim, dim))
        else:
            default = _BATCH if axis == 0 else _SIDE if len(spec.shape or ()) > 3 else _SEQUENCE
            sizes.append(dims.get(_name(spec, axis, dim), default))
    low, opt, high = (tuple(size[which] for size in sizes) for which in range(3))
    return (low, opt, high)


def _checked(
    signature: Signature, profile: Mapping[str, Triple], shape_inputs: frozenset[str]
) -> dict[str, Triple]:
    specs = {spec.name: spec for spec in signature.inputs}
    needed = {spec.name for spec in signature.inputs if not spec.is_static} | shape_inputs
    if set(profile) - set(specs) or needed - set(profile):
        raise OptionsError(
            "A profile does not cover the inputs.",
            where="option profiles",
            expected=f"shapes of {', '.join(sorted(needed))}",
            found=", ".join(profile) or "nothing",
        )
    for name, triple in profile.items():
        if name not in shape_inputs and not _fits(specs[name].shape, triple):
            raise OptionsError(
                "A profile does not fit an input.",
                where=f"input {name!r}",
                expected=f"least ≤ usual ≤ greatest of {specs[name].describe()}",
                found=triple,
            )
    return dict(profile)


def _fits(shape: tuple[Dim, ...] | None, triple: Triple) -> bool:
    low, opt, high = triple
    if not len(low) == len(opt) == len(high) == len(shape if shape is not None else low):
        return False
    dims: tuple[Any, ...] = shape if shape is not None else (None,) * len(low)
    return all(
        a <= b <= c and (not isinstance(dim, int) or a == b == c == dim)
        for dim, a, b, c in zip(dims, low, opt, high, strict=True)
    )
