"""The facade and the command line over a real repository: signed documents out, reports in."""

from __future__ import annotations

import json
import sqlite3

import pytest

import edgeinfer as ei
from edgeinfer.cli import main
from edgeinfer.errors import FleetError, OptionsError
from edgeinfer.fleet import FailureRate, Stage
from edgeinfer.fleet.device.assignment import verify_assignments
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.reports import Report
from edgeinfer.fleet.device.transport import FolderTransport
from edgeinfer.fleet.device.trust import TrustedRepository
from edgeinfer.fleet.operator.fleet import Fleet
from tests.fleet.toy_fleet import ToyFleet

STAGES = [Stage(count=20), Stage(percent=100)]


@pytest.fixture
def fleet(tmp_path):
    toy = ToyFleet(tmp_path / "fleet")
    found = Fleet(toy.repository, str(tmp_path / "fleet" / "fleet.db"))
    yield found, toy
    found.close()


def enroll(fleet, count=30):
    return {f"d{n}": fleet.devices.add(f"d{n}", device_class="a", site="s") for n in range(count)}


def test_a_rollout_over_a_folder(fleet, tmp_path):
    fleet, toy = fleet
    release = toy.publish("m", "1")
    keys = enroll(fleet)
    rollout = fleet.rollout(release, stages=STAGES, gates=[FailureRate(max=0.14)]).start()
    fleet.tick()
    trusted = TrustedRepository(tmp_path / "cache", [str(toy.public)], root=toy.root, clock=lambda: toy.now)
    trusted.refresh()
    exposed = 0
    for device, key in keys.items():
        transport = FolderTransport(toy.public, device)
        desired = transport.desired(None)
        if desired is None:
            continue
        exposed += 1
        document = verify_assignments(
            desired.data, trusted.assignment_keys, device=device, incarnation=1, floors={}, now=0
        )
        (assignment,) = document.assignments
        assert assignment.release == release.digest
        report = Report(device=device, incarnation=1, sequence=1, at=0, model="m", phase=Phase.COMMITTED,
                        generation=assignment.generation, digest=release.digest)  # fmt: skip
        assert transport.send([report.to_bytes(key)]) == 1
    assert exposed == 20
    fleet.tick()  # reports in: the soak begins
    fleet.tick()  # and is over: the second stage
    fleet.tick()
    assert rollout.record.stage == 1
    assert len(fleet.devices.drifted()) == 10
    assert not list((toy.public / "reports").glob("*/*.json"))
    assert "20 SUCCESS" in str(rollout.status())


def test_a_rollout_that_could_not_see_its_threshold_is_refused(fleet):
    fleet, toy = fleet
    enroll(fleet)
    with pytest.raises(OptionsError, match="59 devices"):
        fleet.rollout(toy.publish("m", "1"), stages=[Stage(percent=100)], gates=[FailureRate(max=0.05)])
    with pytest.raises(FleetError, match="knows no such release"):
        fleet.rollout("0" * 64, stages=STAGES)


def test_quarantine_withdraws_in_metadata_too(fleet, tmp_path):
    fleet, toy = fleet
    release = toy.publish("m", "1")
    enroll(fleet)
    rollout = fleet.rollout(release, stages=STAGES, gates=[FailureRate(max=0.14)]).start()
    fleet.tick()
    fleet.quarantine(release, reason="it counts wrongly")
    fleet.tick()
    assert rollout.state == "ABORTED"
    trusted = TrustedRepository(tmp_path / "cache", [str(toy.public)], root=toy.root, clock=lambda: toy.now)
    trusted.refresh()
    assert (release.digest, "*") in trusted.withdrawn


def test_the_command_line(fleet, tmp_path, capsys):
    fleet, toy = fleet
    release = toy.publish("m", "1")
    enroll(fleet, 40)
    fleet.rollout(release, stages=STAGES, gates=[FailureRate(max=0.14)])
    fleet.close()
    folder = str(tmp_path / "fleet")

    def run(*arguments: str, code: int = 0) -> str:
        assert main(["fleet", *arguments]) == code
        captured = capsys.readouterr()
        return captured.out + captured.err

    stages = ["--stage", "count=20,soak=1h", "--stage", "percent=100", "--gate", "FailureRate:0.14"]
    assert "rollout 2 is planned" in run("rollout", "plan", folder, release.digest[:8], *stages)
    assert "Forecast" in run("rollout", "simulate", folder, "2", "--bad-rate", "0.9")
    assert "rollout 2 is RUNNING" in run("rollout", "start", folder, "2")
    assert "changes" in run("run", folder, "--once")
    assert "RUNNING" in run("rollout", "status", folder, "2")
    assert "20 devices" in run("devices", folder, "--drifted")
    assert json.loads(run("rollout", "status", folder, "--json"))[1]["stages"][0]["exposed"] == 20
    assert "PAUSED" in run("rollout", "pause", folder, "2", "--reason", "lunch")
    assert "reason is needed" in run("rollout", "abort", folder, "2", code=2)
    assert "ABORTED" in run("rollout", "abort", folder, "2", "--reason", "enough")
    assert "enough" in run("rollout", "watch", folder, "2")
    assert "d39" in run("devices", folder)
    assert "0 devices" in run(
        "devices", folder, "--drifted"
    )  # none has anything, and that is what it is to have
    assert json.loads(run("devices", folder, "--drifted", "--json")) == []
    assert "duration" in run(
        "rollout", "plan", folder, release.digest[:8], *stages, "--lease", "soon", code=2
    )
    assert "59 devices" in run("rollout", "plan", folder, release.digest, "--stage", "count=20", code=2)
    assert "no such rollout" in run("rollout", "pause", folder, "9", code=2)
    said = run("site", folder, "s", "--timezone", "Europe/Berlin", "--window", "20:00-06:00,sat,sun",
               "--max-in-flight", "3")  # fmt: skip
    assert said == "site s (Europe/Berlin): 20:00-06:00 sat, sun; 3 at once\n"
    stages = ["--stage", "count=20,shadow=yes", "--stage", "percent=100", "--gate", "FailureRate:0.14"]
    assert "rollout 3 is planned" in run("rollout", "plan", folder, release.digest[:8], *stages)
    assert "RUNNING" in run("rollout", "start", folder, "3")
    assert "withdrawn from all devices" in run("quarantine", folder, release.digest[:8], "--reason", "smoke")
    run("run", folder, "--once")
    assert "ABORTED" in run("rollout", "status", folder, "3")


def test_names_are_where_the_design_has_them():
    for name in ("open", "Stage", "FailureRate", "Rejected", "Regression", "Release", "Rollout", "Fleet"):
        assert getattr(ei.fleet, name) is not None


def test_a_restored_database_learns_from_the_metadata_what_is_withdrawn(fleet, tmp_path):
    fleet, toy = fleet
    release = toy.publish("m", "1")
    enroll(fleet)
    rollout = fleet.rollout(release, stages=STAGES, gates=[FailureRate(max=0.14)]).start()
    file = tmp_path / "fleet" / "fleet.db"
    with sqlite3.connect(file) as live, sqlite3.connect(tmp_path / "backup.db") as backup:
        live.backup(backup)
    fleet.tick()
    fleet.quarantine(release, reason="wrong labels")
    fleet.tick()
    with sqlite3.connect(tmp_path / "backup.db") as backup, sqlite3.connect(file) as live:
        backup.backup(live)
    assert rollout.record.state.value == "RUNNING"
    fleet.tick()
    assert rollout.record.withdrawn == {"*"}
    assert rollout.record.state.value == "ABORTED"
    for path in (toy.public / "desired").glob("*.json"):
        assert release.digest not in path.read_text()
