"""The gates that count devices: `FailureRate`, `Rejected`, and `Constraint` for the release's Budget."""

from __future__ import annotations

import math
from typing import Any, ClassVar, final

import attrs

from edgeinfer.errors import OptionsError
from edgeinfer.fleet.operator.detection import binomial_tail, chance_to_see, devices_needed
from edgeinfer.fleet.operator.evidence import CANARY, Evidence
from edgeinfer.fleet.operator.metrics import METRICS
from edgeinfer.fleet.operator.outcomes import Counts, Outcome
from edgeinfer.fleet.operator.verdicts import Judgement, Verdict

__all__ = ["Constraint", "FailureRate", "Rejected"]

# So many failures so early are no chance: stop before the stage is full.
_SURPRISE = 0.01


def _share(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # `confidence` must leave room for doubt, `max` must not be everything; `min_reached` may be all.
    fits = number and value > 0 and (value <= 1 if attribute.name == "min_reached" else value < 1)
    if not fits:
        raise OptionsError(
            "A value of the gate is refused.",
            where=f"{attribute.name}=",
            expected="a share, such as 0.05: above 0 and below 1",
            found=repr(value),
        )


@final
@attrs.frozen
class _Rate:
    """How many of a group went wrong, of how many that could.

    Attributes:
        bad: Devices that went wrong.
        judged: Devices that are known.
        started: Those, and devices that work on it: they have not failed yet.
        possible: Devices that may be known at the end.
    """

    bad: int
    judged: int
    started: int
    possible: int

    @property
    def value(self) -> float | None:
        return self.bad / self.judged if self.judged else None

    def exceeds(self, limit: float, needed: int) -> bool:
        """Whether the rate is above the limit: certainly, on enough devices, or beyond chance.

        A device fails in a minute, and succeeds after its soak. So the first that are decided have failed,
        also of a good release: what has started counts, in order that these are no surprise.
        """
        if self.bad <= limit * self.started:
            return False
        certain = self.bad > limit * self.possible
        return certain or self.started >= needed or self.surprises(limit)

    def surprises(self, limit: float) -> bool:
        """Whether so many bad ones are no chance at a rate that is within the limit."""
        return binomial_tail(self.bad, self.started, limit) < _SURPRISE

    def __str__(self) -> str:
        return f"{self.bad} of {self.judged}" + (f" = {self.value:.1%}" if self.value is not None else "")


def _failures(counts: Counts, forgiven: int = 0) -> _Rate:
    rejected, working = counts.of(Outcome.REJECTED), counts.of(Outcome.ACCEPTED)
    judged = counts.decided - rejected
    return _Rate(max(0, counts.failures - forgiven), judged, judged + working, counts.members - rejected)


def _rejections(counts: Counts, forgiven: int = 0) -> _Rate:
    bad, working = max(0, counts.of(Outcome.REJECTED) - forgiven), counts.of(Outcome.ACCEPTED)
    return _Rate(bad, counts.reached, counts.reached + working, counts.members)


def _judge_rate(gate: _RateGate, evidence: Evidence, forgiven: int) -> Judgement:
    def answer(verdict: Verdict, reason: str, rate: _Rate) -> Judgement:
        return Judgement(gate=gate.name, verdict=verdict, reason=reason, figure=rate.value)

    rate_of = _failures if isinstance(gate, FailureRate) else _rejections
    own, pooled = rate_of(evidence.counts, forgiven), rate_of(evidence.pooled, forgiven)
    # A later stage may be small: it is then judged together with those before it.
    rate = own if evidence.counts.members >= gate.needs else pooled
    limit = f"the limit is {gate.max:.1%}"
    if rate.exceeds(gate.max, gate.needs):
        return answer(Verdict.FAIL, f"{gate.what}: {rate}; {limit}", rate)
    for name, counts in evidence.by_class.items():
        of_class = rate_of(counts)
        if (
            of_class.surprises(gate.max) or (gate.by_class and of_class.exceeds(gate.max, gate.needs))
        ) and not forgiven:
            return answer(Verdict.FAIL, f"{gate.what} of class {name or '(none)'}: {of_class}; {limit}", rate)
    missing = _missing(gate, evidence, pooled.judged)
    if missing:
        return answer(Verdict.INCONCLUSIVE, missing, rate)
    if rate.value is None or rate.value > gate.max:
        return answer(Verdict.INCONCLUSIVE, f"{gate.what}: {rate}; {limit}; too few devices to tell", rate)
    seen = chance_to_see(gate.max, pooled.judged)
    return answer(Verdict.PASS, f"{gate.what}: {rate}; {limit}, seen with {seen:.0%}", rate)


def _missing(gate: _RateGate, evidence: Evidence, judged: int) -> str | None:
    """Say what a stage lacks before its rate can pass; None if nothing."""
    groups = {"": evidence.counts, **(evidence.by_class if gate.by_class else {})}
    for name, counts in groups.items():
        of = f" of class {name}" if name else ""
        if not counts.members:
            return f"no devices{of}"
        wanted = max(1, math.ceil(gate.min_reached * counts.members - 1e-9))
        if counts.reached < wanted:
            return f"{counts.reached} of {counts.members} devices{of} reached; {wanted} must be"
    needed = math.ceil(gate.min_reached * gate.needs - 1e-9)
    return None if judged >= needed else f"{judged} devices judged; {needed} must be"


@attrs.frozen
class _RateGate:
    """What the two gates on a share of the devices have in common."""

    max: float = attrs.field(kw_only=True, validator=_share)
    confidence: float = attrs.field(default=0.95, kw_only=True, validator=_share)
    min_reached: float = attrs.field(default=0.9, kw_only=True, validator=_share)
    by_class: bool = attrs.field(default=False, kw_only=True)

    what: ClassVar[str]

    @property
    def name(self) -> str:
        """The gate's name."""
        return type(self).__name__

    @property
    def needs(self) -> int:
        """Devices that see the rate `max` with `confidence`."""
        return devices_needed(self.max, self.confidence)

    def judge(self, evidence: Evidence, *, forgiven: int = 0, alpha: float = 0.01) -> Judgement:  # noqa: ARG002
        """Judge a stage; see `Gate`."""
        return _judge_rate(self, evidence, forgiven)


@final
@attrs.frozen
class FailureRate(_RateGate):
    """At most this share of the devices fails: (FAILED + ROLLED_BACK + TIMED_OUT) / (decided - REJECTED).

    Attributes:
        max: The highest rate that is accepted.
        confidence: With what probability a release that fails at that rate must be seen.
        min_reached: The share of the stage that must be decided and known before it can pass.
        by_class: Hold for each hardware class, too, each with enough devices. Without it a class still
            fails the stage when its failures are beyond chance.

    Raises:
        OptionsError: A value is not a share.
    """

    what = "failures"


@final
@attrs.frozen
class Rejected(_RateGate):
    """At most this share of the devices that were reached rejects the release: it does not fit them.

    The attributes are those of `FailureRate`.
    """

    what = "rejections"


@final
@attrs.frozen
class Constraint:
    """The devices keep a limit of the release's Budget, as they measure it while they run it.

    Attributes:
        limit: The limit's name, such as `latency_p99_ms`; its value is that of the variant's Budget, class
            by class.
        max: The share of devices that may exceed it.
        confidence: With what probability a release that exceeds it on that share must be seen.

    Raises:
        OptionsError: There is no such limit, no device measures it, or a value is not a share.
    """

    limit: str = attrs.field()
    max: float = attrs.field(default=0.05, kw_only=True, validator=_share)
    confidence: float = attrs.field(default=0.95, kw_only=True, validator=_share)

    @limit.validator
    def _known(self, _: object, value: str) -> None:
        known = [metric.limit for metric in METRICS.values() if metric.limit]
        if value not in known:
            raise OptionsError(
                "Devices do not report what that limit holds for.",
                where="Constraint",
                expected=", ".join(known),
                found=repr(value),
            )

    @property
    def name(self) -> str:
        """The gate's name."""
        return f"Constraint({self.limit})"

    @property
    def metric(self) -> str:
        """The metric that the limit holds for."""
        return next(metric.name for metric in METRICS.values() if metric.limit == self.limit)

    @property
    def needs(self) -> int:
        """Devices that see the share `max` with `confidence`."""
        return devices_needed(self.max, self.confidence)

    def judge(self, evidence: Evidence, *, forgiven: int = 0, alpha: float = 0.01) -> Judgement:  # noqa: ARG002
        """Judge a stage; see `Gate`."""
        sums = evidence.sums(CANARY, self.metric)
        rate = _Rate(max(0, sums.over - forgiven), sums.limited, sums.limited, evidence.counts.members)
        # As many devices as the stage has, where a later stage is small.
        needed = max(1, min(self.needs, math.ceil(0.9 * evidence.counts.of(Outcome.SUCCESS))))
        if rate.exceeds(self.max, needed):
            verdict, tail = Verdict.FAIL, f"; at most {self.max:.1%} may"
        elif rate.judged < needed or rate.value is None:
            verdict, tail = Verdict.INCONCLUSIVE, f"; {needed} devices must have measured it"
        elif rate.value > self.max:
            verdict, tail = Verdict.INCONCLUSIVE, "; too few devices to tell"
        else:
            verdict, tail = Verdict.PASS, f"; at most {self.max:.1%} may"
        return Judgement(
            gate=self.name, verdict=verdict, reason=f"over {self.limit}: {rate}{tail}", figure=rate.value
        )
