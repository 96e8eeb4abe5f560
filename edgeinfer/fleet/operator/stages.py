"""`Stage`: one step of a rollout: which devices, how fast, and how long they are watched."""

from __future__ import annotations

import math
from typing import Any, final

import attrs

from edgeinfer.errors import OptionsError
from edgeinfer.fleet.operator.durations import format_duration, parse_duration

__all__ = ["Stage"]


def _seconds(value: object) -> Any:
    return None if value is None else parse_duration(value, name="Stage")


def _within(low: float, high: float, *, strict: bool = False) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is None:
            return
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not (low < value <= high if strict else low <= value <= high):
            raise OptionsError(
                "A value of the stage is refused.",
                where=f"Stage({attribute.name}=)",
                expected=f"{'more than' if strict else 'at least'} {low:g}, at most {high:g}",
                found=repr(value),
            )

    return check


@final
@attrs.frozen(kw_only=True)
class Stage:
    """One step of a rollout.

    `count` and `percent` are totals: the devices of this stage and of all before it. With `group` they are
    the share of the group that this stage takes; without them it takes the entire group.

    Attributes:
        count: How many devices have been reached when the stage is done.
        percent: The same in percent of the rollout's devices, above 0 and up to 100.
        group: Only devices of this group: `class=NAME`, `site=NAME`, `LABEL=VALUE`, or a label's name.
        soak: How long the stage is watched once its quantile has committed: seconds, or text such as `6h`.
        quantile: The share of the stage that must have committed before the soak begins, in (0, 1].
        min_per_class: At least so many devices of each hardware class, beyond `count` if need be.
        per_hour: At most so many new devices an hour; None: as many as the sites' budgets allow.
        growth: By what the rate is multiplied each hour, at least 1.
        timeout: A device that accepted and was silent for so long is TIMED_OUT.
        deadline: If the stage has not passed its gates after so long, the rollout pauses.
        needs_approval: Wait for `approve()` before the stage begins.
        shadow: The release first runs beside the present one, on live requests that the present one answers.
            Devices whose applications serve too few requests report `shadow_no_data`, and fail.

    Raises:
        OptionsError: A value is out of its range, or no device is asked for.
    """

    count: int | None = attrs.field(default=None, validator=_within(1, 10**9))
    percent: float | None = attrs.field(default=None, validator=_within(0, 100, strict=True))
    group: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.min_len(1))
    )
    soak: int = attrs.field(default=0, converter=_seconds)
    quantile: float = attrs.field(default=0.9, validator=_within(0, 1, strict=True))
    min_per_class: int = attrs.field(default=0, validator=_within(0, 10**9))
    per_hour: float | None = attrs.field(default=None, validator=_within(0, 10**9, strict=True))
    growth: float = attrs.field(default=1.0, validator=_within(1, 1000))
    timeout: int = attrs.field(default=86_400, converter=_seconds)
    deadline: int | None = attrs.field(default=None, converter=_seconds)
    needs_approval: bool = False
    shadow: bool = False

    def __attrs_post_init__(self) -> None:
        """Refuse a stage that asks for nothing, or for two things."""
        asked = [name for name in ("count", "percent") if getattr(self, name) is not None]
        if len(asked) == 2 or not (asked or self.group):
            raise OptionsError(
                "A stage takes devices by count, by percent or by group.",
                where="Stage",
                expected="one of count= and percent=, with or without group=; or group= alone",
                found=", ".join(asked) or "none of them",
            )

    def size(self, total: int, taken: int, pool: int) -> int:
        """Return how many devices this stage takes.

        Args:
            total: The devices of the rollout.
            taken: Those of earlier stages.
            pool: Those that are left, of the stage's group.
        """
        base, before = (pool, 0) if self.group else (total, taken)
        if self.count is not None:
            wanted = self.count - before
        elif self.percent is not None:
            wanted = math.ceil(base * self.percent / 100 - 1e-9) - before
        else:
            wanted = pool
        return min(max(wanted, 0), pool)

    def allowance(self, elapsed: float) -> float:
        """Return how many devices the ramp allows to be exposed after `elapsed` seconds; at least one."""
        if self.per_hour is None:
            return math.inf
        hours = max(elapsed, 0.0) / 3600
        done = math.floor(hours)
        if self.growth == 1.0:
            allowed = self.per_hour * hours
        else:
            growth = self.growth ** min(done, 200)
            allowed = self.per_hour * ((growth - 1) / (self.growth - 1) + growth * (hours - done))
        return max(1, math.floor(allowed))

    def describe(self) -> str:
        """Return the stage in a few words, such as `59 devices, soak 6h`."""
        share = f"{self.percent:g} %" if self.percent is not None else None
        number = f"{self.count} devices" if self.count is not None else share
        parts = [" of ".join(part for part in (number, self.group) if part)]
        if self.soak:
            parts.append(f"soak {format_duration(self.soak)}")
        if self.shadow:
            parts.append("in shadow first")
        if self.needs_approval:
            parts.append("after approval")
        return ", ".join(parts)
