"""What is decided of a generation that serves: a pure function, case by case."""

from __future__ import annotations

import attrs
import pytest

from edgeinfer.budget import Budget
from edgeinfer.fleet.device.exchange import AppStatus, ModelStatus
from edgeinfer.fleet.device.histogram import Histogram
from edgeinfer.fleet.device.journal import Boots, SoakRecord
from edgeinfer.fleet.device.options import AgentOptions
from edgeinfer.fleet.device.probe import Sensor
from edgeinfer.fleet.device.soak import Evidence, judge

SILENCE = 60.0
OPTIONS = AgentOptions(soak_s=100.0, soak_requests=50, silence_s=SILENCE)
BUDGET = Budget(latency_p99_ms=10.0, temperature_c=80.0, peak_bytes=10**8)


def evidence(latencies=(), *, seconds=200.0, app=None, **changes) -> Evidence:
    status = ModelStatus(requests=len(latencies), latency_ms=Histogram(latencies), **changes.pop("model", {}))
    apps = (AppStatus(**{"generation": 2, "models": {"m": status}, **(app or {})}),)
    return Evidence(
        number=2,
        record=changes.pop("record", SoakRecord(seconds=seconds)),
        boots=Boots(seconds=1e7),
        apps=apps,
        budgets={"m": BUDGET},
        **changes,
    )


@pytest.mark.parametrize(
    ("found", "ok", "code"),
    [
        (evidence([5.0] * 60), True, ""),
        (evidence([5.0] * 60, seconds=50.0), None, "soaking"),
        (evidence([5.0] * 10), True, "unobserved"),
        (evidence(), True, "unobserved"),
        (evidence([5.0] * 97 + [50.0] * 3, seconds=1.0), False, "latency_p99_ms"),
        (evidence([50.0] * 5, seconds=1.0), False, "latency_p99_ms"),
        (evidence([50.0] * 3, seconds=1.0), None, "soaking"),
        (evidence([50.0] * 3), None, "unclear"),
        (evidence([50.0] * 3, seconds=1000.0), False, "latency_p99_ms"),
        (evidence([50.0, 5.0, 5.0]), True, "unobserved"),
        (evidence([5.0] * 60, model={"errors": 3}), False, "errors"),
        (evidence([], seconds=1.0, model={"errors": 1}), False, "errors"),
        (evidence([5.0] * 60, model={"deadline_misses": 10}), False, "deadline_misses"),
        (evidence(app={"healthy": False, "health_reason": "no parts"}, seconds=1.0), False, "health"),
        (evidence(app={"failed_generation": 2, "failure": "no kernel"}, seconds=1.0), False, "load"),
        (evidence(app={"failed_generation": 1}), True, "unobserved"),
        (evidence(temperature=Sensor(value=81.0, source="cpu"), seconds=1.0), False, "temperature_c"),
        (evidence([5.0] * 60, temperature=Sensor(value=79.0, source="cpu")), True, ""),
        (evidence(grown_bytes=2 * 10**8, seconds=1.0), False, "memory"),
        (evidence(record=SoakRecord(seconds=600.0, unclean=9)), False, "resets"),
        (evidence([5.0] * 60, record=SoakRecord(seconds=600.0, unclean=1)), True, ""),
        (evidence(record=SoakRecord(seconds=10.0, crashes=2)), False, "crash"),
        (evidence([5.0] * 60, record=SoakRecord(seconds=600.0, crashes=1)), True, ""),
        (evidence([5.0] * 60, model={"hangs": 1}, seconds=1.0), False, "hang"),
        (evidence([5.0] * 60, model={"waits_since": 500.0}, now=500.0 + SILENCE + 1), False, "hang"),
        (evidence([5.0] * 60, model={"waits_since": 500.0}, now=500.0 + SILENCE - 1), True, ""),
        (evidence(app={"loads_generation": 2, "loads_since": 5.0}, now=6.0 + SILENCE), False, "hang"),
        (evidence(app={"loads_generation": 1, "loads_since": 5.0}, now=6.0 + SILENCE), True, "unobserved"),
        (evidence(app={"loads_generation": 2, "loads_since": 5.0}, now=6.0, seconds=150.0), None, "loading"),
        (evidence(app={"generation": 1}, seconds=150.0), None, "loading"),
        (evidence(app={"generation": 0}, seconds=150.0), True, "unobserved"),
        (evidence([5.0] * 60, app={"told_at": 5.0}, now=6.0 + SILENCE), False, "hang"),
        (evidence([5.0] * 60, app={"told_at": 5.0}, now=6.0 + SILENCE, disk_full=True), True, ""),
    ],
)
def test_judge(found, ok, code):
    verdict = judge(found, OPTIONS)
    assert (verdict.ok, verdict.code) == (ok, code), verdict


def test_what_an_application_serves_of_another_generation_does_not_count():
    found = evidence([50.0] * 100)
    other = attrs.evolve(found.apps[0], generation=1)
    assert judge(attrs.evolve(found, apps=(other,)), OPTIONS).code == "unobserved"
