"""Pictures of rollouts: stages as stacked bars, gates as intervals, canaries against controls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edgeinfer.charts import Line, histogram
from edgeinfer.fleet.operator.metrics import metric
from edgeinfer.fleet.operator.outcomes import Outcome
from edgeinfer.fleet.operator.regression import Regression
from edgeinfer.svg import escaped

__all__ = ["COLOURS", "canary_picture", "legend", "stacked"]

# Okabe and Ito's colours: told apart with any colour vision.
COLOURS = {
    Outcome.SUCCESS.value: "#009e73",
    Outcome.ACCEPTED.value: "#56b4e9",
    Outcome.OFFLINE.value: "#b5b5b5",
    Outcome.WAITING.value: "#88888840",
    Outcome.FAILED.value: "#d55e00",
    Outcome.ROLLED_BACK.value: "#cc79a7",
    Outcome.REJECTED.value: "#e69f00",
    Outcome.TIMED_OUT.value: "#8c510a",
    Outcome.WITHDRAWN.value: "#666666",
}
_WIDTH, _HEIGHT = 480, 20


def stacked(counts: Mapping[str, int], total: int) -> str:
    """Return one bar: the outcomes of a group of devices, as shares of `total`."""
    x, parts = 0.0, []
    for outcome, colour in COLOURS.items():
        count = counts.get(outcome, 0)
        if not count or not total:
            continue
        width = count / total * _WIDTH
        parts.append(
            f"<rect x='{x:.2f}' y='0' width='{max(width, 1.0):.2f}' height='{_HEIGHT}' fill='{colour}'>"
            f"<title>{count} {outcome}</title></rect>"
        )
        x += width
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count) or "no devices"
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' preserveAspectRatio='none' role='img' class='bar' "
        "style='width:100%;height:1.1rem;display:block' "
        f"aria-label='{escaped(said)}'>{''.join(parts)}</svg>"
    )


def legend() -> str:
    """Return what the colours mean."""
    entries = [
        "<span style='margin-right:1em;white-space:nowrap'><svg width='10' height='10' aria-hidden='true'>"
        f"<rect width='10' height='10' fill='{colour}'/></svg> {name}</span> "
        for name, colour in COLOURS.items()
    ]
    return f"<p class='legend'>{''.join(entries)}</p>"


def canary_picture(gate: Regression, canaries: Sequence[float], controls: Sequence[float]) -> str:
    """Return how a metric changed on canaries and on controls, with the margin above the controls' mean.

    Args:
        gate: The gate that compares them.
        canaries: The changes of the canaries, as `Metric.change` gives them.
        controls: Those of the controls.
    """
    if not canaries and not controls:
        return ""
    kind = metric(gate.metric)
    usual = sum(controls) / len(controls) if controls else 0.0

    def shown(change: float) -> float:
        return 100.0 * math.expm1(change) if kind.relative else change

    return histogram(
        [shown(change) for change in canaries],
        others=[shown(change) for change in controls],
        title=f"{gate.metric}: {len(canaries)} canaries (blue), {len(controls)} controls (grey)",
        x=f"how much worse than before the stage{' (%)' if kind.relative else ''}",
        y="devices",
        lines=[Line(label="controls + margin", x=shown(usual + kind.threshold(gate.margin)))],
    )
