"""The parts of small pictures as inline SVG: axes, words, a legend, the frame around them.

They are shown in notebooks and in saved pages, on light and dark ground: lines and text have the colour of
the text around, areas one of a few colours that people with any colour vision tell apart (Okabe and Ito
2008). Every picture has a title that screen readers read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import final

import attrs

from edgeinfer.values import as_tuple

__all__ = [
    "BOTTOM",
    "COLOURS",
    "GRID",
    "HEIGHT",
    "LEFT",
    "LETTER",
    "RIGHT",
    "TOP",
    "WIDTH",
    "Axis",
    "beside",
    "colour",
    "empty",
    "escaped",
    "frame",
    "legend_of",
    "picture",
    "short",
    "words",
]

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#999999")
WIDTH, HEIGHT = 640, 320  # px
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 28, 44  # margins
LETTER = 6.5  # the width of a letter in px, about
GRID = "stroke:currentColor;stroke-opacity:0.15"
_FONT = "font-family:system-ui,sans-serif;font-size:12px;fill:currentColor"


def escaped(text: str) -> str:
    """Return text for HTML and SVG."""
    from html import escape  # with its table of all named characters it is slow to import

    return escape(text)


@final
@attrs.frozen(kw_only=True)
class Axis:
    """A linear axis with round ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...] = attrs.field(converter=as_tuple)

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float, *, margin: float = 0.06) -> Axis:
        """Return an axis for values, from one place in px to another; `margin` is left at both ends."""
        low, high = min(values), max(values)
        span = (high - low) or max(abs(low), 1e-9)
        low, high = low - margin * span, (high if high > low else low + span) + margin * span
        step = 10 ** math.floor(math.log10((high - low) / 5))
        step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
        first = math.ceil(low / step)
        ticks = [number * step for number in range(first, math.floor(high / step) + 1)]
        return cls(low=low, high=high, start=start, end=end, ticks=ticks)

    def at(self, value: float) -> float:
        """Return the place in px."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def frame(across: Axis, up: Axis, x: str, y: str) -> Iterable[str]:
    """Draw the grid of two axes, with ticks and labels."""
    bottom = HEIGHT - BOTTOM
    for tick in across.ticks:
        at = across.at(tick)
        yield f"<line x1='{at:.1f}' x2='{at:.1f}' y1='{TOP}' y2='{bottom}' style='{GRID}'/>"
        yield words(at, bottom + 15, f"{tick:.4g}", "middle")
    for tick in up.ticks:
        at = up.at(tick)
        yield f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{at:.1f}' y2='{at:.1f}' style='{GRID}'/>"
        yield words(LEFT - 6, at + 4, f"{tick:.4g}", "end")
    yield words((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x, "middle")
    middle = (TOP + bottom) / 2
    yield (
        f"<text x='14' y='{middle}' text-anchor='middle' transform='rotate(-90 14 {middle})' "
        f"style='{_FONT}'>{escaped(y)}</text>"
    )


def legend_of(entries: Sequence[tuple[int, str]], *, y: float) -> Iterable[str]:
    """Draw what the kinds mean, in one row."""
    x = float(LEFT)
    for kind, text in entries:
        yield f"<circle cx='{x:.0f}' cy='{y - 4:.0f}' r='5' style='fill:{colour(kind)}'/>"
        yield words(x + 9, y, text)
        x += 24 + LETTER * len(text)


def colour(kind: int) -> str:
    """Return the colour of a kind."""
    return COLOURS[kind % len(COLOURS)]


def short(text: str, most: int = 34) -> str:
    """Keep both ends of a long name: layers are told apart by either."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}"


def words(x: float, y: float, text: str, anchor: str = "start") -> str:
    """Return a text; `anchor` is `start`, `middle` or `end`."""
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' style='{_FONT}'>{escaped(text)}</text>"


def empty(title: str) -> str:
    """Return a picture of nothing."""
    return picture(title, [words(LEFT, 50, "nothing to show")], 70)


def picture(title: str, parts: Iterable[str], height: float) -> str:
    """Put parts together, below a title."""
    head = f"<text x='{WIDTH / 2}' y='16' text-anchor='middle' style='{_FONT};font-weight:600'>"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:.0f}' role='img' "
        f"style='width:100%;max-width:{WIDTH}px;height:auto'><title>{escaped(title)}</title>"
        f"{head}{escaped(title)}</text>{''.join(parts)}</svg>"
    )


def beside(*pictures: str) -> str:
    """Put pictures side by side, as many as there is room for."""
    style = "display:grid;grid-template-columns:repeat(auto-fit,minmax(min(30em,100%),1fr));gap:1.5em"
    return f"<div style='{style};align-items:start'>{''.join(pictures)}</div>"
