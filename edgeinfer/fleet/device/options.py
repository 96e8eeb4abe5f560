"""`AgentOptions`: how patient the agent is, and what it demands of a new model."""

from __future__ import annotations

import math
from typing import Any, final

import attrs

from edgeinfer.budget import parse_bytes
from edgeinfer.errors import OptionsError
from edgeinfer.values import as_frozenset

__all__ = ["AgentOptions"]


def _checked(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    least, most = _RANGES.get(attribute.name, (0.0, math.inf))
    positive = attribute.name not in _MAY_BE_ZERO
    if not (least <= value <= most and (value > 0 or not positive)):
        expected = f"{'more than' if positive and least == 0 else 'from'} {least:g}"
        raise OptionsError(
            "An option of the agent is out of range.",
            where=attribute.name,
            expected=expected + (f" to {most:g}" if most < math.inf else ""),
            found=value,
        )


_RANGES = dict.fromkeys(("min_agreement", "max_error_rate", "max_miss_rate"), (0.0, 1.0)) | {
    "nice": (0.0, 19.0)
}
_MAY_BE_ZERO = frozenset(
    {
        "min_agreement",
        "max_error_rate",
        "max_miss_rate",
        "nice",
        "defer_s",
        "soak_s",
        "keep_free_bytes",
        "download_rate",
    }
)


def _number(default: float) -> float:
    return attrs.field(default=default, validator=_checked)


def _count(default: int) -> int:
    return attrs.field(default=default, validator=_checked)


def _bytes(value: object) -> int:
    return parse_bytes(value, name="keep_free_bytes")


@final
@attrs.frozen(kw_only=True)
class AgentOptions:
    """Options of the agent of a device.

    Attributes:
        poll_s: How often to ask for assignments and to refresh the metadata, in seconds.
        tick_s: How often to look during a soak.
        report_s: How often to report while nothing happens.
        download_rate: How many bytes a second a download takes at most, on average; 0 for no limit.
        keep_free_bytes: How much of the disk stays free.
        staging_runs: How many inferences are timed before a model may serve.
        staging_timeout_s: How long all of that may take.
        silence_s: How long the child may tell nothing: a load or an inference that hangs.
        shadow_requests: How many live requests a shadow compares.
        shadow_timeout_s: How long it waits for them.
        min_agreement: The least share of answers that are those of the running model.
        max_slowdown: How many times slower than the running model, at p99 on the same inputs, it may be.
        defer_s: How long applications may put an activation off.
        soak_s: How long a new generation must serve well before it is committed.
        soak_requests: From how many requests on latency and deadline misses are judged.
        max_error_rate: The largest share of requests in which the runtime fails.
        max_miss_rate: The largest share of requests that miss the application's deadline.
        max_restarts: How often the agent may crash in one update before it gives that up.
        may_lack: Limits of a budget that are let pass where the device has no sensor: `temperature_c`,
            `power_w`.
        nice: How far the staging child steps back behind what serves. 0 times it as it will run.
        max_jump_s: How far above its floor the wall clock is believed.
    """

    poll_s: float = _number(60.0)
    tick_s: float = _number(1.0)
    report_s: float = _number(3_600.0)
    download_rate: float = _number(0.0)
    keep_free_bytes: int = attrs.field(default=32 << 20, converter=_bytes, validator=_checked)
    staging_runs: int = _count(200)
    staging_timeout_s: float = _number(600.0)
    silence_s: float = _number(120.0)
    shadow_requests: int = _count(100)
    shadow_timeout_s: float = _number(3_600.0)
    min_agreement: float = _number(0.9)
    max_slowdown: float = _number(2.0)
    defer_s: float = _number(3_600.0)
    soak_s: float = _number(600.0)
    soak_requests: int = _count(100)
    max_error_rate: float = _number(0.01)
    max_miss_rate: float = _number(0.05)
    max_restarts: int = _count(5)
    may_lack: frozenset[str] = attrs.field(default=frozenset(), converter=as_frozenset)
    nice: int = _count(0)
    max_jump_s: float = _number(3 * 365 * 86_400.0)
