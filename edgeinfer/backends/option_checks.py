"""Checks of options: their values when they are constructed, and what an artifact may ask for.

An option's value is refused with an `OptionsError` where the options are made. An artifact comes from
elsewhere, so its options are held to more: a list says which ones it may set, because names that look
harmless (`session.collect_node_memory_stats_to_file`) write files, and new ones come with each release of a
runtime. What is not on the list is refused when the artifact is loaded, and left out, with a note, when one
is made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from edgeinfer.backends.options import options_from
from edgeinfer.errors import ArtifactFormatError, ArtifactTrustError, OptionsError

__all__ = [
    "MAX_THREADS",
    "as_mapping",
    "flag",
    "notes_on",
    "number",
    "one_of",
    "options_of_artifact",
    "refuse_option",
    "settings",
    "text",
    "untrusted",
]

T = TypeVar("T")
Validator = Callable[[Any, Any, Any], None]

# Threads of one session. Creating them takes time with the square of their number: ONNX Runtime needs 2 s for
# 256, 26 s for 1024, and seems to hang with more.
MAX_THREADS = 256


def refuse_option(
    name: str, expected: str, value: object, *, cls: type | None = None, hint: str | None = None
) -> OptionsError:
    """Return the error for a value that an option cannot have."""
    where = f"{cls.__name__}.{name}" if cls is not None else f"option {name}"
    return OptionsError(
        f"Option {name!r} is refused.", where=where, expected=expected, found=repr(value), hint=hint
    )


def flag(*, optional: bool = False) -> Validator:
    """Accept True and False, and None where it is `optional`."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if not (isinstance(value, bool) or (optional and value is None)):
            raise refuse_option(
                attribute.name, "True or False" + ", or None" * optional, value, cls=type(instance)
            )

    return check


def number(
    low: int, high: int | None = None, *, optional: bool = False, hint: str | None = None
) -> Validator:
    """Accept whole numbers from `low` to `high`, and None where it is `optional`."""
    expected = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if optional and value is None:
            return
        if type(value) is not int or value < low or (high is not None and value > high):
            raise refuse_option(
                attribute.name, expected + ", or None" * optional, value, cls=type(instance), hint=hint
            )

    return check


def one_of(*choices: str, optional: bool = False) -> Validator:
    """Accept some texts, and None where it is `optional`."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if value not in choices and not (optional and value is None):
            raise refuse_option(
                attribute.name,
                ", ".join(map(repr, choices)) + ", or None" * optional,
                value,
                cls=type(instance),
            )

    return check


def text(instance: Any, attribute: Any, value: Any) -> None:
    """Accept a text without null bytes, or None."""
    if value is not None and (not isinstance(value, str) or "\0" in value):
        raise refuse_option(attribute.name, "a text, or None", value, cls=type(instance))


def settings(instance: Any, attribute: Any, value: Any) -> None:
    """Accept a mapping of texts to texts, numbers and booleans."""
    items = value.items() if isinstance(value, Mapping) else ((None, None),)
    for key, item in items:
        if not isinstance(key, str) or not isinstance(item, (str, int, float)):
            raise refuse_option(
                attribute.name, "a mapping of names to texts, numbers or booleans", value, cls=type(instance)
            )


def as_mapping(value: Any) -> Any:
    """Return a copy of a mapping; what is none is for the validator to refuse."""
    return dict(value) if isinstance(value, Mapping) else value


def untrusted(given: Mapping[str, object], allowed: Collection[str], name: str) -> list[str]:
    """Return the entries of the option `name` that no artifact may set, as `name.entry`."""
    return [f"{name}.{key}" for key in given if key not in allowed]


def options_of_artifact(
    cls: type[T],
    options: Mapping[str, object],
    *,
    backend: str,
    find_untrusted: Callable[[Mapping[str, Any]], Collection[str]],
) -> T:
    """Build a backend's options from those of an artifact.

    Args:
        cls: The attrs class of the options.
        options: The artifact's.
        backend: For the error message.
        find_untrusted: Returns the names of those that no artifact may set.

    Raises:
        ArtifactTrustError: One names, or may name, a file, a library or code.
        ArtifactFormatError: One is unknown, or has a value that is refused.
    """
    where = f"options of the artifact for {backend!r}"
    try:
        refused = sorted(find_untrusted(options))
        if not refused:
            return options_from(cls, options, backend=backend)
    except (OptionsError, AttributeError, TypeError, ValueError) as error:
        raise ArtifactFormatError(
            f"The options of the artifact are refused: {error}",
            where=where,
            expected=f"options that {backend!r} has here",
            found=dict(options),
            hint="Upgrade edgeinfer, or compile the model again.",
        ) from error
    raise ArtifactTrustError(
        f"The artifact sets the option {refused[0]!r}, which no artifact may set.",
        where=where,
        expected="options that are known to reach no file, no library and no code",
        found=", ".join(refused),
        hint="If you trust it, compile the model without that option and give it to load.",
        facts={"options": tuple(refused)},
    )


def notes_on(left_out: Collection[str]) -> tuple[str, ...]:
    """Return what an artifact says of options that it was compiled with and does not keep."""
    return tuple(
        f"option {name} is not kept, because it may name a file, a library or code; give it to load"
        for name in left_out
    )
