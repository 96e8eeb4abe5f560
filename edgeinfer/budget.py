"""`Budget`: the limits that a model must keep, and `check`: which of them a measurement breaks.

One value for the entire way: it drives the search for a recipe, chooses the device, stands in a release, is
checked by the device before and after it activates, and gates the rollout.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, final

import attrs

from edgeinfer.errors import OptionsError

if TYPE_CHECKING:
    from edgeinfer.display import Table

__all__ = ["Budget", "Violation", "format_bytes", "parse_bytes"]

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)}
_UNITS |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", 1)}
_MOST_BYTES = 1 << 63  # more is no size, and larger integers are no floats
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*")


def parse_bytes(value: object, *, name: str = "size") -> int:
    """Read a size in bytes: a number, or text such as `120 MiB`, `1.5 GB`, `512 kB`.

    Decimal units (kB, MB, GB, TB) are powers of 1000, binary ones (KiB, MiB, GiB, TiB) of 1024, as in
    IEC 80000-13. Upper and lower case are alike.

    Raises:
        OptionsError: It is not a size.
    """
    found = value
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        factor = _UNITS.get(match[2].upper()) if match else None
        found = float(match[1]) * factor if match is not None and factor is not None else None
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 <= found <= _MOST_BYTES:
        raise OptionsError(
            "That is not a size.",
            where=name,
            expected="bytes, or text such as '120 MiB' or '1.5 GB'",
            found=repr(value),
        )
    return round(found)


def format_bytes(size: float) -> str:
    """Return a size for people, in decimal units: `1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


def _size_of(name: str) -> Callable[[object], int | None]:
    return lambda value: None if value is None else parse_bytes(value, name=name)


def _number(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    least, strict = _LEAST[attribute.name]
    if value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Not math.isfinite, which an int above all floats makes fail.
    finite = number and abs(value) <= sys.float_info.max  # type: ignore[arg-type]
    if finite and (value > least if strict else value >= least):  # type: ignore[operator]
        return
    expected = "a finite number" if least == -math.inf else f"{'more than' if strict else 'at least'} {least}"
    raise OptionsError(
        "A limit of the budget is refused.", where=attribute.name, expected=expected, found=repr(value)
    )


# What each limit must exceed (True) or reach (False).
_LEAST: dict[str, tuple[float, bool]] = {
    "latency_p50_ms": (0.0, True),
    "latency_p99_ms": (0.0, True),
    "peak_bytes": (0.0, True),
    "disk_bytes": (0.0, True),
    "power_w": (0.0, True),
    "temperature_c": (-math.inf, True),
    "max_drop": (0.0, False),
    "min_sqnr_db": (-math.inf, True),
}
# The figure that each limit holds for, where it has another name than the limit.
_FIGURES = {"max_drop": "drop", "min_sqnr_db": "sqnr_db"}


@final
@attrs.frozen(kw_only=True)
class Violation:
    """A limit that is not kept, or of which it is not known.

    Attributes:
        limit: The limit's name, such as `latency_p99_ms`.
        allowed: The limit.
        figure: What was found; None where it was not measured.
        ratio: How many times the limit the figure is, above 1; for `min_sqnr_db` how many times the figure
            the limit is. None where the figure was not measured, infinite where a division has no sense.
    """

    limit: str
    allowed: float
    figure: float | None = None
    ratio: float | None = None

    @property
    def not_measured(self) -> bool:
        """Whether there is no figure: nothing is known, and that is not a pass."""
        return self.figure is None

    @property
    def excess(self) -> float | None:
        """By how much the figure is beyond the limit, in the limit's unit; None where not measured."""
        if self.figure is None:
            return None
        return self.allowed - self.figure if self.limit.startswith("min_") else self.figure - self.allowed

    def describe(self) -> str:
        """Return one line for people."""
        allowed = _show(self.limit, self.allowed)
        if self.figure is None:
            return f"{self.limit}: not measured (limit {allowed})"
        times = "" if self.ratio is None or math.isinf(self.ratio) else f", {self.ratio:.2f}x"
        return f"{self.limit}: {_show(self.limit, self.figure)} where {allowed} is allowed{times}"

    def to_dict(self) -> dict[str, object]:
        """Return JSON-compatible values."""
        ratio = None if self.ratio is None or math.isinf(self.ratio) else self.ratio
        return {
            **attrs.asdict(self),
            "ratio": ratio,
            "excess": self.excess,
            "not_measured": self.not_measured,
        }


def _limit(converter: Callable[[object], int | None] | None = None) -> Any:
    return attrs.field(default=None, converter=converter, validator=_number)


@final
@attrs.frozen(kw_only=True)
class Budget:
    """Limits. What is None is not limited.

    Attributes:
        latency_p50_ms: Median latency of one inference in ms.
        latency_p99_ms: 99th percentile of the same.
        peak_bytes: Peak resident memory of a process that runs the model: bytes, or text such as `120 MiB`.
        disk_bytes: Size of the artifact on disk, in the same forms.
        power_w: Power while it runs, in W.
        temperature_c: The highest temperature while it runs, in °C.
        max_drop: How much of the user's metric may be lost, in the metric's unit.
        min_sqnr_db: How close the outputs stay to the original model's, as a signal-to-noise ratio in dB.

    Raises:
        OptionsError: A limit is not a number of its range, or not a size.
    """

    latency_p50_ms: float | None = _limit()
    latency_p99_ms: float | None = _limit()
    peak_bytes: int | None = _limit(_size_of("peak_bytes"))
    disk_bytes: int | None = _limit(_size_of("disk_bytes"))
    power_w: float | None = _limit()
    temperature_c: float | None = _limit()
    max_drop: float | None = _limit()
    min_sqnr_db: float | None = _limit()

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: value for name, value in attrs.asdict(self).items() if value is not None}

    def check(self, measured: object) -> tuple[Violation, ...]:
        """Return the limits that a measurement breaks, and those that it says nothing about.

        Args:
            measured: A mapping, or a value with attributes such as an artifact's `Cost`: `latency_p50_ms`,
                `latency_p99_ms`, `peak_bytes`, `disk_bytes`, `power_w`, `temperature_c`, `drop` (for
                `max_drop`), `sqnr_db` (for `min_sqnr_db`). None and NaN stand for what was not measured.

        Raises:
            OptionsError: A figure is not a number.
        """
        found = (
            _check(name, allowed, _figure(measured, _FIGURES.get(name, name)))
            for name, allowed in self.limits.items()
        )
        return tuple(violation for violation in found if violation is not None)

    def to_dict(self) -> dict[str, float]:
        """Return the limits that are set, as JSON-compatible values."""
        return self.limits

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Budget:
        """Read what `to_dict` wrote.

        Raises:
            OptionsError: A name is not a limit, or its value is refused.
        """
        unknown = sorted(set(map(str, values)) - _LEAST.keys())
        if unknown:
            raise OptionsError(
                "A budget has no such limit.", expected=", ".join(_LEAST), found=", ".join(unknown)
            )
        return cls(**values)

    def table(self) -> Table:
        """Return one row a limit."""
        from edgeinfer.display import Table

        rows = [
            (name, f"{'at least' if name.startswith('min_') else 'at most'} {_show(name, value)}")
            for name, value in self.limits.items()
        ]
        return Table(title="Budget", columns=("", ""), rows=rows, footer="" if rows else "no limits")

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()


def _figure(measured: object, name: str) -> float | None:
    value = measured.get(name) if isinstance(measured, Mapping) else getattr(measured, name, None)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = None
    if number is None or isinstance(value, (str, bool)):
        raise OptionsError("A figure is not a number.", where=name, expected="a number", found=repr(value))
    return None if math.isnan(number) else number


def _check(name: str, allowed: float, figure: float | None) -> Violation | None:
    if figure is None:
        return Violation(limit=name, allowed=allowed)
    if figure >= allowed if name.startswith("min_") else figure <= allowed:
        return None
    above, below = (allowed, figure) if name.startswith("min_") else (figure, allowed)
    # A ratio of what is not positive says nothing.
    ratio = above / below if above > 0 and below > 0 else math.inf
    return Violation(limit=name, allowed=allowed, figure=figure, ratio=ratio)


def _show(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return format_bytes(value)
    units = {"_ms": " ms", "_w": " W", "_c": " °C", "_db": " dB"}
    return f"{value:.4g}" + next((unit for end, unit in units.items() if name.endswith(end)), "")
