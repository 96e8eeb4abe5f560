"""Crashes of the agent, and files of a device that are lost or damaged."""

from __future__ import annotations

import pytest

from edgeinfer.fleet.device.agent import Agent
from edgeinfer.fleet.device.generations import Generations
from edgeinfer.fleet.device.journal import Journal
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.device.transport import MemoryTransport
from tests.fleet.device.kit import (
    DEVICE,
    NOW,
    PassingChecker,
    artifact_folder,
    assign,
    drive,
    installed,
    make_agent,
    reports,
    running,
    second,
)


def test_a_crash_in_staging_is_tried_once_more_and_then_quarantined(folder, shelf):
    class Crashing(PassingChecker):
        def stage(self, request, alive):
            raise KeyboardInterrupt  # the agent is gone, and wrote nothing

    installed(folder, shelf).close()
    shelf.desire(assign(second(shelf), 2), at=NOW + 1)
    for _ in range(2):
        agent = make_agent(folder, shelf, checker=Crashing())
        with pytest.raises(KeyboardInterrupt):
            drive(agent)
        kill(agent)
    agent = make_agent(folder, shelf)
    agent.step()
    assert agent.phase is Phase.FAILED
    assert agent.device.state.update.code == "staging_crash"
    assert running(folder) == {"m": "1"}
    assert len(agent.device.state.quarantine) == 1


def kill(agent: Agent) -> None:
    """Let the agent go as a kill does: it writes nothing more."""
    agent._started = False
    agent.close()


def test_an_agent_that_crashes_again_and_again_gives_the_update_up(folder, shelf):
    class Breaking:
        def fetch(self, *_, **__):
            raise KeyboardInterrupt

    installed(folder, shelf).close()
    shelf.desire(assign(second(shelf), 2), at=NOW + 1)
    for _ in range(6):
        agent = make_agent(folder, shelf, fetcher=Breaking())
        with pytest.raises(KeyboardInterrupt):
            drive(agent)
        kill(agent)
    agent = make_agent(folder, shelf)
    agent.step()
    assert (agent.phase, agent.device.state.update.code) == (Phase.FAILED, "crash_loop")
    assert running(folder) == {"m": "1"}


DURABLE = [
    Phase.ACCEPTED,
    Phase.VERIFIED,
    Phase.STAGING,
    Phase.STAGED,
    Phase.ACTIVATING,
    Phase.SOAKING,
    Phase.COMMITTED,
]


@pytest.mark.parametrize("damage", ["removed", "empty", "torn", "flipped"])
@pytest.mark.parametrize("phase", DURABLE)
def test_a_lost_journal_is_rebuilt_from_the_pointer(folder, shelf, phase, damage):
    agent = installed(folder, shelf)
    shelf.desire(assign(second(shelf), 2), at=NOW + 1)
    drive(agent, until=phase)
    before = running(folder)
    kill(agent)
    path = Journal(folder).path
    data = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        flipped = data.replace(b'"sequence":', b'"sequencf":')
        path.write_bytes({"empty": b"", "torn": data[: len(data) // 2], "flipped": flipped}[damage])
    assert running(folder) == before  # applications do not read the journal
    transport = MemoryTransport()
    transport.put((shelf.folder / "desired" / f"{DEVICE}.json").read_bytes())
    agent = make_agent(folder, shelf, transport)
    assert drive(agent) is Phase.COMMITTED
    assert running(folder) == {"m": "2"}
    assert "journal_lost" in {report.code for report in reports(transport, agent)}
    agent.close()


@pytest.mark.parametrize("damage", ["removed", "dangling", "a file"])
def test_a_lost_pointer_is_set_again(folder, shelf, damage):
    installed(folder, shelf).close()
    pointer = folder / "current"
    pointer.unlink()
    if damage == "dangling":
        pointer.symlink_to("generations/99")
    if damage == "a file":
        pointer.write_text("x")
    agent = make_agent(folder, shelf)
    agent.step()
    assert running(folder) == {"m": "1"}
    agent.close()


def test_a_damaged_model_is_replaced_by_the_generation_before(folder, shelf):
    agent = installed(folder, shelf)
    shelf.desire(assign(second(shelf), 2), at=NOW + 1)
    assert drive(agent) is Phase.COMMITTED
    pin = agent.device.running().models["m"]
    agent.close()
    model = next((folder / pin.folder / "artifact").glob("*.onnx"))
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    agent = make_agent(folder, shelf)
    agent.step()
    assert running(folder) == {"m": "1"}
    agent.close()


def test_only_what_runs_and_what_it_can_go_back_to_is_kept(folder, shelf):
    agent = installed(folder, shelf)
    for n in range(2, 6):
        release = shelf.publish(version=str(n), artifact=artifact_folder(float(n)))
        shelf.desire(assign(release, n), at=NOW + n)
        assert drive(agent) is Phase.COMMITTED
    assert Generations(folder).numbers() == (4, 5)
    assert len(list((folder / "installed").iterdir())) == 2
    assert list((folder / "blobs").rglob("sha256/??/*")) == []
    agent.close()
