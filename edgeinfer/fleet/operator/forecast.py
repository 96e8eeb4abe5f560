"""`simulate`: what a rollout would do, from the fleet's own history, before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import attrs
import sqlalchemy as sa

from edgeinfer.display import Table
from edgeinfer.fleet.operator import commands
from edgeinfer.fleet.operator.canary import Sums, compare_arms
from edgeinfer.fleet.operator.cohorts import Candidate
from edgeinfer.fleet.operator.detection import chance_to_see
from edgeinfer.fleet.operator.durations import format_duration
from edgeinfer.fleet.operator.evidence import CONTROL
from edgeinfer.fleet.operator.metrics import metric
from edgeinfer.fleet.operator.outcomes import Outcome
from edgeinfer.fleet.operator.record import Record, State
from edgeinfer.fleet.operator.regression import Regression
from edgeinfer.fleet.operator.simulator.faults import Faults, Quality
from edgeinfer.fleet.operator.simulator.world import World
from edgeinfer.fleet.operator.store import rollouts as store
from edgeinfer.fleet.operator.store.database import Database
from edgeinfer.fleet.operator.store.inventory import DeviceRow, save_release, save_site
from edgeinfer.fleet.operator.store.schema import cells, devices, metric_sums, rollouts

__all__ = ["Forecast", "History", "Run", "simulate"]

_OLD, _NEW = "0" * 64, "1" * 64
_SILENT_S = 2 * 3600  # a device that was silent for longer than this when the newest was heard is offline
_DRIFT = 0.05  # of a device's figures from one day to the next, where there is no history


@final
@attrs.frozen(kw_only=True)
class History:
    """What the fleet's own records say.

    Attributes:
        offline: Share of the devices that are offline at a time.
        failures: Failure rate of earlier rollouts of the model.
        drift: Standard deviation of the change of a device's figures with no release at all.
        sources: Where each figure is from.
    """

    offline: float
    failures: float
    drift: float
    sources: tuple[str, ...]


@final
@attrs.frozen(kw_only=True)
class Run:
    """One simulated course of the rollout.

    Attributes:
        state: How it ended; RUNNING if it had not after the longest time.
        seconds: How long it took.
        exposed: Devices that ever got a document of the release.
        stage: The stage that it came to, from 1.
    """

    state: str
    seconds: int
    exposed: int
    stage: int


@final
@attrs.frozen(kw_only=True)
class Forecast:
    """What a rollout would do.

    Attributes:
        history: What it was computed from.
        devices: The devices that it would take.
        good: Its course if the release is as good as earlier ones.
        bad: Its course if the release fails on `bad_rate` of the devices.
        bad_rate: That rate.
        gates: (gate, what it could detect in the first stage).
    """

    history: History
    devices: int
    good: Run
    bad: Run
    bad_rate: float
    gates: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, object]:
        """Return the forecast as JSON-compatible values."""
        return {
            "devices": self.devices,
            "good": attrs.asdict(self.good),
            "bad": attrs.asdict(self.bad),
            "bad_rate": self.bad_rate,
            "gates": dict(self.gates),
            "sources": list(self.history.sources),
        }

    def table(self) -> Table:
        """Return what a person wants to see."""
        rows = [
            ("if it is as good as earlier ones", _course(self.good)),
            (f"if it fails on {self.bad_rate:.0%} of the devices", _course(self.bad)),
            ("devices exposed then", f"{self.bad.exposed} of {self.devices}"),
            *((f"{gate} sees", what) for gate, what in self.gates),
            *(("from", source) for source in self.history.sources),
        ]
        return Table(title=f"Forecast for {self.devices} devices (simulated)", columns=("", ""), rows=rows)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table().to_html()


def _course(run: Run) -> str:
    return f"{run.state} in stage {run.stage} after {format_duration(run.seconds)}"


def simulate(
    database: Database, rollout: Record, *, bad_rate: float = 0.2, longest_s: int = 30 * 86_400, seed: int = 0
) -> Forecast:
    """Run a rollout in virtual time: once with a good release, once with a bad one.

    Devices, classes, sites, windows and budgets are the fleet's; how devices behave is from its history.

    Args:
        database: The fleet's store; it is only read.
        rollout: The rollout.
        bad_rate: The share of devices on which the bad release fails.
        longest_s: How long to go on at most, in virtual seconds.
        seed: Of all chance.
    """
    with database.reading() as connection:
        cohorts = commands.cohorts_of(connection, rollout)
        history = _history(connection, rollout.model)
        now = database.now(connection)
    found = [candidate for cohort in cohorts for candidate in cohort]
    runs = [
        _run(rollout, found, history, Quality(rolled_back=rate), longest_s, seed, now)
        for rate in (history.failures, bad_rate)
    ]
    return Forecast(
        history=history,
        devices=len(found),
        good=runs[0],
        bad=runs[1],
        bad_rate=bad_rate,
        gates=tuple(_detectable(rollout, [len(cohort) for cohort in cohorts], history)),
    )


def _run(
    rollout: Record,
    found: Sequence[Candidate],
    history: History,
    quality: Quality,
    longest_s: int,
    seed: int,
    now: int,
) -> Run:
    world = World(seed=seed, faults=Faults(offline=history.offline), release=_OLD, start=now)
    world.quality[_NEW] = quality
    world.add(
        DeviceRow(device=c.device, device_class=c.device_class, site=c.site, labels=c.labels) for c in found
    )
    for site in rollout.sites.values():
        save_site(world.database, site)
    for digest in (_OLD, _NEW):
        save_release(world.database, digest=digest, model="m", version=digest[:1])
    world.run(3600)  # devices tell what they are like before the release
    number = commands.draft(world.database, model="m", release=_NEW, specification=rollout.specification)
    commands.start(world.database, number)
    began = world.now

    def done() -> bool:
        state = commands.get(world.database, number).state
        if state is State.AWAITING_APPROVAL:
            commands.approve(world.database, number)  # people are not simulated
        return state in (State.COMPLETED, State.ROLLED_BACK, State.FAILED, State.PAUSED)

    world.run_until(done, longest_s)
    record = commands.get(world.database, number)
    with world.database.reading() as connection:
        total = store.load_tallies(connection, number).counts(lambda _: True)
    world.database.close()
    return Run(
        state=record.state.value, seconds=world.now - began, exposed=total.exposed, stage=record.stage + 1
    )


def _history(connection: sa.Connection, model: str) -> History:
    sources = []
    newest = connection.execute(sa.select(sa.func.max(devices.c.seen_at))).scalar() or 0
    counted = sa.select(sa.func.count(), sa.func.count().filter(devices.c.seen_at >= newest - _SILENT_S))
    total, heard = connection.execute(
        counted.where(devices.c.deleted_at.is_(None), devices.c.seen_at > 0)
    ).one()
    offline = min(0.9, 1 - heard / total) if total else 0.0
    sources.append(
        f"{heard} of {total} devices heard of in the last 2h" if total else "no device was ever heard of"
    )
    ended = (
        sa.select(cells.c.outcome, sa.func.sum(cells.c.devices))
        .join(rollouts, rollouts.c.id == cells.c.rollout)
        .where(rollouts.c.model == model, rollouts.c.state == State.COMPLETED.value)
        .group_by(cells.c.outcome)
    )
    by_outcome = {Outcome(name): int(count) for name, count in connection.execute(ended)}
    decided = sum(count for outcome, count in by_outcome.items() if outcome.decided)
    failures = sum(count for outcome, count in by_outcome.items() if outcome.failed)
    sources.append(
        f"{failures} failures on {decided} devices in earlier rollouts" if decided else "no earlier rollout"
    )
    changes = sa.select(metric_sums).where(
        metric_sums.c.arm == CONTROL, metric_sums.c.metric == "latency_p99"
    )
    sums = Sums()
    for row in connection.execute(changes).mappings():
        sums = sums + Sums(row["devices"], row["total"], row["squares"])
    measured = sums.count >= 10
    sources.append(
        f"drift of {sums.count} controls"
        if measured
        else f"a drift of {_DRIFT:.0%} is assumed: no controls yet"
    )
    return History(
        offline=offline,
        failures=failures / decided if decided else 0.0,
        drift=math.sqrt(sums.variance) if measured else _DRIFT,
        sources=tuple(sources),
    )


def _detectable(rollout: Record, sizes: Sequence[int], history: History) -> list[tuple[str, str]]:
    """Say what each gate could see in the first stage."""
    found = []
    for gate in rollout.specification.gates:
        if isinstance(gate, Regression):
            found.append((gate.name, _least_effect(gate, sizes, history, rollout.specification.alpha_each)))
        else:
            chance = chance_to_see(gate.max, sizes[0])
            found.append((gate.name, f"a fault of {gate.max:.1%} with {chance:.1%} on {sizes[0]} devices"))
    return found


def _least_effect(gate: Regression, sizes: Sequence[int], history: History, alpha: float) -> str:
    """Say from which change on a comparison fails in four of five cases."""
    drift = history.drift

    def arm(size: int) -> Sums:  # of this many devices with that drift and no effect
        return Sums(size, 0.0, drift**2 * max(size - 1, 0))

    controls = min(sum(sizes[1:]), 1000)
    interval = compare_arms(arm(sizes[0]), arm(controls), alpha / 2).interval
    if interval is None:
        return "nothing: too few devices"
    error = drift * math.sqrt(1 / sizes[0] + 1 / controls)
    kind = metric(gate.metric)
    least = kind.threshold(gate.margin) + interval.high + 0.84 * error
    return f"a change of {kind.shown(least)} in four of five cases"
