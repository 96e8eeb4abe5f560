"""Where a rollout stands: the value that the planner reads and the store keeps."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import final

import attrs

from edgeinfer.fleet.operator.sites import Site
from edgeinfer.fleet.operator.specification import Specification
from edgeinfer.fleet.operator.verdicts import Waiver

__all__ = ["Record", "State"]


class State(str, enum.Enum):
    """The states of a rollout."""

    DRAFT = "DRAFT"
    RUNNING = "RUNNING"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    PAUSED = "PAUSED"  # no new documents
    HELD = "HELD"  # paused, and what is not yet activated was revoked
    FAILED = "FAILED"  # a gate failed, and an operator is to decide
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    ABORTED = "ABORTED"
    SUPERSEDED = "SUPERSEDED"  # another rollout of the same model took its devices
    COMPLETED = "COMPLETED"

    @property
    def live(self) -> bool:
        """Whether it holds its devices: no other rollout of the model may have them."""
        return self not in (
            State.DRAFT,
            State.ROLLED_BACK,
            State.ABORTED,
            State.SUPERSEDED,
            State.COMPLETED,
        )

    @property
    def judged(self) -> bool:
        """Whether failures still stop it: those of passed stages and of completed rollouts, too."""
        return self in (
            State.RUNNING,
            State.AWAITING_APPROVAL,
            State.PAUSED,
            State.HELD,
            State.COMPLETED,
        )

    @property
    def exposing(self) -> bool:
        """Whether devices are given documents of the new release."""
        return self in (State.RUNNING, State.AWAITING_APPROVAL, State.COMPLETED)


@final
@attrs.frozen(kw_only=True)
class Record:
    """One rollout.

    Attributes:
        id: Its number.
        model: The model.
        release: Digest of the release.
        release_version: The release's version, for people.
        specification: What was asked for.
        state: Where it stands.
        stage: Index of the stage that is open.
        stage_started_at: When it was opened.
        soak_started_at: When its quantile had committed; None until then.
        waivers: What operators answered for.
        withdrawn: Classes for which the release is in quarantine; `*` for all.
        sites: Windows and budgets by site; a site that is not here is always open and without limit.
        version: Grows with each change: compare and swap.
        salt: Of the cohorts.
    """

    id: int
    model: str
    release: str
    release_version: str = ""
    specification: Specification
    state: State = State.DRAFT
    stage: int = 0
    stage_started_at: int = 0
    soak_started_at: int | None = None
    waivers: tuple[Waiver, ...] = ()
    withdrawn: frozenset[str] = frozenset()
    sites: Mapping[str, Site] = attrs.field(factory=dict)
    version: int = 0
    salt: str = ""

    @property
    def last(self) -> int:
        """Index of the last stage."""
        return len(self.specification.stages) - 1

    def forgiven(self, stage: int, gate: str) -> int:
        """Return how many failures of a gate an operator answered for; 0 if it was not waived."""
        found = [waiver.forgiven for waiver in self.waivers if (waiver.stage, waiver.gate) == (stage, gate)]
        return max(found, default=0)
