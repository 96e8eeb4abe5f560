"""The agent of a device: what it accepts, in which order it acts, and what it does after a loss."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from edgeinfer.budget import Budget
from edgeinfer.fleet.device.agent import Agent
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.probe import SystemProbe
from edgeinfer.fleet.device.transport import MemoryTransport
from edgeinfer.fleet.device.verdicts import Verdict
from edgeinfer.fleet.errors import AgentBusyError, LocationError
from tests.fleet.device.kit import (
    DEVICE,
    NOW,
    FailingTransport,
    PassingChecker,
    Shelf,
    artifact_folder,
    assign,
    drive,
    installed,
    make_agent,
    reports,
    running,
    second,
)


def test_installs_updates_and_reports(folder, shelf):
    transport = MemoryTransport()
    agent = make_agent(folder, shelf, transport)
    transport.put(shelf.document(assign(shelf.publish(), 1)))
    assert drive(agent) is Phase.COMMITTED
    assert running(folder) == {"m": "1"}
    transport.put(shelf.document(assign(second(shelf), 2), at=NOW + 1))
    assert drive(agent) is Phase.COMMITTED
    assert running(folder) == {"m": "2"}
    found = reports(transport, agent)
    assert [report.sequence for report in found] == sorted({report.sequence for report in found})
    last = [report.phase for report in found if report.generation == (1, 2)]
    assert last[0] is Phase.ACCEPTED
    assert last[-1] is Phase.COMMITTED
    assert found[-1].digest == agent.device.running().models["m"].release
    assert agent.status().models["m"].version == "2"


def test_models_of_one_generation_switch_together_or_not_at_all(folder, shelf):
    checker = PassingChecker()
    agent = make_agent(folder, shelf, checker=checker)
    shelf.desire(*(assign(shelf.publish(model), 1) for model in "ab"))
    assert drive(agent) is Phase.COMMITTED
    assert running(folder) == {"a": "1", "b": "1"}
    checker.verdicts = {"b": Verdict.fail("golden", "another answer")}
    newer = [shelf.publish(model, "2", artifact_folder(2.0)) for model in "ab"]
    shelf.desire(*(assign(release, 2) for release in newer), at=NOW + 1)
    assert drive(agent) is Phase.REJECTED
    assert running(folder) == {"a": "1", "b": "1"}
    # Only the one that was to blame is quarantined.
    assert set(agent.device.state.quarantine) == {newer[1].digest}
    shelf.desire(assign(newer[0], 3), at=NOW + 2)
    assert drive(agent) is Phase.COMMITTED
    assert running(folder) == {"a": "2", "b": "1"}


def test_a_model_is_taken_away(folder, shelf):
    agent = make_agent(folder, shelf)
    shelf.desire(*(assign(shelf.publish(model), 1) for model in "ab"))
    drive(agent)
    shelf.desire(assign(None, 2, model="a"), at=NOW + 1)
    assert drive(agent) is Phase.COMMITTED
    assert running(folder) == {"b": "1"}


def test_what_is_older_or_for_others_or_not_signed_changes_nothing(folder, shelf):
    transport = MemoryTransport()
    agent = make_agent(folder, shelf, transport)
    first, newer = shelf.publish(), second(shelf)
    transport.put(shelf.document(assign(first, 5)))
    drive(agent)
    good = json.loads(shelf.document(assign(newer, 6), at=NOW + 1))
    good["signed"]["assignments"][0]["generation"] = [1, 7]
    forged = json.dumps(good, sort_keys=True, separators=(",", ":")).encode()
    attacks = {
        "ReplayedAssignmentError": shelf.document(assign(newer, 4), at=NOW + 2),
        "BadSignatureError": forged,
        "DocumentError": b"{}" + b" " * 100,
        "FleetError": shelf.document(assign(first, 5), at=NOW - 100),
    }
    for code, document in attacks.items():
        transport.put(document)
        for _ in range(3):
            assert agent.step() is Phase.COMMITTED
        assert running(folder) == {"m": "1"}
        assert reports(transport, agent)[-1].code == code


def test_from_verified_on_no_network_and_no_metadata_are_needed(folder, shelf):
    class Gone(Shelf):
        def refresh(self):
            raise LocationError("No network.")

        def release(self, model, version, digest):
            raise LocationError("No network.")

    agent = installed(folder, shelf)
    shelf.desire(assign(second(shelf), 2), at=NOW + 1)
    drive(agent, until=Phase.VERIFIED)
    kill(agent)
    agent = make_agent(folder, Gone(shelf.folder), FailingTransport())
    assert drive(agent) is Phase.COMMITTED
    assert running(folder) == {"m": "2"}
    agent.close()


def test_a_lease_that_ends_before_the_activation_ends_the_update(folder, shelf):
    now = [float(NOW)]
    agent = installed(folder, shelf, clock=lambda: now[0])
    shelf.desire(assign(second(shelf), 2, start_before=NOW + 100), at=NOW + 1)
    drive(agent, until=Phase.STAGED)
    now[0] += 200
    assert drive(agent) is Phase.FAILED
    assert agent.device.state.update.code == "lease"
    assert running(folder) == {"m": "1"}
    assert agent.device.state.quarantine == {}  # it is no fault of the release


def test_a_document_that_ran_out_is_reported_once_however_often_it_is_seen(folder, shelf):
    now, transport = [float(NOW)], MemoryTransport()
    agent = make_agent(folder, shelf, transport, clock=lambda: now[0])
    transport.put(shelf.document(assign(shelf.publish(), 1)))
    assert drive(agent) is Phase.COMMITTED
    transport.put(shelf.document(assign(second(shelf), 2, start_before=NOW + 10), at=NOW + 1))
    for _ in range(5):
        now[0] += 60
        agent.step()
        time.sleep(0.002)
    assert running(folder) == {"m": "1"}
    assert [report.code for report in reports(transport, agent)].count("ExpiredLeaseError") == 1


def test_a_later_assignment_ends_an_update_and_so_does_its_revocation(folder, shelf):
    agent = installed(folder, shelf)
    shelf.desire(assign(second(shelf), 2), at=NOW + 1)
    drive(agent, until=Phase.STAGED)
    time.sleep(0.002)
    shelf.desire(assign(shelf.publish(version="3", artifact=artifact_folder(3.0)), 3), at=NOW + 2)
    assert agent.step() is Phase.SUPERSEDED
    drive(agent, until=Phase.VERIFIED)
    time.sleep(0.002)
    shelf.desire(at=NOW + 3)
    assert agent.step() is Phase.SUPERSEDED
    assert agent.device.state.update.code == "revoked"
    assert running(folder) == {"m": "1"}


def test_an_abort_in_the_soak_goes_back_at_once(folder, shelf):
    agent = installed(folder, shelf)
    agent.device.options = type(agent.device.options)(soak_s=1000, poll_s=0.001)
    shelf.desire(assign(second(shelf), 2), at=NOW + 1)
    drive(agent, until=Phase.SOAKING)
    assert running(folder) == {"m": "2"}
    first = next(release for release in shelf.releases.values() if release.version == "1")
    time.sleep(0.002)
    shelf.desire(assign(first, 3), at=NOW + 2)
    assert drive(agent) is Phase.ROLLED_BACK
    assert running(folder) == {"m": "1"}
    assert agent.device.state.quarantine == {}
    assert drive(agent) is Phase.COMMITTED
    assert agent.device.state.update.code == "already"


def test_a_withdrawn_release_is_not_installed_and_not_kept(folder, shelf):
    agent = installed(folder, shelf)
    release = second(shelf)
    shelf.withdrawn = frozenset({(release.digest, "*")})
    shelf.desire(assign(release, 2), at=NOW + 1)
    assert drive(agent) is Phase.REJECTED
    shelf.withdrawn = frozenset()
    shelf.desire(assign(release, 3), at=NOW + 2)
    assert drive(agent) is Phase.COMMITTED
    shelf.withdrawn = frozenset({(release.digest, agent.device.device_class())})
    assert drive(agent) is Phase.ROLLED_BACK
    assert running(folder) == {"m": "1"}


def test_an_interface_that_no_application_accepts_and_a_missing_stepping_stone_are_refused(folder, shelf):
    from edgeinfer.fleet.device.application import connect

    agent = installed(folder, shelf)
    with connect(folder) as application:
        application.model("m", accepts="m/1")
        shelf.desire(assign(second(shelf, interface="m/2"), 2), at=NOW + 1)
        assert drive(agent) is Phase.REJECTED
        assert agent.device.state.update.code == "interface"
    third = shelf.publish(version="3", artifact=artifact_folder(3.0), requires="2")
    shelf.desire(assign(third, 3), at=NOW + 2)
    assert drive(agent) is Phase.REJECTED
    assert agent.device.state.update.code == "stepping_stone"
    shelf.desire(assign(second(shelf), 4), at=NOW + 3)
    assert drive(agent) is Phase.COMMITTED
    shelf.desire(assign(third, 5), at=NOW + 4)
    assert drive(agent) is Phase.COMMITTED


def test_an_application_defers_the_activation_up_to_a_deadline(folder, shelf):
    from edgeinfer.fleet.device.application import connect

    now = [float(NOW)]
    agent = installed(folder, shelf, clock=lambda: now[0], options={"defer_s": 50.0})
    with connect(folder) as application:
        application.model("m")
        application.defer(3600)
        shelf.desire(assign(second(shelf), 2), at=NOW + 1)
        for _ in range(20):
            agent.step()
        assert (agent.phase, agent.device.waiting) == (Phase.READY, "deferred")
        # A restart does not begin the time anew.
        agent.close()
        agent = make_agent(folder, shelf, clock=lambda: now[0], options={"defer_s": 50.0})
        now[0] += 40
        for _ in range(20):
            agent.step()
        assert agent.phase is Phase.READY
        now[0] += 20
        assert drive(agent) is Phase.COMMITTED
    agent.close()


@pytest.mark.parametrize("wrong", [0.0, 4e9])
def test_a_wrong_clock_blocks_what_ends_at_a_time_and_nothing_else(folder, shelf, wrong):
    now = [float(NOW)]
    agent = installed(folder, shelf, clock=lambda: now[0])
    agent.device.clock.raise_floor(NOW)  # signed metadata told so
    agent.close()
    now[0] = wrong
    agent = make_agent(folder, shelf, clock=lambda: now[0])
    shelf.desire(assign(second(shelf), 2, start_before=NOW + 1000), at=NOW + 1)
    for _ in range(6):
        agent.step()
    assert (agent.phase, agent.device.waiting) == (Phase.PRECHECK, "clock")
    assert running(folder) == {"m": "1"}
    now[0] = NOW + 10.0
    assert drive(agent) is Phase.COMMITTED
    agent.close()


def test_the_command_line_tells_the_status(folder, shelf, capsys):
    from edgeinfer.cli import main

    installed(folder, shelf).close()
    assert main(["agent", "status", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["device"], found["generation"], found["phase"]) == (DEVICE, 1, "committed")
    assert found["models"]["m"]["version"] == "1"
    assert main(["agent", "status", str(folder / "nowhere")]) == 0
    assert "never ran here" in capsys.readouterr().out
    assert main(["agent", "run", str(folder), "--source", "x", "--option", "soak_s=-1"]) == 2
    assert "soak_s" in capsys.readouterr().err
    assert main(["agent", "run", str(folder), "--source", "x", "--option", "sock_s=1"]) == 2
    assert "no such option" in capsys.readouterr().err


def test_one_agent_in_a_folder(folder, shelf):
    with make_agent(folder, shelf), pytest.raises(AgentBusyError, match="Another agent"):
        make_agent(folder, shelf)
    make_agent(folder, shelf).close()


def kill(agent: Agent) -> None:
    """Let the agent go as a kill does: it writes nothing more."""
    agent._started = False
    agent.close()


def test_a_first_install_with_nothing_to_go_back_to_serves_on_degraded(folder, shelf):
    agent = make_agent(folder, shelf, probe=Heating())
    shelf.desire(assign(shelf.publish(budget=Budget(temperature_c=60.0)), 1))
    Heating.value = 50.0
    drive(agent, until=Phase.SOAKING)
    Heating.value = 90.0
    assert drive(agent) is Phase.DEGRADED
    assert running(folder) == {"m": "1"}
    Heating.value = 50.0
    shelf.desire(assign(second(shelf), 2), at=NOW + 1)
    assert drive(agent) is Phase.COMMITTED
    agent.close()


class Heating:
    """A made-up sensor in front of the real device."""

    value = 50.0

    def __init__(self) -> None:
        self._real = SystemProbe()

    def temperature_c(self):
        from edgeinfer.fleet.device.probe import Sensor

        return Sensor(value=self.value, source="made-up sensor of a test")

    def __getattr__(self, name):
        return getattr(self._real, name)


def test_the_disk_is_checked_beside_the_rollback_copy(folder, shelf):
    class Small(Heating):
        free = 1000

        def free_disk_bytes(self, _):
            return self.free

    probe = Small()
    Heating.value = 50.0
    probe.free = 10**9
    agent = installed(folder, shelf, probe=probe)
    probe.free = 33 << 20
    shelf.desire(
        assign(shelf.publish(version="2", artifact=artifact_folder(2.0), bundle={"big": bytes(2 << 20)}), 2),
        at=NOW + 1,
    )
    for _ in range(5):
        agent.step()
    assert (agent.phase, agent.device.waiting) == (Phase.PRECHECK, "disk")
    assert running(folder) == {"m": "1"}
    probe.free = 10**9
    assert drive(agent) is Phase.COMMITTED
    agent.close()


def test_the_folder_can_be_moved(folder, shelf):
    installed(folder, shelf).close()
    shutil.move(folder, folder.parent / "moved")
    assert running(folder.parent / "moved") == {"m": "1"}
