"""Durations as people write them: `90s`, `30m`, `6h`, `2d`, `1h30m`."""

from __future__ import annotations

import math
import re

from edgeinfer.errors import OptionsError

__all__ = ["format_duration", "parse_duration"]

_UNITS = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([wdhms])")


def parse_duration(value: object, *, name: str = "duration") -> int:
    """Return a duration in seconds.

    Args:
        value: Seconds, or text such as `6h`, `30m`, `1h30m`, `2d`.
        name: What it is the duration of, for the message.

    Raises:
        OptionsError: It is not a duration.
    """
    seconds: float | None = None
    if isinstance(value, str):
        text = value.replace(" ", "").lower()
        parts = _PART.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    if seconds is None or not 0 <= seconds < math.inf:
        raise OptionsError(
            "That is not a duration.",
            where=name,
            expected="seconds, or text such as '30m', '6h', '1h30m' or '2d'",
            found=repr(value),
        )
    return round(seconds)


def format_duration(seconds: float) -> str:
    """Return a duration for people, in its two largest units: `1h30m`."""
    rest = round(seconds)
    parts = []
    for unit, size in _UNITS.items():
        if rest >= size:
            parts.append(f"{rest // size}{unit}")
            rest %= size
    return "".join(parts[:2]) or "0s"
