"""Small pictures as inline SVG: points, bars, a histogram. No script, no style sheet, no other file.

They are shown in notebooks and in saved pages, on light and dark ground: lines and text have the colour of
the text around, areas one of a few colours that people with any colour vision tell apart (Okabe and Ito
2008). Every mark has a tooltip, and every picture a title that screen readers read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import final

import attrs

from edgeinfer.values import as_tuple

__all__ = ["COLOURS", "Bar", "Line", "Point", "bars", "histogram", "scatter"]

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#999999")
_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 28, 44
_FONT = "font-family:system-ui,sans-serif;font-size:12px;fill:currentColor"
_GRID = "stroke:currentColor;stroke-opacity:0.15"
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
        return _empty(title)
    xs = [each.x for each in shown] + [line.x for line in lines if line.x is not None]
    ys = [each.y for each in shown] + [line.y for line in lines if line.y is not None]
    across, up = _Axis.of(xs, _LEFT, _WIDTH - _RIGHT), _Axis.of(ys, _HEIGHT - _BOTTOM, _TOP)
    parts = [*_frame(across, up, x, y)]
    height = _HEIGHT + (20 if legend else 0)
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
            f"<circle {at} r='{each.size:.1f}' style='fill:{_colour(each.kind)};fill-opacity:0.8'>"
            f"<title>{escaped(each.label)}</title></circle>"
        )
        if each.mark:
            right = across.at(each.x) < _WIDTH - 120
            anchor, shift = ("start", 9) if right else ("end", -9)
            parts.append(_text(across.at(each.x) + shift, up.at(each.y) - 7, each.mark, anchor))
    parts += _legend(legend, y=height - 6)
    return _svg(title, parts, height)


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
        return _empty(title)
    left, row = 230, 18
    most = max((each.value for each in shown if math.isfinite(each.value)), default=0.0) or 1.0
    height = _TOP + row * len(shown) + 24
    parts = []
    for number, each in enumerate(shown):
        y = _TOP + row * number
        length = each.value / most * (_WIDTH - left - 90) if 0 < each.value < math.inf else 0.0
        parts.append(_text(left - 6, y + 12, _short(each.name), "end"))
        parts.append(
            f"<rect x='{left}' y='{y + 2}' width='{length:.1f}' height='{row - 5}' "
            f"style='fill:{_colour(each.kind)}'><title>{escaped(each.label or each.name)}</title></rect>"
        )
        parts.append(_text(left + length + 5, y + 12, f"{each.value:.3g} {unit}".strip()))
    parts += _legend(legend, y=height - 8)
    return _svg(title, parts, height)


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
        return _empty(title)
    # The last half percent is drawn in the last bin: one slow run would make all others one bar.
    low, high = finite[0], finite[int(0.995 * (len(finite) - 1))]
    high = high if high > low else low + max(abs(low), 1e-9) * 0.01
    counts = [_counted(each, low, high) for each in (values, others)]
    across = _Axis.of([low, high], _LEFT, _WIDTH - _RIGHT, margin=0.0)
    up = _Axis.of([0.0, max(map(max, counts))], _HEIGHT - _BOTTOM, _TOP, margin=0.0)
    parts = [*_frame(across, up, x, y)]
    width = (high - low) / _BINS
    for kind, set_of in ((6, counts[1]), (0, counts[0])):
        for number, count in enumerate(set_of):
            if not count:
                continue
            start = low + number * width
            a, b, top = across.at(start), across.at(start + width), up.at(count)
            parts.append(
                f"<rect x='{a:.1f}' y='{top:.1f}' width='{max(b - a - 0.5, 0.5):.1f}' "
                f"height='{up.at(0) - top:.1f}' style='fill:{_colour(kind)};fill-opacity:0.7'>"
                f"<title>{count} from {start:.4g} to {start + width:.4g}</title></rect>"
            )
    parts += [_limit(line, across, up) for line in lines if line.x is not None and low <= line.x <= high]
    return _svg(title, parts, _HEIGHT)


def escaped(text: str) -> str:
    """Return text for HTML and SVG."""
    from html import escape  # with its table of all named characters it is slow to import

    return escape(text)


@final
@attrs.frozen(kw_only=True)
class _Axis:
    """A linear axis with round ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...] = attrs.field(converter=as_tuple)

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float, *, margin: float = 0.06) -> _Axis:
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


def _frame(across: _Axis, up: _Axis, x: str, y: str) -> Iterable[str]:
    bottom = _HEIGHT - _BOTTOM
    for tick in across.ticks:
        at = across.at(tick)
        yield f"<line x1='{at:.1f}' x2='{at:.1f}' y1='{_TOP}' y2='{bottom}' style='{_GRID}'/>"
        yield _text(at, bottom + 15, f"{tick:.4g}", "middle")
    for tick in up.ticks:
        at = up.at(tick)
        yield f"<line x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{at:.1f}' y2='{at:.1f}' style='{_GRID}'/>"
        yield _text(_LEFT - 6, at + 4, f"{tick:.4g}", "end")
    yield _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, x, "middle")
    middle = (_TOP + bottom) / 2
    yield (
        f"<text x='14' y='{middle}' text-anchor='middle' transform='rotate(-90 14 {middle})' "
        f"style='{_FONT}'>{escaped(y)}</text>"
    )


def _limit(line: Line, across: _Axis, up: _Axis) -> str:
    style = f"stroke:{COLOURS[4]};stroke-width:1.5"
    if line.x is not None:
        at = across.at(line.x)
        label = _text(at + 4, _TOP + 11, line.label)
        return (
            f"<line x1='{at:.1f}' x2='{at:.1f}' y1='{_TOP}' y2='{_HEIGHT - _BOTTOM}' style='{style}'/>{label}"
        )
    at = up.at(line.y or 0.0)
    label = _text(_LEFT + 4, at - 4, line.label)
    return f"<line x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{at:.1f}' y2='{at:.1f}' style='{style}'/>{label}"


def _legend(entries: Sequence[tuple[int, str]], *, y: float) -> Iterable[str]:
    x = float(_LEFT)
    for kind, text in entries:
        yield f"<circle cx='{x:.0f}' cy='{y - 4:.0f}' r='5' style='fill:{_colour(kind)}'/>"
        yield _text(x + 9, y, text)
        x += 24 + 6.5 * len(text)


def _counted(values: Sequence[float], low: float, high: float) -> list[int]:
    counts = [0] * _BINS
    for value in values:
        if math.isfinite(value):
            counts[min(_BINS - 1, max(0, int((value - low) / (high - low) * _BINS)))] += 1
    return counts


def _colour(kind: int) -> str:
    return COLOURS[kind % len(COLOURS)]


def _short(text: str, most: int = 34) -> str:
    """Keep both ends of a long name: layers are told apart by either."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' style='{_FONT}'>{escaped(text)}</text>"


def _empty(title: str) -> str:
    return _svg(title, [_text(_LEFT, 50, "nothing to show")], 70)


def _svg(title: str, parts: Iterable[str], height: float) -> str:
    head = f"<text x='{_WIDTH / 2}' y='16' text-anchor='middle' style='{_FONT};font-weight:600'>"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {height:.0f}' role='img' "
        f"style='width:100%;max-width:{_WIDTH}px;height:auto'><title>{escaped(title)}</title>"
        f"{head}{escaped(title)}</text>{''.join(parts)}</svg>"
    )
