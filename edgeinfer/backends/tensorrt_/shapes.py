"""Which optimization profile of an engine takes a set of shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeinfer.backends.tensorrt_.tensors import EngineTensor
from edgeinfer.errors import InputError

__all__ = ["choose_profile"]


def choose_profile(
    engine: Any, tensors: Sequence[EngineTensor], shapes: Sequence[tuple[int, ...]], *, first: int
) -> int:
    """Return the index of a profile that has the shapes of all inputs, `first` if it has.

    Raises:
        InputError: None has.
    """
    count = engine.num_optimization_profiles
    for index in (first, *(other for other in range(count) if other != first)):
        if all(_fits(engine, tensor, shape, index) for tensor, shape in zip(tensors, shapes, strict=True)):
            return index
    ranges = [
        f"{tensor.name} {tuple(low)} to {tuple(high)}"
        for index in range(count)
        for tensor in tensors
        if not tensor.is_shape
        for low, _, high in [engine.get_tensor_profile_shape(tensor.name, index)]
    ]
    raise InputError(
        "The shapes are outside of what the engine was built for.",
        expected="; ".join(ranges),
        found=", ".join(f"{tensor.name} {shape}" for tensor, shape in zip(tensors, shapes, strict=True)),
        hint="Compile again with options={'dims': {name: (least, usual, greatest)}}.",
    )


def _fits(engine: Any, tensor: EngineTensor, shape: tuple[int, ...], profile: int) -> bool:
    if tensor.is_shape:
        return True
    low, _, high = engine.get_tensor_profile_shape(tensor.name, profile)
    low, high = tuple(low), tuple(high)
    return len(low) == len(shape) and all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
