"""From the metrics of a report to the figures that gates compare."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgeinfer.fleet.device.histogram import Histogram
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.operator.metrics import METRICS

__all__ = ["SERVING", "figures_by_model"]

# Reports of these phases tell how what is loaded serves. Others carry what was measured of a candidate.
SERVING = frozenset({Phase.IDLE, Phase.SOAKING, Phase.COMMITTED})
# Reports may name a figure as the budget's limit does.
_NAMES = {metric.limit: metric.name for metric in METRICS.values() if metric.limit is not None}
_SHARES = ("errors", "deadline_misses")  # of the requests
_QUANTILES = {"latency_p50": 0.5, "latency_p99": 0.99}


def figures_by_model(model: str, metrics: Mapping[str, Histogram | float]) -> dict[str, dict[str, float]]:
    """Return model -> metric -> figure; NaN where one is not a finite number.

    Args:
        model: The model that the report is about; empty for the device itself.
        metrics: Names may begin with a model and a point: `defects.latency_ms`. A distribution `latency_ms`
            gives `latency_p50` and `latency_p99`, of others the mean is taken. Errors and missed deadlines
            are shares of the requests; without `requests` nothing is known of them.

    Returns:
        What holds for the device, such as its temperature, is under `model`.
    """
    groups: dict[str, dict[str, Histogram | float]] = {}
    for name, value in metrics.items():
        prefix, point, rest = name.rpartition(".")
        groups.setdefault(prefix if point else model, {})[rest] = value
    found = {name: _figures(group) for name, group in groups.items()}
    return {name: figures for name, figures in found.items() if figures}


def _figures(group: Mapping[str, Histogram | float]) -> dict[str, float]:
    found: dict[str, float] = {}
    requests = group.get("requests")
    for name, value in group.items():
        if isinstance(value, Histogram):
            if name == "latency_ms":
                quantiles = value.quantiles(tuple(_QUANTILES.values()))
                found |= zip(_QUANTILES, map(_finite, quantiles), strict=True)
            elif name in METRICS:
                found[name] = _finite(value.mean)
        elif name in _SHARES:
            if isinstance(requests, float) and requests > 0:
                found[name] = _finite(value)
        elif (metric := _NAMES.get(name, name)) in METRICS:
            found[metric] = _finite(value)
    return found


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan
