"""Reading a backend's options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import attrs

from edgeinfer.errors import OptionsError

__all__ = ["options_from"]


T = TypeVar("T")


def options_from(cls: type[T], *sources: object, backend: str) -> T:
    """Build a backend's frozen options from values, mappings and None; later ones win, name by name.

    Args:
        cls: The attrs class of the options.
        sources: An instance of `cls`, a mapping of the same names, or None. Of an instance only what differs
            from the defaults counts; a mapping can set a value back to its default.
        backend: For the error message.

    Raises:
        OptionsError: A name is unknown or a value is refused.
    """
    known = [field.name for field in attrs.fields(cls)]  # type: ignore[arg-type]
    merged: dict[str, Any] = {}
    for source in sources:
        if source is None:
            continue
        if isinstance(source, cls):
            defaults = cls()
            merged |= {n: getattr(source, n) for n in known if getattr(source, n) != getattr(defaults, n)}
            continue
        if not isinstance(source, Mapping):
            raise OptionsError(
                f"That is no set of options for {backend!r}.",
                expected=f"a {cls.__name__} or a mapping",
                found=type(source).__name__,
            )
        merged |= source
    unknown = sorted(set(map(str, merged)) - set(known))
    if unknown:
        raise OptionsError(
            f"Backend {backend!r} has no option {unknown[0]!r}.",
            where=f"options of {backend!r}",
            hint=f"It has: {', '.join(known)}.",
        )
    try:
        return cls(**merged)
    except (TypeError, ValueError) as error:
        raise OptionsError(
            f"An option of {backend!r} is refused: {error.args[0] if error.args else error}", found=merged
        ) from error
