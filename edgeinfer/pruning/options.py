"""Validators of the options that the pruning transforms share: wrong values are refused at construction."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, TypeAlias

from edgeinfer.devices.profile import Target
from edgeinfer.errors import TransformOptionError
from edgeinfer.feeds.sources import source_of

__all__ = ["feeds", "number", "one_of", "part", "target"]

Validator: TypeAlias = "Callable[[object, Any, Any], None]"


def number(
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    whole: bool = False,
    optional: bool = False,
) -> Validator:
    """Return a validator for numbers within bounds; `whole` admits integers only, `optional` None too."""
    bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    kind = "a whole number" if whole else "a number"
    expected = ", ".join(
        [kind, *(f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None)]
    )

    def check(made: object, attribute: Any, value: Any) -> None:
        if value is None and optional:
            return
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        fits = fits and (at_least is None or value >= at_least) and (above is None or value > above)
        if not fits or (at_most is not None and value > at_most) or (below is not None and value >= below):
            raise TransformOptionError(
                f"{attribute.name} does not fit.",
                where=_where(made, attribute),
                expected=expected,
                found=repr(value),
            )

    return check


def part(made: object, attribute: Any, value: Any) -> None:
    """Accept a part to keep: above 0, at most 1; or None."""
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1):
        return
    raise TransformOptionError(
        f"{attribute.name} is the part to keep.",
        where=_where(made, attribute),
        expected="above 0, at most 1",
        found=repr(value),
        hint=f"To remove 20 %, write {attribute.name}=0.8.",
    )


def one_of(*choices: str) -> Validator:
    """Return a validator for one of several words."""

    def check(made: object, attribute: Any, value: Any) -> None:
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            raise TransformOptionError(
                f"{attribute.name} does not fit.",
                where=_where(made, attribute),
                expected=f"one of {', '.join(choices)}",
                found=repr(value),
                hint=f"Did you mean {near[0]!r}?" if near else None,
            )

    return check


def yes_or_no(made: object, attribute: Any, value: Any) -> None:
    """Accept True and False."""
    if not isinstance(value, bool):
        raise TransformOptionError(
            f"{attribute.name} does not fit.",
            where=_where(made, attribute),
            expected="True or False",
            found=repr(value),
        )


def _where(made: object, attribute: Any) -> str:
    return f"{type(made).__name__}, {attribute.name}"


def feeds(_: object, __: Any, value: Any) -> None:
    """Accept what calibration data can come from, or None."""
    if value is not None:
        source_of(value)


def target(_: object, __: Any, value: Any) -> None:
    """Accept a target, or None."""
    if value is not None:
        Target.parse(value)
