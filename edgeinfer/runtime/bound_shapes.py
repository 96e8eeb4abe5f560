"""The shapes of a session's inputs in bound mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgeinfer.artifact.signature import TensorSpec
from edgeinfer.errors import InputError

__all__ = ["empty_feeds", "resolve_shapes"]


def resolve_shapes(
    inputs: Sequence[TensorSpec], optional: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every input, and of each optional one that is given.

    Raises:
        InputError: A shape is missing, is none, or is of no input.
    """
    names = [spec.name for spec in (*inputs, *optional)]
    if not isinstance(shapes, Mapping) or not set(shapes) <= set(names):
        raise InputError(
            "The shapes do not have the names of the model's inputs.",
            expected=f"a mapping with names among {', '.join(names)}",
            found=", ".join(map(str, shapes)) if isinstance(shapes, Mapping) else type(shapes).__name__,
        )
    given = [spec for spec in optional if spec.name in shapes]
    return {spec.name: _shape_of(spec, shapes) for spec in (*inputs, *given)}


def empty_feeds(specs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return a feed of these shapes that takes no memory, for a check against the signature."""
    return {
        spec.name: np.broadcast_to(
            np.full((), "" if spec.dtype == object else 0, spec.dtype), shapes[spec.name]
        )
        for spec in specs
        if spec.name in shapes
    }


def _shape_of(spec: TensorSpec, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    if spec.name in shapes:
        return _sizes(spec.name, shapes[spec.name])
    if spec.is_static:
        return tuple(dim for dim in spec.shape or () if isinstance(dim, int))
    raise InputError(
        "The input has no static shape, so bind needs one.",
        where=f"input {spec.name!r}",
        expected=spec.describe(),
        hint=f"session.bind({{{spec.name!r}: (...)}})",
    )


def _sizes(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in shape)
    except (TypeError, ValueError) as error:
        raise InputError(
            "That is not a shape.", where=f"input {name!r}", expected="whole numbers", found=repr(shape)
        ) from error
    if min(sizes, default=0) < 0:
        raise InputError("A size is negative.", where=f"input {name!r}", found=sizes)
    return sizes
