"""Small pictures as inline SVG: points, bars, a histogram. No script, no style sheet, no other file.

Every mark has a tooltip; see `edgeinfer.svg` for the looks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias, final

import attrs

from edgeinfer.svg import (
    BOTTOM,
    COLOURS,
    HEIGHT,
    LEFT,
    LETTER,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    colour,
    empty,
    escaped,
    frame,
    legend_of,
    picture,
    short,
    words,
)

__all__ = ["Bar", "Line", "Point", "bars", "histogram", "scatter"]

_BINS = 40


@final
@attrs.frozen(kw_only=True)
class Point:
    """A point of a scatter plot.

    Attributes:
        x: Its place, in the axis's unit.
        y: Likewise.
        label: What its tooltip says.
        kind: An index into `COLOURS`.
        size: The radius in px.
        mark: A word beside it; empty for none.
    """

    x: float
    y: float
    label: str = ""
    kind: int = 0
    size: float = 4.0
    mark: str = ""


@final
@attrs.frozen(kw_only=True)
class Line:
    """A straight line across a scatter plot: a limit. One of `x` and `y` says where."""

    label: str
    x: float | None = None
    y: float | None = None


@final
@attrs.frozen(kw_only=True)
class Bar:
    """A horizontal bar: its name, value, tooltip, and an index into `COLOURS`."""

    name: str
    value: float
    label: str = ""
    kind: int = 0


def scatter(
    points: Iterable[Point],
    *,
    title: str,
    x: str,
    y: str,
    path: Sequence[tuple[float, float]] = (),
    lines: Sequence[Line] = (),
    legend: Sequence[tuple[int, str]] = (),
) -> str:
    """Return a scatter plot.

    Args:
        points: What to draw; values that are not finite are left out.
        title: Shown above it.
        x: The horizontal axis's label, with its unit.
        y: The vertical axis's label.
        path: Places to connect, such as those of a Pareto front.
        lines: Limits.
        legend: Kinds and what they mean.
    """
    shown = [each for each in points if math.isfinite(each.x) and math.isfinite(each.y)]
    if not shown:
        return empty(title)
    xs = [each.x for each in shown] + [line.x for line in lines if line.x is not None]
    ys = [each.y for each in shown] + [line.y for line in lines if line.y is not None]
    across, up = Axis.of(xs, LEFT, WIDTH - RIGHT), Axis.of(ys, HEIGHT - BOTTOM, TOP)
    parts = [*frame(across, up, x, y)]
    height = HEIGHT + (20 if legend else 0)
    for line in lines:
        parts.append(_limit(line, across, up))
    if len(path) > 1:
        places = " ".join(f"{across.at(a):.1f},{up.at(b):.1f}" for a, b in path)
        parts.append(
            f"<polyline points='{places}' style='fill:none;stroke:{COLOURS[2]};stroke-width:1.5;"
            "stroke-dasharray:5 3'/>"
        )
    for each in shown:
        at = f"cx='{across.at(each.x):.1f}' cy='{up.at(each.y):.1f}'"
        parts.append(
            f"<circle {at} r='{each.size:.1f}' style='fill:{colour(each.kind)};fill-opacity:0.8'>"
            f"<title>{escaped(each.label)}</title></circle>"
        )
    parts += _marks(shown, across, up, [_label_place(line, across) for line in lines if line.x is not None])
    parts += legend_of(legend, y=height - 6)
    return picture(title, parts, height)


def bars(items: Iterable[Bar], *, title: str, unit: str, legend: Sequence[tuple[int, str]] = ()) -> str:
    """Return horizontal bars, one below the other.

    Args:
        items: What to draw; negative values and those that are not finite have no length.
        title: Shown above it.
        unit: The unit of the values.
        legend: Kinds and what they mean.
    """
    shown = list(items)
    if not shown:
        return empty(title)
    left, row = 230, 18
    most = max((each.value for each in shown if math.isfinite(each.value)), default=0.0) or 1.0
    height = TOP + row * len(shown) + 24
    parts = []
    for number, each in enumerate(shown):
        y = TOP + row * number
        length = each.value / most * (WIDTH - left - 90) if 0 < each.value < math.inf else 0.0
        parts.append(words(left - 6, y + 12, short(each.name, 30), "end"))
        parts.append(
            f"<rect x='{left}' y='{y + 2}' width='{length:.1f}' height='{row - 5}' "
            f"style='fill:{colour(each.kind)}'><title>{escaped(each.label or each.name)}</title></rect>"
        )
        parts.append(words(left + length + 5, y + 12, f"{each.value:.3g} {unit}".strip()))
    parts += legend_of(legend, y=height - 8)
    return picture(title, parts, height)


def histogram(
    values: Sequence[float],
    *,
    title: str,
    x: str,
    y: str = "inferences",
    lines: Sequence[Line] = (),
    others: Sequence[float] = (),
) -> str:
    """Return a histogram.

    Args:
        values: What to count.
        title: Shown above it.
        x: The horizontal axis's label, with its unit.
        y: What is counted.
        lines: Vertical lines, such as percentiles.
        others: A second set of values, drawn behind the first, on the same bins.
    """
    finite = sorted(value for value in (*values, *others) if math.isfinite(value))
    if not finite:
        return empty(title)
    low, high, beyond = _range(finite)
    high = high if high > low else low + max(abs(low), 1e-9) * 0.01
    counts = [_counted(each, low, high) for each in (values, others)]
    across = Axis.of([low, high], LEFT, WIDTH - RIGHT, margin=0.0)
    up = Axis.of([0.0, max(map(max, counts))], HEIGHT - BOTTOM, TOP, margin=0.0)
    parts = [*frame(across, up, f"{x}; in the last bar also {beyond} beyond it" if beyond else x, y)]
    width = (high - low) / _BINS
    for kind, set_of in ((6, counts[1]), (0, counts[0])):
        for number, count in enumerate(set_of):
            if not count:
                continue
            start = low + number * width
            a, b, top = across.at(start), across.at(start + width), up.at(count)
            parts.append(
                f"<rect x='{a:.1f}' y='{top:.1f}' width='{max(b - a - 0.5, 0.5):.1f}' "
                f"height='{up.at(0) - top:.1f}' style='fill:{colour(kind)};fill-opacity:0.7'>"
                f"<title>{count} from {start:.4g} to {start + width:.4g}</title></rect>"
            )
    parts += [_limit(line, across, up) for line in lines if line.x is not None and low <= line.x <= high]
    return picture(title, parts, HEIGHT)


_Place: TypeAlias = "tuple[float, float, float]"  # of a text: left, right, height


def _marks(points: Sequence[Point], across: Axis, up: Axis, taken: list[_Place]) -> Iterable[str]:
    """Write words beside points; where one would lie upon another text, it is below its point."""
    for each in points:
        if not each.mark:
            continue
        x, y, width = across.at(each.x), up.at(each.y) - 7, LETTER * len(each.mark)
        right = x + 9 + width < WIDTH
        start = x + 9 if right else x - 9 - width
        if any(start < b and a < start + width and abs(y - h) < 12 for a, b, h in taken):
            y += 24
        taken.append((start, start + width, y))
        yield words(x + (9 if right else -9), y, each.mark, "start" if right else "end")


def _limit(line: Line, across: Axis, up: Axis) -> str:
    style = f"stroke:{COLOURS[4]};stroke-width:1.5"
    if line.x is not None:
        at = across.at(line.x)
        left, right, height = _label_place(line, across)
        label = words(left, height, line.label) if left > at else words(right, height, line.label, "end")
        return f"<line x1='{at:.1f}' x2='{at:.1f}' y1='{TOP}' y2='{HEIGHT - BOTTOM}' style='{style}'/>{label}"
    at = up.at(line.y or 0.0)
    label = words(LEFT + 4, at - 4, line.label)
    return f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{at:.1f}' y2='{at:.1f}' style='{style}'/>{label}"


def _range(ordered: Sequence[float]) -> tuple[float, float, int]:
    """Return the lowest and the highest value to draw, and how many are far above it.

    The last half percent is drawn in the last bar, since one slow run would make all others one bar. What
    is far above nine of ten values is drawn there, too.
    """
    low, high = ordered[0], ordered[int(0.995 * (len(ordered) - 1))]
    usual = ordered[int(0.9 * (len(ordered) - 1))]
    if high - low <= 6 * (usual - low) or usual <= low:
        return low, high, 0
    high = low + 2 * (usual - low)
    return low, high, sum(value > high for value in ordered)


def _label_place(line: Line, across: Axis) -> _Place:
    """Return where the label of a vertical line lies: beside its upper end, within the picture."""
    at, width = across.at(line.x or 0.0), LETTER * len(line.label)
    return (
        (at + 4, at + 4 + width, TOP + 11) if at + 4 + width < WIDTH else (at - 4 - width, at - 4, TOP + 11)
    )


def _counted(values: Sequence[float], low: float, high: float) -> list[int]:
    counts = [0] * _BINS
    for value in values:
        if math.isfinite(value):
            counts[min(_BINS - 1, max(0, int((value - low) / (high - low) * _BINS)))] += 1
    return counts
