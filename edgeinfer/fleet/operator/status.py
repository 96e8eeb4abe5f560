"""`RolloutStatus`: where a rollout stands, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import attrs

from edgeinfer.display import Table
from edgeinfer.fleet.operator.durations import format_duration
from edgeinfer.fleet.operator.evidence import Tallies
from edgeinfer.fleet.operator.outcomes import Counts, Motion, Outcome
from edgeinfer.fleet.operator.pictures import legend, stacked
from edgeinfer.fleet.operator.planner import judge_stage
from edgeinfer.fleet.operator.record import Record, State
from edgeinfer.fleet.operator.verdicts import Judgement

__all__ = ["RolloutStatus", "status_of"]

_SHOWN = (
    Outcome.SUCCESS,
    Outcome.ACCEPTED,
    Outcome.OFFLINE,
    Outcome.WAITING,
    Outcome.FAILED,
    Outcome.ROLLED_BACK,
    Outcome.REJECTED,
    Outcome.TIMED_OUT,
    Outcome.WITHDRAWN,
)
_BACK = {Motion.BACK: "asked back", Motion.REVERTED: "back", Motion.KEPT: "could not go back"}


@final
@attrs.frozen(kw_only=True)
class RolloutStatus:
    """Where a rollout stands.

    Attributes:
        record: What it is.
        stages: Counts of each stage.
        judgements: What the gates say of each stage that was opened.
        now: When this was so, in seconds since 1970.
        log: The last lines of the audit log.
    """

    record: Record
    stages: tuple[Counts, ...]
    judgements: tuple[tuple[Judgement, ...], ...]
    now: int
    log: tuple[Mapping[str, Any], ...] = ()

    @property
    def state(self) -> str:
        """The rollout's state, such as `RUNNING`."""
        return self.record.state.value

    def table(self) -> Table:
        """Return one row a stage."""
        rows = []
        for number, (stage, counts) in enumerate(
            zip(self.record.specification.stages, self.stages, strict=True)
        ):
            found = ", ".join(f"{counts.of(o)} {o.value}" for o in _SHOWN if counts.of(o))
            rate = counts.failure_rate
            rows.append(
                (
                    number + 1,
                    stage.describe(),
                    counts.members,
                    found,
                    "" if rate is None else f"{rate:.1%}",
                    self.describe_stage(number),
                )
            )
        record = self.record
        return Table(
            title=f"Rollout {record.id} of {record.model} {record.release_version}: {self.state}",
            columns=("stage", "asked for", "devices", "outcomes", "failure rate", ""),
            rows=rows,
            footer=f"{self.log[-1]['actor']}: {self.log[-1]['reason']}" if self.log else "",
        )

    def gate_table(self) -> Table:
        """Return what the gates say of the stages that were opened."""
        rows = [
            (number + 1, judgement.gate, judgement.verdict.value, judgement.reason)
            for number, judgements in enumerate(self.judgements)
            for judgement in judgements
        ]
        return Table(title="Gates", columns=("stage", "gate", "verdict", "why"), rows=rows)

    def describe_stage(self, stage: int) -> str:
        """Return how far a stage is, and how many of its devices were taken back.

        Args:
            stage: Its index.
        """
        moved = self.stages[stage].moving
        back = [f"{moved(motion)} {what}" for motion, what in _BACK.items() if moved(motion)]
        return ", ".join([self._progress(stage), *back])

    def _progress(self, stage: int) -> str:
        record = self.record
        if stage > record.stage:
            return "not opened"
        if stage < record.stage or record.state is State.COMPLETED:
            return "passed"
        if record.state in (State.ROLLED_BACK, State.ABORTED, State.SUPERSEDED):
            return "ended"
        if record.soak_started_at is None:
            return f"open for {format_duration(self.now - record.stage_started_at)}"
        soaked = self.now - record.soak_started_at
        total = record.specification.stages[stage].soak
        return f"soak {format_duration(min(soaked, total))} of {format_duration(total)}" if total else "open"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return {
            "rollout": self.record.id,
            "model": self.record.model,
            "release": self.record.release,
            "version": self.record.release_version,
            "state": self.state,
            "stage": self.record.stage + 1,
            "stages": [
                {
                    "asked": stage.describe(),
                    "devices": counts.members,
                    "exposed": counts.exposed,
                    "in_flight": counts.in_flight,
                    "failure_rate": counts.failure_rate,
                    "outcomes": {o.value: counts.of(o) for o in Outcome},
                    "motions": {m.value: counts.moving(m) for m in Motion},
                }
                for stage, counts in zip(self.record.specification.stages, self.stages, strict=True)
            ],
            "gates": [
                {"stage": number + 1, **attrs.asdict(judgement), "verdict": judgement.verdict.value}
                for number, judgements in enumerate(self.judgements)
                for judgement in judgements
            ],
            "log": [dict(line) for line in self.log],
        }

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.gate_table()}"

    def _repr_html_(self) -> str:
        bars = [
            f"<div style='max-width:30em;margin:0.3em 0'>stage {number}"
            f"{stacked({o.value: counts.of(o) for o in Outcome}, counts.members)}</div>"
            for number, counts in enumerate(self.stages, 1)
        ]
        return self.table().to_html() + "".join(bars) + legend() + self.gate_table().to_html()


def status_of(
    record: Record, tallies: Tallies, log: tuple[Mapping[str, Any], ...], now: int
) -> RolloutStatus:
    """Put together where a rollout stands."""
    opened = range(min(record.stage, record.last) + 1) if tallies.cells else range(0)
    return RolloutStatus(
        record=record,
        stages=tuple(
            tallies.counts(lambda cell, stage=stage: cell.stage == stage)  # type: ignore[misc]
            for stage in range(len(record.specification.stages))
        ),
        judgements=tuple(judge_stage(tallies, record, stage) for stage in opened),
        now=now,
        log=log,
    )
