"""`Regression`: the gate that compares canaries with concurrent controls."""

from __future__ import annotations

from typing import final

import attrs

from edgeinfer.errors import OptionsError
from edgeinfer.fleet.operator.canary import MIN_DEVICES, Comparison, compare_alone, compare_arms
from edgeinfer.fleet.operator.evidence import CANARY, CONTROL, Evidence
from edgeinfer.fleet.operator.metrics import Metric, metric
from edgeinfer.fleet.operator.verdicts import Judgement, Verdict

__all__ = ["Regression"]


@final
@attrs.frozen
class Regression:
    """A figure does not get worse by more than a margin, compared with devices that do not have the release.

    FAIL when the interval's lower bound exceeds the margin, PASS only when its upper bound is below it. The
    entire stage is judged, and each hardware class of at least ten canaries and ten controls for failing.

    Attributes:
        metric: A name of `METRICS`, such as `latency_p99`, `temperature_c` or `errors`.
        margin: What is accepted: a share for ratios (0.05 is 5 %), else in the figure's own unit.

    Raises:
        OptionsError: There is no such metric, or the margin is not a number of at least 0.
    """

    metric: str = attrs.field()
    margin: float = attrs.field(kw_only=True)

    @metric.validator
    def _known(self, _: object, value: str) -> None:
        metric(value)

    @margin.validator
    def _number(self, _: object, value: object) -> None:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1e9:
            raise OptionsError(
                "A margin is refused.",
                where=f"Regression({self.metric!r}, margin=)",
                expected="a number of at least 0",
                found=repr(value),
            )

    @property
    def name(self) -> str:
        """The gate's name."""
        return f"Regression({self.metric})"

    @property
    def needs(self) -> int:
        """The canaries that the interval needs."""
        return MIN_DEVICES

    @property
    def needs_controls(self) -> bool:
        """Whether devices without the release are needed to compare with."""
        return metric(self.metric).reference is None

    def judge(self, evidence: Evidence, *, forgiven: int = 0, alpha: float = 0.01) -> Judgement:
        """Judge a stage; see `Gate`. A failure that an operator answered for is not judged again."""
        if forgiven:
            return self._judgement(Verdict.INCONCLUSIVE, "waived by an operator", applies=False)
        kind = metric(self.metric)
        if not evidence.controls and self.needs_controls:
            return self._judgement(
                Verdict.INCONCLUSIVE, "the last stage has no concurrent controls", applies=False
            )
        threshold = kind.threshold(self.margin)
        share = alpha / (1 + len(evidence.by_class))
        entire = self._compare(evidence, None, share)
        for name in [None, *evidence.by_class]:
            found = entire if name is None else self._compare(evidence, name, share)
            if found.interval is not None and found.interval.low > threshold:
                where = "" if name is None else f" of class {name or '(none)'}"
                return self._judgement(Verdict.FAIL, f"{self.metric}{where}: {_shown(kind, found)}", found)
        if entire.interval is None:
            controls = f" and {entire.controls} controls" if self.needs_controls else ""
            each = " of each" if self.needs_controls else ""
            reason = (
                f"{entire.canaries} canaries{controls} with a change of {self.metric}; "
                f"{MIN_DEVICES}{each} are needed"
            )
            return self._judgement(Verdict.INCONCLUSIVE, reason)
        verdict = Verdict.PASS if entire.interval.high < threshold else Verdict.INCONCLUSIVE
        reason = f"{self.metric}: {_shown(kind, entire)}; the margin is {kind.shown(threshold)}"
        return self._judgement(verdict, reason, entire)

    def _compare(self, evidence: Evidence, device_class: str | None, alpha: float) -> Comparison:
        if not self.needs_controls:
            return compare_alone(evidence.sums(CANARY, self.metric, device_class).changes, alpha)
        canary, control = (evidence.sums(arm, self.metric, device_class).changes for arm in (CANARY, CONTROL))
        return compare_arms(canary, control, alpha)

    def _judgement(
        self, verdict: Verdict, reason: str, found: Comparison | None = None, *, applies: bool = True
    ) -> Judgement:
        figure = found.interval.estimate if found is not None and found.interval is not None else None
        return Judgement(gate=self.name, verdict=verdict, reason=reason, applies=applies, figure=figure)


def _shown(kind: Metric, found: Comparison) -> str:
    if found.interval is None:
        return "unknown"
    low, estimate, high = (
        kind.shown(value) for value in (found.interval.low, found.interval.estimate, found.interval.high)
    )
    controls = f" and {found.controls} controls" if found.controls else ""
    return f"{estimate} ({low} to {high}) on {found.canaries} canaries{controls}"
