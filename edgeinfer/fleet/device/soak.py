"""Whether a new generation serves well: a pure decision over what applications and sensors tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import attrs

from edgeinfer.budget import Budget
from edgeinfer.fleet.device.crash_rate import LIMIT, chance_of, chance_of_slow
from edgeinfer.fleet.device.exchange import AppStatus
from edgeinfer.fleet.device.histogram import Histogram
from edgeinfer.fleet.device.journal import Boots, SoakRecord
from edgeinfer.fleet.device.options import AgentOptions
from edgeinfer.fleet.device.probe import Sensor
from edgeinfer.fleet.device.verdicts import Verdict, check_budget

__all__ = ["Evidence", "Served", "judge", "served"]

# A crash of an application is nearer to its model than a reboot: the second one is enough on a device that
# is not known for it.
_CRASH_LIMIT = 1e-4
_LEAST_EVENTS = 2  # one may always be a coincidence
# Five of five: a model's first inferences are slow, but not so many.
_SLOW_LIMIT = 1e-9
# An application tells once a second; on a busy device it may miss a few.
_QUIET_S = 30.0
# How many times its length a soak may take where few requests come, and most of them too slow.
_LONGEST = 10


@final
@attrs.frozen(kw_only=True, eq=False)
class Served:
    """What all applications together served of one model."""

    requests: int = 0
    errors: int = 0
    misses: int = 0
    latency_ms: Histogram = attrs.field(factory=Histogram)
    confidence: Histogram = attrs.field(factory=Histogram)


@final
@attrs.frozen(kw_only=True)
class Evidence:
    """What is known of a generation in its soak.

    Attributes:
        number: The generation.
        record: How long it has run, and what went down.
        boots: The device's own baseline.
        apps: What the applications that live tell.
        budgets: By the models that are new in it.
        grown_bytes: By how much the applications' memory has grown since they serve it.
        temperature: The highest of now.
        power: Of now.
        now: The system's monotonic clock, in seconds.
        disk_full: Applications may not be able to tell anything.
    """

    number: int
    record: SoakRecord
    boots: Boots
    apps: tuple[AppStatus, ...]
    budgets: Mapping[str, Budget]
    grown_bytes: int = 0
    temperature: Sensor | None = None
    power: Sensor | None = None
    now: float = 0.0
    disk_full: bool = False


def served(apps: tuple[AppStatus, ...], number: int, model: str) -> Served:
    """Return what applications told of a model in a generation."""
    latency, confidence = Histogram(), Histogram()
    requests = errors = misses = 0
    for app in apps:
        status = app.models.get(model)
        if app.generation != number or status is None:
            continue
        requests += status.requests
        errors += status.errors
        misses += status.deadline_misses
        latency.merge(status.latency_ms)
        confidence.merge(status.confidence)
    return Served(requests=requests, errors=errors, misses=misses, latency_ms=latency, confidence=confidence)


def judge(evidence: Evidence, options: AgentOptions) -> Verdict:
    """Decide: any limit that is exceeded is a no; a yes takes the full time and requests that were served.

    Returns:
        A no with its code; a yes; a yes with the code `unobserved` when the time is over and too few
        requests were served to judge the model by them; else that it is not known yet.
    """
    no = (
        _applications(evidence)
        or _hangs(evidence, options.silence_s)
        or _crashes(evidence)
        or _sensors(evidence)
    )
    if no is not None:
        return no
    fewest = options.soak_requests
    for model, budget in evidence.budgets.items():
        found = served(evidence.apps, evidence.number, model)
        no = _model(model, budget, found, evidence.grown_bytes, options)
        if no is not None:
            return no
        fewest = min(fewest, found.requests)
    if evidence.record.seconds < options.soak_s:
        return Verdict.wait("soaking")
    if evidence.record.seconds < options.soak_s + options.silence_s and any(
        _not_yet(app, evidence.number) for app in evidence.apps
    ):
        return Verdict.wait("loading", "an application does not serve it yet")
    if evidence.budgets and fewest < options.soak_requests:
        unclear = _unclear(evidence, options)
        if unclear is not None:
            return unclear
        what = f"{fewest} requests where {options.soak_requests} are needed to judge by them"
        return Verdict.passed("unobserved", what)
    return Verdict.passed()


def _unclear(evidence: Evidence, options: AgentOptions) -> Verdict | None:
    """Wait for more requests where most of the few were too slow; and in the end take that for an answer."""
    for model, budget in evidence.budgets.items():
        found, limit = served(evidence.apps, evidence.number, model), budget.latency_p99_ms
        if limit is None or 2 * found.latency_ms.count_above(limit) <= found.requests:
            continue
        what = f"{model}: most of {found.requests} requests took longer than {limit:.4g} ms"
        if evidence.record.seconds < _LONGEST * options.soak_s:
            return Verdict.wait("unclear", what)
        return Verdict.fail("latency_p99_ms", what)
    return None


def _applications(evidence: Evidence) -> Verdict | None:
    for app in evidence.apps:
        if app.failed_generation == evidence.number:
            return Verdict.fail("load", f"an application could not load it: {app.failure}")
        if not app.healthy and app.generation == evidence.number:
            return Verdict.fail("health", app.health_reason or "an application says that it is not well")
    return None


def _not_yet(app: AppStatus, number: int) -> bool:
    """Whether an application that serves models still has to switch to a generation."""
    return app.loads_generation == number or app.generation not in (0, number)


def _hangs(evidence: Evidence, silence_s: float) -> Verdict | None:
    """Find what does not end: a load, an inference, or an entire application."""
    number = evidence.number
    for app in evidence.apps:
        if app.loads_generation == number and evidence.now - app.loads_since > silence_s:
            took = evidence.now - app.loads_since
            return Verdict.fail("hang", f"an application has been loading it for {took:.0f} s")
        if app.generation != number:
            continue
        quiet = evidence.now - app.told_at
        if app.told_at and quiet > max(silence_s, _QUIET_S) and not evidence.disk_full:
            return Verdict.fail("hang", f"an application has told nothing for {quiet:.0f} s")
        for model in evidence.budgets:
            status = app.models.get(model)
            if status is None:
                continue
            if status.hangs:
                return Verdict.fail(
                    "hang", f"{model}: an inference did not end, and the previous release answered"
                )
            if status.waits_since and evidence.now - status.waits_since > silence_s:
                took = evidence.now - status.waits_since
                return Verdict.fail("hang", f"{model}: an inference has been running for {took:.0f} s")
    return None


def _crashes(evidence: Evidence) -> Verdict | None:
    record, boots = evidence.record, evidence.boots
    resets = chance_of(record.unclean, record.seconds, baseline=boots.unclean, baseline_seconds=boots.seconds)
    if record.unclean >= _LEAST_EVENTS and resets < LIMIT:
        what = f"{record.unclean} resets in {record.seconds:.0f} s, far above this device's own baseline"
        return Verdict.fail("resets", what)
    crashes = chance_of(
        record.crashes, record.seconds, baseline=boots.crashes, baseline_seconds=boots.seconds, unsaved_s=1.0
    )
    if record.crashes >= _LEAST_EVENTS and crashes < _CRASH_LIMIT:
        return Verdict.fail("crash", f"applications crashed {record.crashes} times")
    return None


def _sensors(evidence: Evidence) -> Verdict | None:
    """Hold the sensors against the tightest limit; in a soak a sensor that is absent says nothing."""
    for name, sensor in (("temperature_c", evidence.temperature), ("power_w", evidence.power)):
        limits = [limit for b in evidence.budgets.values() if (limit := getattr(b, name)) is not None]
        if sensor is not None and limits and sensor.value > min(limits):
            verdict = check_budget(Budget(**{name: min(limits)}), {name: sensor.value})
            return Verdict.fail(verdict.code, f"{verdict.detail} ({sensor.source})")
    return None


def _model(
    model: str, budget: Budget, found: Served, grown_bytes: int, options: AgentOptions
) -> Verdict | None:
    total = found.requests + found.errors
    if found.errors and found.errors > options.max_error_rate * total:
        return Verdict.fail("errors", f"{model}: the runtime failed in {found.errors} of {total} requests")
    if budget.peak_bytes is not None and grown_bytes > budget.peak_bytes:
        return Verdict.fail("memory", f"an application grew by {grown_bytes / 1e6:.0f} MB while it served it")
    if found.requests < options.soak_requests:
        return _clearly_slow(model, budget, found)
    if found.misses > options.max_miss_rate * found.requests:
        what = f"{model}: {found.misses} of {found.requests} requests were later than their deadline"
        return Verdict.fail("deadline_misses", what)
    figures = {
        "latency_p50_ms": found.latency_ms.quantile(0.5),
        "latency_p99_ms": found.latency_ms.quantile(0.99),
    }
    limits = {name: limit for name, limit in budget.limits.items() if name in figures}
    verdict = check_budget(Budget.from_dict(limits), figures)
    return None if verdict.ok else Verdict.fail(verdict.code, f"{model}: {verdict.detail}")


def _clearly_slow(model: str, budget: Budget, found: Served) -> Verdict | None:
    """Judge few requests: where hardly one may be late and many are, no more are needed."""
    limit = budget.latency_p99_ms
    if limit is None:
        return None
    slow = found.latency_ms.count_above(limit)
    if chance_of_slow(slow, found.requests) >= _SLOW_LIMIT:
        return None
    return Verdict.fail(
        "latency_p99_ms", f"{model}: {slow} of {found.requests} requests took longer than {limit:.4g} ms"
    )
