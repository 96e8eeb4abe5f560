"""`plan`: what is to be done next in a rollout. A pure function of aggregates; its cost is that of the cells.

What it holds to:

- A stage is opened only when all gates of the one before PASS after its soak, or an operator answered for
  them. INCONCLUSIVE waits.
- Devices are exposed only in stages that are open, only where the site's window is open, and only as many as
  the site's budget leaves room for, counting all rollouts.
- The gates of passed stages are judged for failing as long as the rollout lives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias, final

import attrs

from edgeinfer.fleet.operator.durations import format_duration
from edgeinfer.fleet.operator.evidence import Cell, Tallies
from edgeinfer.fleet.operator.gates import FailureRate, Rejected
from edgeinfer.fleet.operator.outcomes import Counts, Motion, Outcome, devices_text
from edgeinfer.fleet.operator.record import Record, State
from edgeinfer.fleet.operator.regression import Regression
from edgeinfer.fleet.operator.verdicts import Judgement, Verdict

__all__ = ["Action", "Expose", "Move", "Revert", "judge_stage", "plan"]

_LEAST_LEASE = 60  # seconds: a document that runs out sooner would only lapse


@final
@attrs.frozen(kw_only=True)
class Expose:
    """Give documents of the new release to the next eligible devices of a stage at a site."""

    stage: int
    site: str
    count: int
    start_before: int
    reason: str


@final
@attrs.frozen(kw_only=True)
class Revert:
    """Ask devices of a site that have the new release back to what they had."""

    site: str
    count: int
    start_before: int
    reason: str


@final
@attrs.frozen(kw_only=True)
class Move:
    """Change where the rollout stands. What is not given stays."""

    state: State
    stage: int
    soak_started_at: int | None
    reason: str


Action: TypeAlias = "Expose | Revert | Move"


def plan(tallies: Tallies, rollout: Record, now: int) -> tuple[Action, ...]:
    """Return what is to be done now; the actions are done together or not at all.

    Args:
        tallies: What is known of the devices.
        rollout: Where the rollout stands.
        now: Seconds since 1970.
    """
    tallies = _without_quarantined(tallies, rollout)
    if rollout.state is State.ROLLED_BACK:
        return _go_on_back(tallies, rollout)
    if rollout.state is State.ROLLING_BACK:
        return _roll_back(tallies, rollout, now)
    if not rollout.state.judged:
        return ()
    stop = _stop(tallies, rollout)
    if stop is not None:
        return (stop,)
    moved = _progress(tallies, rollout, now) if rollout.state is State.RUNNING else None
    if moved is not None:
        return (moved,)
    return tuple(_exposures(tallies, rollout, now)) if rollout.state.exposing else ()


def judge_stage(tallies: Tallies, rollout: Record, stage: int) -> tuple[Judgement, ...]:
    """Return what each gate says of a stage."""
    evidence = tallies.evidence(stage)
    alpha = rollout.specification.alpha_each
    return tuple(
        gate.judge(evidence, forgiven=rollout.forgiven(stage, gate.name), alpha=alpha)
        for gate in rollout.specification.gates
    )


def _without_quarantined(tallies: Tallies, rollout: Record) -> Tallies:
    """Leave out devices that will never be exposed, because the release is withdrawn for their class."""
    if not rollout.withdrawn:
        return tallies

    def kept(cell: Cell, counts: Counts) -> Counts:
        if cell.device_class not in rollout.withdrawn and "*" not in rollout.withdrawn:
            return counts
        states = {state: n for state, n in counts.by_state.items() if state[0] is not Outcome.WAITING}
        return Counts(states)

    return attrs.evolve(tallies, cells={cell: kept(cell, counts) for cell, counts in tallies.cells.items()})


def _stop(tallies: Tallies, rollout: Record) -> Move | None:
    """Return the move that a failure asks for, if there is one."""
    if "*" in rollout.withdrawn and rollout.state is not State.COMPLETED:
        return _move(rollout, State.ABORTED, "the release is withdrawn for all devices")
    for stage in range(min(rollout.stage, rollout.last) + 1):
        for judgement in judge_stage(tallies, rollout, stage):
            # Once a stage is passed, its controls get the release too: comparisons end there.
            compared = judgement.gate.startswith(Regression.__name__)
            if judgement.verdict is not Verdict.FAIL or (compared and stage != rollout.stage):
                continue
            back = rollout.specification.on_fail == "rollback"
            reason = f"{judgement.gate} failed in stage {stage + 1}: {judgement.reason}"
            return _move(rollout, State.ROLLING_BACK if back else State.FAILED, reason)
    return None


def _progress(tallies: Tallies, rollout: Record, now: int) -> Move | None:
    """Return the move to the soak or to the next stage, or the pause where it cannot go on by itself."""
    if rollout.stage < 0:
        return _move(rollout, State.AWAITING_APPROVAL, "stage 1 needs approval")
    stage = rollout.specification.stages[rollout.stage]
    counts = tallies.evidence(rollout.stage).counts
    if rollout.soak_started_at is None:
        wanted, committed = _quantile(counts, stage.quantile), counts.of(Outcome.SUCCESS)
        if committed >= wanted:
            reason = f"{devices_text(committed)} of stage {rollout.stage + 1} committed: the soak begins"
            return attrs.evolve(_move(rollout, rollout.state, reason), soak_started_at=now)
        return _waits(rollout, now, counts.settled, f"{committed} committed, and {devices_text(wanted)} must")
    if now < rollout.soak_started_at + stage.soak:
        return None
    judgements = judge_stage(tallies, rollout, rollout.stage)
    open_ones = [j for j in judgements if j.applies and j.verdict is not Verdict.PASS]
    if open_ones or not any(j.verdict is Verdict.PASS for j in judgements):
        waits = "; ".join(f"{j.gate}: {j.reason}" for j in open_ones) or "no gate could be judged"
        # Comparisons and constraints learn more with every report; rates do not, once all is decided.
        by_rate = any(j.gate in (FailureRate.__name__, Rejected.__name__) for j in open_ones)
        return _waits(rollout, now, counts.settled and by_rate, waits)
    soaked = f" after a soak of {format_duration(stage.soak)}" if stage.soak else ""
    reason = f"stage {rollout.stage + 1} passed{soaked}: " + "; ".join(
        f"{j.gate}: {j.reason}" for j in judgements
    )
    if rollout.stage == rollout.last:
        return attrs.evolve(_move(rollout, State.COMPLETED, reason), soak_started_at=rollout.soak_started_at)
    following = rollout.specification.stages[rollout.stage + 1]
    if following.needs_approval:
        return _move(rollout, State.AWAITING_APPROVAL, f"{reason}; stage {rollout.stage + 2} needs approval")
    return Move(state=State.RUNNING, stage=rollout.stage + 1, soak_started_at=None, reason=reason)


def _waits(rollout: Record, now: int, settled: bool, why: str) -> Move | None:
    """Wait for data, but neither beyond the deadline nor for what will not come: then people decide."""
    stage = rollout.specification.stages[rollout.stage]
    if stage.deadline is not None and now >= rollout.stage_started_at + stage.deadline:
        return _move(rollout, State.PAUSED, f"deadline of stage {rollout.stage + 1}: {why}")
    if settled:
        return _move(rollout, State.PAUSED, f"nothing more will come in stage {rollout.stage + 1}: {why}")
    return None


def _quantile(counts: Counts, quantile: float) -> int:
    """Return how many devices must commit before the soak: the quantile of those that may."""
    otherwise = counts.decided - counts.of(Outcome.SUCCESS)
    return max(1, math.ceil(quantile * (counts.members - otherwise) - 1e-9))


def _exposures(tallies: Tallies, rollout: Record, now: int) -> list[Expose]:
    in_flight = tallies.in_flight()
    actions = []
    for stage in range(rollout.stage + 1):
        waiting = {cell.site: 0 for cell in sorted(tallies.cells) if cell.stage == stage}
        for cell, counts in tallies.cells.items():
            if cell.stage == stage and not {cell.device_class, "*"} & rollout.withdrawn:
                waiting[cell.site] += counts.eligible
        rooms, closings = {}, {}
        for site, eligible in waiting.items():
            closes = _closing(rollout, site, now)
            if eligible and closes is not None:
                rooms[site], closings[site] = min(eligible, _room(rollout, site, in_flight)), closes
        allowed = _ramp(tallies, rollout, stage, now)
        for site, count in _shared(rooms, allowed).items():
            in_flight[site] = in_flight.get(site, 0) + count
            actions.append(
                Expose(
                    stage=stage,
                    site=site,
                    count=count,
                    start_before=min(now + rollout.specification.lease, closings[site]),
                    reason=f"stage {stage + 1} is open",
                )
            )
    return actions


def _closing(rollout: Record, site: str, now: int) -> int | None:
    """Return until when a site's devices may be switched, or None if they may not now."""
    if site not in rollout.sites:
        return now + rollout.specification.lease
    closes = rollout.sites[site].open_until(now)
    return closes if closes is not None and closes - now >= _LEAST_LEASE else None


def _room(rollout: Record, site: str, in_flight: Mapping[str, int]) -> int:
    limit = rollout.sites[site].max_in_flight if site in rollout.sites else None
    return 10**9 if limit is None else max(0, limit - in_flight.get(site, 0))


def _ramp(tallies: Tallies, rollout: Record, stage: int, now: int) -> int:
    """Return how many more devices of a stage its ramp allows."""
    if stage < rollout.stage or rollout.state is State.COMPLETED:
        return 10**9
    counts = tallies.counts(lambda cell: cell.stage == stage)
    allowed = rollout.specification.stages[stage].allowance(now - rollout.stage_started_at)
    return 10**9 if math.isinf(allowed) else max(0, int(allowed) - counts.exposed)


def _shared(rooms: Mapping[str, int], allowed: int) -> dict[str, int]:
    """Share what is allowed among the sites, in proportion to their room."""
    total = sum(rooms.values())
    if total <= allowed:
        return {site: room for site, room in rooms.items() if room}
    shares = {site: room * allowed // total for site, room in rooms.items()}
    rest = allowed - sum(shares.values())
    for site in sorted(rooms, key=lambda site: (-(rooms[site] * allowed % total), site))[:rest]:
        shares[site] += 1
    return {site: share for site, share in shares.items() if share}


def _roll_back(tallies: Tallies, rollout: Record, now: int) -> tuple[Action, ...]:
    """Take the release back from devices that have it, as fast as the sites' budgets allow."""
    in_flight = tallies.in_flight()
    have: dict[str, int] = {}
    for cell, counts in sorted(tallies.cells.items(), key=lambda item: item[0]):
        have[cell.site] = have.get(cell.site, 0) + _having(counts)
    actions = [
        Revert(
            site=site,
            count=min(count, room),
            start_before=now + rollout.specification.lease,
            reason="the release is rolled back",
        )
        for site, count in have.items()
        if count and (room := _room(rollout, site, in_flight))
    ]
    if actions or any(have.values()) or tallies.counts(lambda _: True).moving(Motion.BACK):
        return tuple(actions)
    kept = tallies.counts(lambda _: True).moving(Motion.KEPT)
    could_not = f"{devices_text(kept)} could not go back; else " if kept else ""
    reason = f"{could_not}no device has the release any more, as far as is known"
    return (_move(rollout, State.ROLLED_BACK, reason),)


def _go_on_back(tallies: Tallies, rollout: Record) -> tuple[Action, ...]:
    """Go on with a rollback that had ended, where devices turn up that have the release after all."""
    late = _having(tallies.counts(lambda _: True))
    if not late:
        return ()
    reason = f"{devices_text(late)} had begun in time and reported late: the release is there still"
    return (_move(rollout, State.ROLLING_BACK, reason),)


def _having(counts: Counts) -> int:
    """Return how many devices have the release, and can be asked back."""
    return counts.by_state.get((Outcome.SUCCESS, Motion.STILL), 0) + counts.moving(Motion.STUCK)


def _move(rollout: Record, state: State, reason: str) -> Move:
    return Move(state=state, stage=rollout.stage, soak_started_at=rollout.soak_started_at, reason=reason)
