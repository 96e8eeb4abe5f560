"""What is known about a rollout: aggregates that each report keeps up, never a list of devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

import attrs

from edgeinfer.fleet.operator.canary import Sums
from edgeinfer.fleet.operator.outcomes import Counts

__all__ = ["CANARY", "CONTROL", "Cell", "Evidence", "MetricSums", "Tallies"]

CANARY, CONTROL = "canary", "control"


@final
@attrs.frozen(order=True)
class Cell:
    """Devices that are counted together: of one stage, class and site."""

    stage: int
    device_class: str
    site: str


@final
@attrs.frozen(kw_only=True)
class MetricSums:
    """One metric over the devices of one stage, arm and class.

    Attributes:
        changes: Of each device: after minus before.
        limited: Devices with a figure and a limit for it.
        over: How many of them exceed the limit.
        undefined: Reports of it that were no finite number.
    """

    changes: Sums = attrs.field(factory=Sums)
    limited: int = 0
    over: int = 0
    undefined: int = 0

    def __add__(self, other: MetricSums) -> MetricSums:
        return MetricSums(
            changes=self.changes + other.changes,
            limited=self.limited + other.limited,
            over=self.over + other.over,
            undefined=self.undefined + other.undefined,
        )


@final
@attrs.frozen(kw_only=True)
class Tallies:
    """All that the planner knows of the devices.

    Attributes:
        cells: Counts by stage, class and site.
        metrics: (stage, arm, class, metric) -> sums. The controls of a stage are devices of later stages
            over the time of that stage.
        elsewhere: Devices in flight for other rollouts, by site.
    """

    cells: Mapping[Cell, Counts]
    metrics: Mapping[tuple[int, str, str, str], MetricSums] = attrs.field(factory=dict)
    elsewhere: Mapping[str, int] = attrs.field(factory=dict)

    def counts(self, keep: Callable[[Cell], bool]) -> Counts:
        """Return the counts of all cells that `keep` accepts."""
        return Counts.sum(counts for cell, counts in self.cells.items() if keep(cell))

    def in_flight(self) -> dict[str, int]:
        """Return the devices in flight by site, those of other rollouts too."""
        total = dict(self.elsewhere)
        for cell, counts in self.cells.items():
            total[cell.site] = total.get(cell.site, 0) + counts.in_flight
        return total

    def evidence(self, stage: int) -> Evidence:
        """Return what is known of one stage."""
        classes = sorted({cell.device_class for cell in self.cells if cell.stage == stage})
        return Evidence(
            counts=self.counts(lambda cell: cell.stage == stage),
            pooled=self.counts(lambda cell: cell.stage <= stage),
            by_class={
                name: self.counts(lambda cell, name=name: cell.stage == stage and cell.device_class == name)  # type: ignore[misc]
                for name in classes
            },
            metrics={key[1:]: sums for key, sums in self.metrics.items() if key[0] == stage},
            controls=any(cell.stage > stage for cell in self.cells),
        )


@final
@attrs.frozen(kw_only=True)
class Evidence:
    """What is known of one stage.

    Attributes:
        counts: Of the stage.
        pooled: Of the stage and all before it.
        by_class: Of the stage, by hardware class.
        metrics: (arm, class, metric) -> sums.
        controls: Whether any device comes later, and so can be a control.
    """

    counts: Counts
    pooled: Counts
    by_class: Mapping[str, Counts]
    metrics: Mapping[tuple[str, str, str], MetricSums] = attrs.field(factory=dict)
    controls: bool = True

    def sums(self, arm: str, metric: str, device_class: str | None = None) -> MetricSums:
        """Return the sums of a metric in an arm: of one class, or of all."""
        total = MetricSums()
        for (its_arm, its_class, its_metric), sums in self.metrics.items():
            if (its_arm, its_metric) == (arm, metric) and device_class in (None, its_class):
                total = total + sums
        return total
