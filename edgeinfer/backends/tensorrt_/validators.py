"""What values the options of the TensorRT backend may have: converters, and validators with our errors.

A converter changes what it understands and hands on the rest, which the validator then refuses: only the
validator knows the option's name.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edgeinfer.errors import OptionsError

__all__ = [
    "Triple",
    "Validator",
    "as_dims",
    "as_names",
    "as_path",
    "as_pools",
    "as_profiles",
    "as_whole",
    "callback",
    "capabilities",
    "dims",
    "flag",
    "names_of",
    "one_of",
    "optional",
    "path",
    "pools",
    "profiles",
    "progress",
    "whole",
]

Triple: TypeAlias = "tuple[Any, Any, Any]"
Validator: TypeAlias = Callable[[Any, Any, Any], None]

_CAPABILITY = re.compile(r"\d{1,2}\.\d\Z")


def _refuse(attribute: Any, value: object, expected: str) -> OptionsError:
    return OptionsError(
        f"The option {attribute.name} does not take that value: {expected}.",
        where=f"option {attribute.name}",
        expected=expected,
        found=f"{type(value).__name__} {value!r}",
    )


# Converters.


def as_whole(value: Any) -> Any:
    """Return an int of any integer type, such as numpy's; anything else as it is, booleans too."""
    if isinstance(value, (bool, np.ndarray)):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def as_names(value: Any) -> Any:
    """Return a tuple of strings of a string, a number or several of them."""
    if value is None:
        return ()
    if isinstance(value, (str, float)):
        return (str(value),)
    if isinstance(value, Iterable) and not isinstance(value, (Mapping, bytes)):
        items = tuple(value)
        if all(isinstance(item, (str, float)) for item in items):
            return tuple(map(str, items))
    return value


def as_dims(value: Any) -> Any:
    """Return a mapping from name to a triple of ints, of None or of a mapping of such."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return value
    return {name: _as_sizes(sizes) for name, sizes in value.items()}


def as_profiles(value: Any) -> Any:
    """Return a tuple of mappings from input to a triple of shapes."""
    if value is None:
        return ()
    if not isinstance(value, Iterable) or isinstance(value, (Mapping, str, bytes)):
        return value
    return tuple(
        {name: _as_shapes(shapes) for name, shapes in profile.items()}
        if isinstance(profile, Mapping)
        else profile
        for profile in value
    )


def as_pools(value: Any) -> Any:
    """Return a mapping from pool to a size."""
    if value is None:
        return {}
    return {name: as_whole(size) for name, size in value.items()} if isinstance(value, Mapping) else value


def as_path(value: Any) -> Any:
    """Return the text of a path."""
    return str(Path(value)) if isinstance(value, (str, os.PathLike)) and value else value


def _as_sizes(value: Any) -> Any:
    if not isinstance(value, Iterable) or isinstance(value, (Mapping, str, bytes)):
        return value
    return tuple(map(as_whole, value))


def _as_shapes(value: Any) -> Any:
    shapes = _as_sizes(value)
    return tuple(map(_as_sizes, shapes)) if isinstance(shapes, tuple) else shapes


# Validators.


def optional(inner: Validator) -> Validator:
    """Take None, too."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if value is not None:
            inner(instance, attribute, value)

    return check


def flag(_: Any, attribute: Any, value: Any) -> None:
    """Take True and False."""
    if not isinstance(value, bool):
        raise _refuse(attribute, value, "True or False")


def whole(least: int, greatest: int | None = None) -> Validator:
    """Take whole numbers of a range."""
    expected = f"a whole number of {least}" + (" or more" if greatest is None else f" to {greatest}")

    def check(_: Any, attribute: Any, value: Any) -> None:
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
        if not fits or (greatest is not None and value > greatest):
            raise _refuse(attribute, value, expected)

    return check


def one_of(*names: str) -> Validator:
    """Take one of these names."""

    def check(_: Any, attribute: Any, value: Any) -> None:
        if not isinstance(value, str) or value not in names:
            raise _refuse(attribute, value, " or ".join(names))

    return check


def names_of(*names: str) -> Validator:
    """Take any of these names, each once at most."""

    def check(_: Any, attribute: Any, value: Any) -> None:
        if not _are_distinct(value) or not set(value) <= set(names):
            raise _refuse(attribute, value, f"any of {', '.join(names)}, each once at most")

    return check


def capabilities(_: Any, attribute: Any, value: Any) -> None:
    """Take compute capabilities, each once at most."""
    if not _are_distinct(value) or not all(map(_CAPABILITY.match, value)):
        raise _refuse(attribute, value, 'a compute capability looks like "8.6"; each is given once')


def dims(_: Any, attribute: Any, value: Any) -> None:
    """Take ranges of sizes by the name of a dimension."""
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and name and _is_range(sizes) for name, sizes in value.items()
    ):
        raise _refuse(attribute, value, 'sizes (least, usual, greatest) by name, as {"N": (1, 4, 8)}')


def profiles(_: Any, attribute: Any, value: Any) -> None:
    """Take mappings from input to ranges of shapes."""
    if not isinstance(value, tuple) or not all(
        isinstance(profile, Mapping)
        and profile
        and all(isinstance(name, str) and name and _is_shapes(shapes) for name, shapes in profile.items())
        for profile in value
    ):
        raise _refuse(
            attribute,
            value,
            'mappings from input to shapes (least, usual, greatest), as [{"x": ((1, 3), (4, 3), (8, 3))}]',
        )


def pools(*names: str) -> Validator:
    """Take sizes by the names of memory pools."""

    def check(_: Any, attribute: Any, value: Any) -> None:
        if not isinstance(value, Mapping) or not all(
            name in names and isinstance(size, int) and not isinstance(size, bool) and size >= 0
            for name, size in value.items()
        ):
            raise _refuse(attribute, value, f"sizes in bytes of {', '.join(names)}")

    return check


def callback(_: Any, attribute: Any, value: Any) -> None:
    """Take functions."""
    if not callable(value):
        raise _refuse(attribute, value, "a function")


def progress(_: Any, attribute: Any, value: Any) -> None:
    """Take True, False and functions."""
    if not isinstance(value, bool) and not callable(value):
        raise _refuse(attribute, value, "True, False or a function of (phase, step, steps)")


def path(_: Any, attribute: Any, value: Any) -> None:
    """Take paths."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise _refuse(attribute, value, "the path of a file")


def _are_distinct(names: Any) -> bool:
    strings = isinstance(names, tuple) and all(isinstance(name, str) for name in names)
    return strings and len(set(names)) == len(names)


def _is_range(sizes: Any) -> bool:
    if not isinstance(sizes, tuple) or len(sizes) != 3 or not all(map(_is_size, sizes)):
        return False
    low, usual, high = sizes
    return bool(low <= usual <= high)


def _is_shapes(shapes: Any) -> bool:
    # The values of inputs that are shapes may be negative, so sizes are compared where the rank is known.
    return (
        isinstance(shapes, tuple)
        and len(shapes) == 3
        and all(isinstance(shape, tuple) and all(type(size) is int for size in shape) for shape in shapes)
        and len({len(shape) for shape in shapes}) == 1
    )


def _is_size(size: Any) -> bool:
    return type(size) is int and size >= 0
