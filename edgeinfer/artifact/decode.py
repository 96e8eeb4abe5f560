"""From JSON to frozen values and back, by the types of their fields. Nothing is bent into a type.

A field with `metadata={"json": False}` is left out on the way there and keeps its default on the way back.

cattrs does this and more, but importing it and generating its code takes 60 ms of a device's start
(docs/adr/0011).
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar, cast

import attrs

__all__ = ["DecodeError", "Hooks", "decode", "encode"]

T = TypeVar("T")
Hooks: TypeAlias = "Mapping[Any, Callable[[Any], Any]]"
_SIMPLE = (bool, float, int, str)


class DecodeError(ValueError):
    """A value is not of its type.

    Args:
        path: Where it is, such as `signature.inputs[0].name`.
        reason: What is wrong.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}" if path else reason)


def encode(value: Any, hooks: Hooks | None = None) -> Any:
    """Return a value as JSON-compatible ones: frozen values as mappings, tuples and sets as lists.

    Args:
        value: A frozen value, or what is in its fields.
        hooks: By class, what is done with its values instead.
    """
    hook = (hooks or {}).get(type(value))
    if hook is not None:
        return hook(value)
    if attrs.has(type(value)):
        return {name: encode(getattr(value, name), hooks) for name in _fields(type(value))}
    if isinstance(value, Mapping):
        return {str(name): encode(item, hooks) for name, item in value.items()}
    if isinstance(value, frozenset):
        return [encode(item, hooks) for item in sorted(value)]
    if isinstance(value, (list, tuple)):
        return [encode(item, hooks) for item in value]
    return value


def decode(kind: type[T], value: Any, hooks: Hooks | None = None, *, skip_unknown: bool = False) -> T:
    """Return a value of a class from what `encode` made of it.

    Args:
        kind: A class of frozen values.
        value: JSON-compatible values.
        hooks: By type, what makes its values instead.
        skip_unknown: Pass over fields that a class does not have, rather than refuse them.

    Raises:
        DecodeError: A field is missing, unknown, or has a value that is not of its type.
    """
    return cast("T", _Decoder(hooks or {}, skip_unknown).decode(kind, value, ""))


def _fields(kind: Any) -> dict[str, Any]:
    fields = attrs.fields(kind)
    return {field.name: field for field in fields if field.metadata.get("json") is not False}


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    # Evaluating the annotations takes longer than all the rest.
    return typing.get_type_hints(kind)


@attrs.frozen
class _Decoder:
    hooks: Hooks
    skip_unknown: bool

    def decode(self, kind: Any, value: Any, path: str) -> Any:
        hook = self.hooks.get(kind)
        try:
            if hook is not None:
                return hook(value)
            if kind in (Any, object):
                return value
            if kind in _SIMPLE:
                return _simple(kind, value)
            if attrs.has(kind):
                return self._of_fields(kind, value, path)
            return self._generic(kind, value, path)
        except DecodeError:
            raise
        except (TypeError, ValueError, KeyError) as error:  # of a hook, a converter or a validator
            raise DecodeError(path, f"{type(error).__name__}: {error}") from error

    def _of_fields(self, kind: Any, value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            raise TypeError(f"{value!r} is not an object")
        fields = _fields(kind)
        unknown = [] if self.skip_unknown else sorted(set(value) - set(fields))
        missing = [
            name for name, field in fields.items() if field.default is attrs.NOTHING and name not in value
        ]
        if unknown or missing:
            what = "unknown" if unknown else "missing"
            raise DecodeError(path, f"{what} field {', '.join(unknown or missing)}")
        hints = _hints(kind)
        prefix = f"{path}." if path else ""
        known = {name: item for name, item in value.items() if name in fields}
        return kind(
            **{name: self.decode(hints[name], item, f"{prefix}{name}") for name, item in known.items()}
        )

    def _generic(self, kind: Any, value: Any, path: str) -> Any:
        """Decode `X | None`, `tuple[X, ...]`, `frozenset[X]` and `Mapping[str, X]`."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            (inner,) = (argument for argument in arguments if argument is not type(None))
            return None if value is None else self.decode(inner, value, path)
        if origin in (tuple, frozenset):
            items = enumerate(_exactly(list, value))
            return origin(self.decode(arguments[0], item, f"{path}[{index}]") for index, item in items)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            named = _exactly(dict, value).items()
            return {name: self.decode(arguments[1], item, f"{path}[{name!r}]") for name, item in named}
        raise TypeError(f"values of type {kind} are not decoded")


def _simple(kind: type, value: Any) -> Any:
    # An int is a float, too; else the type is exact, so that True is no int and "12" no number.
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value


def _exactly(kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not {'a list' if kind is list else 'an object'}")
    return value
