"""What a gate says: PASS, FAIL or INCONCLUSIVE. No data is never PASS."""

from __future__ import annotations

import enum
from typing import Protocol, final

import attrs

from edgeinfer.fleet.operator.evidence import Evidence

__all__ = ["Gate", "Judgement", "Verdict", "Waiver"]


class Verdict(str, enum.Enum):
    """What a gate says of a stage."""

    PASS = "PASS"  # noqa: S105 (no password)
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@final
@attrs.frozen(kw_only=True)
class Judgement:
    """A verdict and why.

    Attributes:
        gate: The gate's name, such as `FailureRate`.
        verdict: What it says.
        reason: Why, with the figures.
        applies: False where the gate cannot be judged at all in this stage, such as a comparison with
            controls in the last one. It then neither passes nor holds the stage up.
        figure: The figure that was judged, if there is one.
    """

    gate: str
    verdict: Verdict
    reason: str
    applies: bool = True
    figure: float | None = None


@final
@attrs.frozen(kw_only=True)
class Waiver:
    """What an operator answered for: a gate's failure that no longer stops a stage.

    Attributes:
        stage: The stage.
        gate: The gate's name.
        forgiven: Failures that are no longer counted against the stage. New ones are.
    """

    stage: int
    gate: str
    forgiven: int = 0


class Gate(Protocol):
    """What must hold for a rollout to go on. Gates are frozen values."""

    @property
    def name(self) -> str:
        """A name that is unique within the rollout."""
        ...

    @property
    def needs(self) -> int:
        """How many devices the first stage must have for the gate to detect its own threshold."""
        ...

    def judge(self, evidence: Evidence, *, forgiven: int = 0, alpha: float = 0.01) -> Judgement:
        """Judge a stage.

        Args:
            evidence: What is known of it.
            forgiven: Failures that an operator answered for.
            alpha: This gate's share of the rollout's probability of a false alarm.
        """
        ...
