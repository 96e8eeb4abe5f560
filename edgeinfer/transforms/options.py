"""Options of transforms: refused at once when they are wrong, with the nearest names when one is unknown."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping

import attrs

from edgeinfer.errors import PreconditionError, TransformOptionError

__all__ = ["bad_option", "near_matches", "require_nodes"]

_SHOWN = 3


def bad_option(cls: type, error: Exception, given: Mapping[str, object]) -> TransformOptionError:
    """Return the error for a constructor's own: a wrong value, or a keyword that there is not.

    Args:
        cls: The transform's class.
        error: What the constructor raised.
        given: The keywords that it was called with.
    """
    name = cls.__name__
    # Not of the class: its metaclass takes anything.
    known = list(inspect.signature(vars(cls).get("__init__", cls.__init__)).parameters)[1:]
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
    return TransformOptionError(
        f"{name} does not take this option: {text}", where=f"{name}, {option}" if option else name
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
        where: The transform and its option, such as `ToFloat16, keep_nodes`.

    Raises:
        PreconditionError: The first unknown name, with those most like it.
    """
    known = {node for node in nodes if node}
    for name in sorted(set(names) - known):
        hints = (near_matches(name, known), "Names survive transforms; `inspect` lists them.")
        raise PreconditionError(
            "There is no such node.",
            where=f"{where}: {name!r}",
            expected="names of nodes of the model",
            found=name,
            hint=" ".join(hint for hint in hints if hint),
        )
