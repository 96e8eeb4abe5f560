"""Options of transforms: refused at once when they are wrong, with the nearest names when one is unknown."""

from __future__ import annotations

import abc
import difflib
import inspect
import numbers
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, SupportsIndex

import attrs

from edgeinfer.errors import EdgeInferError, PreconditionError, TransformOptionError

__all__ = ["OurErrors", "near_matches", "require_nodes"]

_SHOWN = 3


class OurErrors(abc.ABCMeta):
    """Constructors of transforms raise errors of our tree, whatever a validator or converter raised."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make an instance."""
        try:
            made = super().__call__(*args, **kwargs)
        except EdgeInferError:
            raise
        except (AttributeError, OverflowError, TypeError, ValueError) as error:
            raise _bad_option(cls, error, args, kwargs) from error
        _check_types(made)
        return made

    @property
    def __signature__(cls) -> inspect.Signature:
        """The constructor's, which would be hidden behind `__call__`."""
        own = inspect.signature(getattr(cls, "__init__"))  # noqa: B009 (mypy)
        return own.replace(parameters=list(own.parameters.values())[1:])


def _check_types(made: Any) -> None:
    """Refuse values that are not what simple annotations say, such as `int | None`."""
    for field in attrs.fields(type(made)) if attrs.has(type(made)) else ():
        value, annotation = getattr(made, field.name), str(field.type)
        kinds = [_KINDS.get(part) for part in annotation.split(" | ")]
        known = [kind for kind in kinds if kind is not None]
        if len(known) == len(kinds) and not any(kind(value) for kind in known):
            raise TransformOptionError(
                f"{type(made).__name__} does not take this value.",
                where=f"{type(made).__name__}, {field.name}",
                expected=annotation,
                found=repr(value),
            )


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _are_names(value: object) -> bool:
    return isinstance(value, Collection) and all(isinstance(name, str) for name in value)


_KINDS: Mapping[str, Callable[[object], bool]] = {
    "None": lambda value: value is None,
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, SupportsIndex) and not isinstance(value, bool),
    "float": _is_number,
    "str": lambda value: isinstance(value, str),
    "Collection[str]": _are_names,
    "frozenset[str]": _are_names,
    "tuple[str, ...]": _are_names,
}


def _bad_option(
    cls: type, error: Exception, args: tuple[object, ...], given: Mapping[str, object]
) -> TransformOptionError:
    """Return the error for a constructor's own: a wrong value, or a keyword that there is not."""
    name = cls.__name__
    known = list(inspect.signature(cls).parameters)
    for key in given:
        if attrs.has(cls) and key not in known:
            return TransformOptionError(
                f"{name} has no option {key!r}.",
                where=name,
                expected=", ".join(known) or "no options",
                found=key,
                hint=near_matches(key, known),
            )
    # Validators of attrs raise with the attribute and the value behind the message.
    text = str(error.args[0] if error.args else error)
    option = next((arg.name for arg in error.args if isinstance(arg, attrs.Attribute)), None)
    option = option or next((key for key in known if text.startswith(f"'{key}'")), None)
    shown = ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in given.items())])
    return TransformOptionError(
        f"{name} does not take these options: {text}.",
        where=f"{name}, {option}" if option else name,
        found=f"{name}({shown:.200})",
    )


def near_matches(name: str, known: Iterable[str]) -> str | None:
    """Return a hint with the known names that are most like `name`, or None."""
    near = difflib.get_close_matches(name, list(known), n=_SHOWN)
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else None


def require_nodes(names: Iterable[str], nodes: Iterable[str | None], where: str) -> None:
    """Refuse names of nodes that the model does not have.

    Args:
        names: The names that were given.
        nodes: The names that there are.
        where: The transform and its option, such as `ToFloat16, keep_float`.

    Raises:
        PreconditionError: The first unknown name, with those most like it.
    """
    known = {node for node in nodes if node}
    for name in sorted(set(names) - known):
        hints = (near_matches(name, known), "Names survive transforms; `inspect` lists them.")
        raise PreconditionError(
            f"The model has no node {name!r}.",
            where=where,
            expected="names of nodes of the model",
            found=name,
            hint=" ".join(hint for hint in hints if hint),
        )
