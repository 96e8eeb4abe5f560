"""From JSON to frozen values and back, by the types of their fields. Nothing is bent into a type.

A field with `metadata={"json": False}` is left out on the way there and keeps its default on the way back.

cattrs does this and more, but importing it and generating its code takes 60 ms of a device's start
(docs/adr/0011).
"""

from __future__ import annotations

import functools
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar, cast, final

import attrs

__all__ = ["DecodeError", "Hooks", "decode", "encode"]

T = TypeVar("T")
Hooks: TypeAlias = "Mapping[Any, Callable[[Any], Any]]"
_Form: TypeAlias = "Callable[[Any], Any]"
_SIMPLE = (bool, float, int, str)
_ERRORS = (TypeError, ValueError, KeyError)  # of a hook, a converter or a validator; a DecodeError is one


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
    decoder = _decoder(tuple((hooks or {}).items()), skip_unknown)
    try:
        return cast("T", decoder.form(kind)(value))
    except _ERRORS as error:
        raise _error_at("", error) from error


def _fields(kind: Any) -> dict[str, Any]:
    fields = attrs.fields(kind)
    return {field.name: field for field in fields if field.metadata.get("json") is not False}


@final
class _Decoder:
    """Makes a function of each type, once: finding out what a type is takes longer than all the rest."""

    def __init__(self, hooks: Hooks, skip_unknown: bool) -> None:
        self._hooks = hooks
        self._skip_unknown = skip_unknown
        self._forms: dict[Any, _Form] = {}

    def form(self, kind: Any) -> _Form:
        """Return what decodes values of a type."""
        found = self._forms.get(kind)
        if found is None:
            found = self._forms[kind] = self._made(kind)
        return found

    def _made(self, kind: Any) -> _Form:
        hook = self._hooks.get(kind)
        if hook is not None:
            return hook
        if kind in _SIMPLE:
            return functools.partial(_simple, kind)
        if kind in (Any, object):
            return lambda value: value
        return self._of_fields(kind) if attrs.has(kind) else self._generic(kind)

    def _of_fields(self, kind: Any) -> _Form:
        forms: dict[str, _Form] = {}
        fields = _fields(kind)
        required = [name for name, field in fields.items() if field.default is attrs.NOTHING]

        def decode_fields(value: Any) -> Any:
            if not isinstance(value, dict):
                raise TypeError(f"{value!r} is not an object")
            if not forms:  # not before now: a class may have itself in its fields
                hints = typing.get_type_hints(kind)
                forms.update({name: self.form(hints[name]) for name in fields})
            unknown = [] if self._skip_unknown else sorted(set(value) - set(fields))
            missing = [name for name in required if name not in value]
            if unknown or missing:
                what = "unknown" if unknown else "missing"
                raise DecodeError("", f"{what} field {', '.join(unknown or missing)}")
            name, found = "", {}
            try:
                for name, item in value.items():
                    form = forms.get(name)
                    if form is not None:
                        found[name] = form(item)
            except _ERRORS as error:
                raise _error_at(name, error) from error
            return kind(**found)

        return decode_fields

    def _generic(self, kind: Any) -> _Form:
        """Decode `X | None`, `tuple[X, ...]`, `tuple[X, X]`, `frozenset[X]` and `Mapping[str, X]`."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            (inner,) = (self.form(argument) for argument in arguments if argument is not type(None))
            return lambda value: None if value is None else inner(value)
        if origin in (tuple, frozenset):
            item_form = self.form(arguments[0])
            exact = len(arguments) if origin is tuple and arguments[-1] is not Ellipsis else None

            def decode_items(value: Any) -> Any:
                items = _exactly(list, value)
                if exact is not None and len(items) != exact:
                    raise TypeError(f"{value!r} does not have {exact} items")
                found: list[Any] = []
                try:
                    for item in items:
                        found.append(item_form(item))
                except _ERRORS as error:
                    raise _error_at(f"[{len(found)}]", error) from error
                return origin(found)

            return decode_items
        if isinstance(origin, type) and issubclass(origin, Mapping):
            named_form = self.form(arguments[1])

            def decode_named(value: Any) -> Any:
                name, found = "", {}
                items = _exactly(dict, value).items()
                try:
                    for name, item in items:
                        found[name] = named_form(item)
                except _ERRORS as error:
                    raise _error_at(f"[{name!r}]", error) from error
                return found

            return decode_named

        def refuse(_value: Any) -> Any:
            raise TypeError(f"values of type {kind} are not decoded")

        return refuse


@functools.lru_cache
def _decoder(hooks: tuple[tuple[Any, Callable[[Any], Any]], ...], skip_unknown: bool) -> _Decoder:
    return _Decoder(dict(hooks), skip_unknown)


def _error_at(step: str, error: Exception) -> DecodeError:
    """Return an error with the step that led to it before its path."""
    if not isinstance(error, DecodeError):
        return DecodeError(step, f"{type(error).__name__}: {error}")
    point = "." if step and error.path and not error.path.startswith("[") else ""
    return DecodeError(f"{step}{point}{error.path}", error.reason)


def _simple(kind: type, value: Any) -> Any:
    # An int is a float, too; else the type is exact, so that True is no int and "12" no number.
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    if type(value) is int and kind is float and abs(value) > sys.float_info.max:
        raise ValueError("the number is larger than any float")
    return value


def _exactly(kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not {'a list' if kind is list else 'an object'}")
    return value
