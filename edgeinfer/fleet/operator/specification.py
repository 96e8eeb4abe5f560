"""What an operator asks of a rollout, and the refusal of what could not notice its own threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, final

import attrs

from edgeinfer.errors import OptionsError
from edgeinfer.fleet.operator.canary import MIN_DEVICES
from edgeinfer.fleet.operator.cohorts import Candidate
from edgeinfer.fleet.operator.durations import parse_duration
from edgeinfer.fleet.operator.gates import Constraint, FailureRate, Rejected
from edgeinfer.fleet.operator.regression import Regression
from edgeinfer.fleet.operator.stages import Stage
from edgeinfer.values import as_tuple

__all__ = ["AnyGate", "Specification", "check_cohorts"]

AnyGate: TypeAlias = "FailureRate | Rejected | Regression | Constraint"
_GATES: dict[str, Any] = {gate.__name__: gate for gate in (FailureRate, Rejected, Regression, Constraint)}


def _seconds(value: object) -> int:
    return parse_duration(value, name="lease")


def _gates(gates: Sequence[AnyGate]) -> tuple[AnyGate, ...]:
    """Add the gates that every rollout has: a failure rate, and a limit of rejections."""
    found = tuple(gates)
    for gate in found:
        if type(gate) not in _GATES.values():
            raise OptionsError("That is not a gate.", expected=", ".join(_GATES), found=repr(gate))
    rate = next((gate for gate in found if isinstance(gate, FailureRate)), None)
    if rate is None:
        rate = FailureRate(max=0.05)
        found = (rate, *found)
    if not any(isinstance(gate, Rejected) for gate in found):
        found += (Rejected(max=rate.max, confidence=rate.confidence, min_reached=rate.min_reached),)
    return found


@final
@attrs.frozen(kw_only=True)
class Specification:
    """Stages, gates, and what happens when a gate fails.

    Attributes:
        stages: In their order.
        gates: What must hold in each stage. A `FailureRate` of 5 % is added where there is none, and a
            `Rejected` of the same limit.
        on_fail: `rollback` takes the release back from all devices, `pause` waits for an operator.
        priority: Of rollouts of one model, the one with the higher priority takes a device over.
        lease: How long a device may wait before it starts on its document (seconds, or text like `24h`).
        retries: How often a retryable failure is tried again on a device before it counts.
        alpha: The probability of a false alarm, over all comparisons, stages and looks.

    Raises:
        OptionsError: A value is refused, or a gate could not detect its own threshold.
    """

    stages: tuple[Stage, ...] = attrs.field(converter=as_tuple)
    gates: tuple[AnyGate, ...] = attrs.field(default=(), converter=_gates)
    on_fail: str = attrs.field(default="rollback")
    priority: int = 0
    lease: int = attrs.field(default=86_400, converter=_seconds)
    retries: int = attrs.field(default=2, validator=attrs.validators.ge(0))
    alpha: float = attrs.field(default=0.01, validator=[attrs.validators.gt(0), attrs.validators.lt(1)])

    @on_fail.validator
    def _known(self, _: object, value: object) -> None:
        if value not in ("rollback", "pause"):
            raise OptionsError(
                "What is to be done on a failure?",
                where="on_fail=",
                expected="rollback or pause",
                found=repr(value),
            )

    @stages.validator
    def _stages(self, _: object, value: tuple[object, ...]) -> None:
        if not value or not all(isinstance(stage, Stage) for stage in value):
            raise OptionsError(
                "A rollout has stages.",
                where="stages=",
                expected="Stage(...), one or more",
                found=repr(value),
            )

    def __attrs_post_init__(self) -> None:
        """Refuse what cannot work, whatever the fleet is."""
        names = [gate.name for gate in self.gates]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise OptionsError("A gate is given twice.", where="gates=", found=", ".join(twice))
        first = self.stages[0]
        if first.count is not None and not first.min_per_class:
            for gate in self.gates:
                _check_size(gate, first.count, "stage 1")
        if any(map(_needs_controls, self.gates)) and len(self.stages) == 1:
            raise OptionsError(
                "A comparison with devices that do not have the release needs a stage after the first.",
                where="stages=",
                expected="at least two stages",
                found="one",
            )

    @property
    def alpha_each(self) -> float:
        """Each comparison's share of `alpha`: one for each metric and each stage that has controls."""
        comparisons = sum(isinstance(gate, Regression) for gate in self.gates)
        return self.alpha / max(1, comparisons * (len(self.stages) - 1))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        values = attrs.asdict(self)
        values["gates"] = [{"kind": type(gate).__name__, **attrs.asdict(gate)} for gate in self.gates]
        values["stages"] = [attrs.asdict(stage) for stage in self.stages]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Specification:
        """Read what `to_dict` wrote."""
        gates = [_gate(gate) for gate in values["gates"]]
        return cls(**{**values, "gates": gates, "stages": [Stage(**stage) for stage in values["stages"]]})


def _gate(values: Mapping[str, Any]) -> AnyGate:
    fields = dict(values)
    kind = _GATES[fields.pop("kind")]
    first = {Regression: "metric", Constraint: "limit"}.get(kind)
    gate: AnyGate = kind(fields.pop(first), **fields) if first else kind(**fields)
    return gate


def check_cohorts(specification: Specification, cohorts: Sequence[Sequence[Candidate]]) -> None:
    """Refuse a rollout whose stages are too small for its gates in this fleet.

    Args:
        specification: What is asked for.
        cohorts: The devices of each stage.

    Raises:
        OptionsError: A stage has no devices, or the first has too few for a gate; with the number needed.
    """
    for number, cohort in enumerate(cohorts, 1):
        if not cohort:
            raise OptionsError(
                f"Stage {number} has no devices: the stages before it take all that it could.",
                where=f"stages[{number - 1}]: {specification.stages[number - 1].describe()}",
                hint="`count` and `percent` are totals of the stages so far.",
            )
    first = cohorts[0]
    classes = sorted({candidate.device_class for candidate in first})
    for gate in specification.gates:
        _check_size(gate, len(first), "stage 1")
        for name in classes if getattr(gate, "by_class", False) else ():
            size = sum(candidate.device_class == name for candidate in first)
            _check_size(gate, size, f"class {name or '(none)'} in stage 1")
    controls = sum(len(cohort) for cohort in cohorts[1:])
    if any(map(_needs_controls, specification.gates)) and controls < MIN_DEVICES:
        raise OptionsError(
            "There are too few devices to compare with.",
            where="the stages after the first",
            expected=f"at least {MIN_DEVICES} devices",
            found=controls,
        )


def _needs_controls(gate: AnyGate) -> bool:
    return isinstance(gate, Regression) and gate.needs_controls


def _check_size(gate: AnyGate, size: int, where: str) -> None:
    if size >= gate.needs:
        return
    if isinstance(gate, Regression):
        hint = None
    else:
        least = 1 - (1 - gate.confidence) ** (1 / max(size, 1))
        hint = f"{size} devices could see {least:.1%}."
    raise OptionsError(
        f"{gate.name} cannot detect its own threshold: it needs {gate.needs} devices.",
        where=where,
        expected=f"at least {gate.needs} devices",
        found=f"{size} devices",
        hint=hint,
        facts={"needed": gate.needs, "found": size},
    )
