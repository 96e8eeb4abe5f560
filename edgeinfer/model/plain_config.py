"""What the history says of a transform's configuration: names and numbers, and never its data.

The history goes into the model's metadata and into every artifact. Calibration samples are somebody's photos,
recordings or texts.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Mapping, Set, Sized
from typing import Any

import attrs
import numpy as np

from edgeinfer.devices.profile import Target

__all__ = ["config_of", "plain_config"]

# How transforms, ours and others', call their data.
_DATA = frozenset({"calibration", "data", "dataset", "evaluate", "feeds"})
_MAX_NUMBERS = 64
# What `_kind` returns.
_KIND = re.compile(r"<[\w.]+( array \([\d, ]*\)| of \d+)?>\Z")


def config_of(transform: Any) -> dict[str, object]:
    """Return the fields of an attrs value that differ from their defaults, as `plain_config` does.

    A field that is declared with `eq=False` holds data, a model or a function: only its kind is returned.
    """
    if not attrs.has(type(transform)):
        return {}
    found: dict[str, object] = {}
    for field in attrs.fields(type(transform)):
        value = getattr(transform, field.name)
        if not field.eq:
            found |= {} if value is None else {field.name: _kind(value)}
        elif _differs(value, field.default):
            found[field.name] = value
    return plain_config(found)


def _differs(value: object, default: object) -> bool:
    if isinstance(value, Sized) and isinstance(default, Sized) and len(value) == len(default) == 0:
        return False  # a converter may have made another kind of nothing
    different = value != default
    return different if isinstance(different, bool) else True  # arrays compare element by element


def plain_config(config: Mapping[str, object]) -> dict[str, object]:
    """Return a configuration as JSON-compatible values without data, for the history.

    Names and single numbers stay. Of arrays, tensors, samples and other objects only the kind stays, and so
    it is with more than 64 numbers together, whichever transform they come from: they are somebody's data.
    """
    return {
        str(name): _kind(value) if name in _DATA and value is not None else _plain(value)
        for name, value in config.items()
    }


def _plain(value: object) -> object:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return _kind(value) if _count_numbers(value) > _MAX_NUMBERS else _plain_items(value)
    return str(value) if isinstance(value, (Target, os.PathLike)) else _kind(value)


def _plain_items(value: Mapping[Any, object] | Collection[object]) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in (sorted(value, key=str) if isinstance(value, Set) else value)]


def _count_numbers(value: object) -> int:
    if isinstance(value, Mapping):
        return sum(_count_numbers(item) for item in value.values())
    if isinstance(value, (list, tuple, Set)):
        return sum(_count_numbers(item) for item in value)
    return int(isinstance(value, (int, float, np.number)) and not isinstance(value, bool))


def _kind(value: object) -> str:
    """Return what something is without what is in it: `<list of 12>`, `<float32 array (1, 3)>`."""
    if isinstance(value, str) and _KIND.match(value):
        return value
    if isinstance(value, np.ndarray):
        return f"<{value.dtype} array {value.shape}>"
    size = ""
    with contextlib.suppress(Exception):  # a loader of unknown length
        size = f" of {len(value)}" if isinstance(value, Sized) else ""
    return f"<{type(value).__name__}{size}>"
