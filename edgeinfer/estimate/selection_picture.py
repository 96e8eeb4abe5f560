"""The picture of a selection: limit/estimate of each device with its band, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Protocol

from edgeinfer.estimate.verdict import Verdict

__all__ = ["picture"]

_ROWS = 40
_ROW, _LEFT, _WIDTH, _RIGHT = 20, 250, 420, 60
# The log scale runs from a 10th of the limit to 10 times of it; what is beyond is drawn at its end.
_DECADES = 1.0
# Colours that are told apart with every kind of colour vision, and on light and dark ground.
_COLOURS = {"fits": "#1b9e77", "may fit": "#66a61e", "may not fit": "#e6ab02", "does not fit": "#d95f02"}


class _Drawn(Protocol):
    @property
    def target(self) -> str: ...

    @property
    def verdict(self) -> Verdict: ...

    def describe(self) -> str:
        """Return what is shown when the pointer rests on it."""
        ...


def picture(fits: Sequence[_Drawn]) -> str:
    """Return an SVG: a dot a device at its worst limit/estimate, a line for the band; right of 1 it fits."""
    shown = [fit for fit in fits if fit.verdict.checks][:_ROWS]
    if not shown:
        return ""
    height = _ROW * (len(shown) + 2)
    width = _LEFT + _WIDTH + _RIGHT
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' "
        "style='max-width:100%;font:12px sans-serif' role='img' "
        "aria-label='limit through estimate of each device'>"
    )
    parts = [head]
    bottom = _ROW * (len(shown) + 1)
    for ratio in (0.1, 0.2, 0.5, 1, 2, 5, 10):
        x = _x(ratio)
        line = "stroke='currentColor' stroke-width='1.5'" if ratio == 1 else "stroke='#888' stroke-width='.4'"
        parts.append(f"<line x1='{x:.0f}' x2='{x:.0f}' y1='4' y2='{bottom}' {line}/>")
        parts.append(
            f"<text x='{x:.0f}' y='{bottom + 14}' text-anchor='middle' fill='currentColor'>{ratio:g}</text>"
        )
    for index, fit in enumerate(shown):
        parts.append(_row(fit, _ROW * (index + 0.8)))
    parts.append("</svg>")
    caption = "worst limit / estimate, with its 80 % band; right of 1 the model fits"
    if any(fit.verdict.unknown for fit in shown):
        caption += "; hollow: another limit is not estimated"
    if len(shown) < len(fits):
        caption += f"; {len(shown)} of {len(fits)} devices, all are in the table"
    return f"<div>{caption}</div>{''.join(parts)}"


def _x(ratio: float) -> float:
    position = math.log10(ratio) if ratio > 0 else -_DECADES
    return _LEFT + _WIDTH * (min(max(position, -_DECADES), _DECADES) + _DECADES) / (2 * _DECADES)


def _row(fit: _Drawn, y: float) -> str:
    worst = fit.verdict.checks[0]
    colour = _COLOURS.get(fit.verdict.word, "#888")
    name = f"<text x='{_LEFT - 8}' y='{y + 4:.0f}' text-anchor='end' fill='currentColor'>"
    low, at, high = (_x(ratio) for ratio in (worst.ratio_low, worst.ratio, worst.ratio_high))
    return (
        f"<g><title>{escape(fit.describe())}</title>"
        f"{name}{escape(fit.target)}</text>"
        f"<line x1='{low:.1f}' x2='{high:.1f}' y1='{y:.0f}' y2='{y:.0f}' stroke='{colour}' stroke-width='3' "
        f"stroke-opacity='.5'/><circle cx='{at:.1f}' cy='{y:.0f}' r='5' stroke='{colour}' stroke-width='2' "
        f"fill='{'none' if fit.verdict.unknown else colour}'/></g>"
    )
