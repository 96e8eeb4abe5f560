"""Releases of one model for several classes of devices, each with a limit of its own on the latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from edgeinfer.budget import Budget
from edgeinfer.fleet.device.release import Release
from edgeinfer.fleet.operator.fleet import Fleet
from edgeinfer.fleet.operator.variants import needs_of
from edgeinfer.graph.build import compile_model
from edgeinfer.model.model import Model
from edgeinfer.runtime.benchmark import benchmark
from edgeinfer.runtime.open import load

__all__ = ["OPTIONS", "median_ms", "publish_for_classes"]

OPTIONS = {"threads": 1}


def median_ms(model: Model, target: str, feed: Mapping[str, Any]) -> float:
    """Return the median latency of a model here, in milliseconds."""
    with load(compile_model(model, target, options=OPTIONS, trial=False)) as session:
        return benchmark(session, feed, warmup=10, runs=50, progress=False).p50_ms


def publish_for_classes(
    fleet: Fleet,
    name: str,
    model: Model,
    *,
    targets: Mapping[str, str],
    limits_ms: Mapping[str, float],
    golden: Any,
    labels: Sequence[str],
) -> Release:
    """Publish a model that nobody measured: devices find out themselves whether it keeps their limit.

    Args:
        fleet: The fleet.
        name: The model's name in the fleet.
        model: The model.
        targets: Class of devices -> where it runs.
        limits_ms: Class of devices -> the largest median latency, in milliseconds.
        golden: The golden feeds.
        labels: Names of the model's classes.
    """
    artifacts = {device: compile_model(model, target, options=OPTIONS) for device, target in targets.items()}
    needs = {
        device: attrs.evolve(needs_of(artifact), device_class=(device,))
        for device, artifact in artifacts.items()
    }
    budgets = {device: Budget(latency_p50_ms=limit) for device, limit in limits_ms.items()}
    return fleet.publish(name, artifacts, golden=golden, budget=budgets, needs=needs, labels=labels)
