"""A picture of what several things did over time: a row for each, a colour for each state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import attrs

from edgeinfer.svg import (
    GRID,
    LETTER,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    colour,
    empty,
    escaped,
    legend_of,
    picture,
    words,
)

__all__ = ["Span", "timeline"]

_ROW = 15  # px
_LEGEND = 46  # px below the rows: ticks, the axis's label, the legend


@final
@attrs.frozen(kw_only=True)
class Span:
    """From when to when something was in a state.

    Attributes:
        start: In the axis's unit.
        end: Likewise.
        kind: An index into the colours.
        label: What its tooltip says.
    """

    start: float
    end: float
    kind: int
    label: str = ""


def timeline(
    rows: Mapping[str, Sequence[Span]], *, title: str, x: str, legend: Sequence[tuple[int, str]] = ()
) -> str:
    """Return a timeline.

    Args:
        rows: Spans by the name of the row.
        title: Shown above it.
        x: The horizontal axis's label, with its unit.
        legend: Kinds and what they mean.
    """
    spans = [span for row in rows.values() for span in row]
    if not spans:
        return empty(title)
    left = 12 + LETTER * max(map(len, rows))
    ends = [min(span.start for span in spans), max(span.end for span in spans)]
    across = Axis.of(ends, left, WIDTH - RIGHT, margin=0.0)
    bottom = TOP + _ROW * len(rows)
    parts = []
    for tick in across.ticks:
        at = across.at(tick)
        parts.append(f"<line x1='{at:.1f}' x2='{at:.1f}' y1='{TOP}' y2='{bottom}' style='{GRID}'/>")
        parts.append(words(at, bottom + 14, f"{tick:.4g}", "middle"))
    for number, (name, row) in enumerate(rows.items()):
        y = TOP + _ROW * number
        parts.append(words(left - 6, y + 11, name, "end"))
        for span in row:
            at, width = across.at(span.start), across.at(span.end) - across.at(span.start)
            parts.append(
                f"<rect x='{at:.1f}' y='{y + 1}' width='{max(width, 1.0):.1f}' height='{_ROW - 3}' "
                f"style='fill:{colour(span.kind)}'><title>{escaped(span.label)}</title></rect>"
            )
    parts.append(words((left + WIDTH - RIGHT) / 2, bottom + 28, x, "middle"))
    parts += legend_of(legend, y=bottom + _LEGEND)
    return picture(title, parts, bottom + _LEGEND + 8)
