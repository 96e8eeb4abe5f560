"""A model that is slow, wrong, crashing, hanging, leaking or hot is refused or taken back; nobody notices."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgeinfer.budget import Budget
from edgeinfer.devices.probe.tree import Tree
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.probe import SystemProbe
from edgeinfer.fleet.device.staging import ProcessChecker
from tests.fleet.device.kit import (
    Client,
    PassingChecker,
    Shelf,
    assign,
    drive,
    faulty_folder,
    make_agent,
    running,
)

pytestmark = pytest.mark.usefixtures("faulty_backend")
BUDGET = Budget(latency_p99_ms=15.0, peak_bytes="400 MB")


class Children(ProcessChecker):
    """Tries models in real child processes, but does not load every runtime for the facts."""

    def facts(self):
        return PassingChecker().facts()


@pytest.fixture
def device(tmp_path: Path):
    """An agent that tries models in child processes, a repository, and version 1 running."""
    shelf = Shelf(tmp_path / "repo")
    agent = make_agent(
        tmp_path / "dev",
        shelf,
        options={"soak_requests": 40, "silence_s": 4.0, "staging_runs": 150, "poll_s": 0.05},
    )
    shelf.desire(assign(shelf.publish(artifact=faulty_folder()), 1))
    assert drive(agent) is Phase.COMMITTED
    agent.device.checker = Children(SystemProbe())
    with agent:
        yield agent, shelf


def update(agent, shelf: Shelf, fault: str, after: int = 0, budget: Budget = BUDGET) -> Phase:
    release = shelf.publish(version="2", artifact=faulty_folder(2.0, fault, after), budget=budget)
    shelf.desire(assign(release, 2), at=1_800_000_010)
    phase = agent.step()
    while (
        phase is not agent.phase
        or not phase.final
        or agent.device.state.update.changes[0].generation != (1, 2)
    ):
        time.sleep(0.005)
        phase = agent.step()
    return phase


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("slow", "latency_p99_ms"),
        ("wrong", "golden"),
        ("crash", "crash"),
        ("crash_at_load", "crash"),
        ("hang", "hang"),
        ("leak", "leak"),
        ("huge", "peak_bytes"),
        ("error", "inference"),
        ("fails_to_load", "load"),
    ],
)
def test_staging_refuses(device, fault, code):
    agent, shelf = device
    with Client(agent.device.root) as client:
        assert update(agent, shelf, fault) is Phase.REJECTED
    assert agent.device.state.update.code == code, agent.device.state.update
    assert running(agent.device.root) == {"m": "1"}
    assert client.failed == []
    assert set(client.answered) == {"1"}
    # It is quarantined: assigned once more, it is not even tried.
    (release,) = [r for r in shelf.releases.values() if r.version == "2"]
    shelf.desire(assign(release, 3), at=1_800_000_020)
    assert drive(agent) is Phase.REJECTED
    assert agent.device.state.update.code == "quarantined"


@pytest.mark.parametrize(
    ("fault", "code"), [("slow", "latency_p99_ms"), ("error", "errors"), ("leak", "memory")]
)
def test_a_soak_takes_back_what_staging_could_not_see(device, fault, code):
    agent, shelf = device
    budget = Budget(peak_bytes="200 MB") if fault == "leak" else BUDGET
    with Client(agent.device.root) as client:
        agent.device.options = type(agent.device.options)(
            soak_s=20.0, soak_requests=40, poll_s=0.2, tick_s=0.01, staging_runs=30
        )
        # Fewer than staging asks, it is well: 30 runs, 10 to warm up, 1 golden.
        assert update(agent, shelf, fault, 60, budget) is Phase.ROLLED_BACK
        time.sleep(0.2)
    assert agent.device.state.update.code == code, agent.device.state.update
    assert running(agent.device.root) == {"m": "1"}
    assert client.failed == []
    assert set(client.answered) == {"1", "2"}


def test_a_hot_model_is_refused_and_a_hot_device_waits(tmp_path):
    """The thermal zone is made up: a folder with files like those of /sys, and the report says so."""
    zone = tmp_path / "sys" / "class" / "thermal" / "thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("fake-thermal")
    (zone / "temp").write_text("50000")
    probe = SystemProbe(Tree(tmp_path))
    shelf = Shelf(tmp_path / "repo")
    hot = shelf.publish(artifact=faulty_folder(), budget=Budget(temperature_c=70.0))

    class Heating(Children):
        def stage(self, request, alive):
            (zone / "temp").write_text("91000")
            return super().stage(request, alive)

    shelf.desire(assign(hot, 1))
    with make_agent(tmp_path / "dev", shelf, probe=probe, checker=Heating(MixedProbe(probe))) as agent:
        (zone / "temp").write_text("75000")
        for _ in range(4):
            phase = agent.step()
        assert (phase, agent.device.waiting) == (Phase.PRECHECK, "temperature")
        assert str(tmp_path) in agent.device.state.update.detail
        (zone / "temp").write_text("50000")
        assert drive(agent) is Phase.REJECTED
        assert agent.device.state.update.code == "temperature_c"
    assert running(tmp_path / "dev") == {}


class MixedProbe:
    """The made-up sensors, and the real processes."""

    def __init__(self, sensors: SystemProbe) -> None:
        self.temperature_c, self.power_w = sensors.temperature_c, sensors.power_w
        self.process = SystemProbe().process


def test_an_application_that_is_not_well_takes_the_model_back(device):
    agent, shelf = device
    with Client(agent.device.root) as client:
        agent.device.options = type(agent.device.options)(
            soak_s=20.0, poll_s=0.2, tick_s=0.01, staging_runs=30
        )
        release = shelf.publish(version="2", artifact=faulty_folder(2.0))
        shelf.desire(assign(release, 2), at=1_800_000_010)
        drive(agent, until=Phase.SOAKING)
        while client.application.generation != 2:
            time.sleep(0.01)
        client.application.report_health(False, "no more parts are found")
        assert drive(agent, steps=1000) is Phase.ROLLED_BACK
        client.application.report_health(True)
    assert agent.device.state.update.code == "health"
    assert client.failed == []
