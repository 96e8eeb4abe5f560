"""Options of a session itself, for every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import attrs

from edgeinfer.backends.options import options_from
from edgeinfer.runtime.deadlines import Miss

__all__ = ["SessionOptions"]


def _cores(value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    if isinstance(value, int):
        return (value,)
    if isinstance(value, Iterable):
        return tuple(int(core) for core in value)
    raise TypeError("pin_cores takes core numbers")


def _positive_or_none(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, (int, float)) and value > 0):
        raise ValueError(f"{attribute.name} is a positive number or None")


@final
@attrs.frozen(kw_only=True)
class SessionOptions:
    """Options of the session itself, for every backend.

    Attributes:
        pin_cores: The cores that the runtime's threads, and every thread that calls the session, are pinned
            to until the session closes. It makes latency steady: no migration between cores.
        deadline_ms: How long one `infer` may take; the session counts those that took longer.
        on_miss: Called with a `Miss` for each of them, once its outputs are there.
    """

    pin_cores: tuple[int, ...] | None = attrs.field(default=None, converter=_cores)
    deadline_ms: float | None = attrs.field(default=None, validator=_positive_or_none)
    on_miss: Callable[[Miss], object] | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.is_callable())
    )

    @classmethod
    def of(cls, **values: object) -> SessionOptions:
        """Return the options; a value that is refused is an OptionsError."""
        return options_from(cls, values, backend="session")
