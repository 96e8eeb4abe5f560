"""A model that hangs or crashes in the application's own process, where staging saw it do well."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edgeinfer.fleet.device.exchange import read_apps
from edgeinfer.fleet.device.phases import Phase
from tests.fleet.device.kit import NOW, Client, Shelf, assign, drive, faulty_folder, make_agent, running

pytestmark = pytest.mark.usefixtures("faulty_backend")
SOAK = {"soak_s": 30.0, "soak_requests": 40, "silence_s": 3.0, "tick_s": 0.01}


@pytest.fixture
def agent(tmp_path: Path, shelf: Shelf):
    """The agent of a device that runs version 1, with a soak from now on."""
    shelf.desire(assign(shelf.publish(artifact=faulty_folder()), 1))
    with make_agent(tmp_path / "dev", shelf) as agent:
        assert drive(agent) is Phase.COMMITTED
    with make_agent(tmp_path / "dev", shelf, options=SOAK) as agent:
        yield agent


def update(agent, shelf: Shelf, n: int, fault: str, after: int = 0) -> None:
    """Bring version n, which answers 2 * x, into its soak."""
    release = shelf.publish(version=str(n), artifact=faulty_folder(2.0, fault, after))
    shelf.desire(assign(release, n), at=NOW + n)
    assert drive(agent, until=Phase.SOAKING) is Phase.SOAKING


def end_of_soak(agent) -> Phase:
    end = time.monotonic() + 60
    while not (phase := agent.step()).final and time.monotonic() < end:
        time.sleep(0.01)
    return phase


def test_a_hang_in_an_inference_is_answered_by_the_previous_release(agent, shelf):
    with Client(agent.device.root, patience_s=0.3) as client:
        update(agent, shelf, 2, "hang", after=30)
        assert end_of_soak(agent) is Phase.ROLLED_BACK
        time.sleep(0.1)
    assert agent.device.state.update.code == "hang"
    assert running(agent.device.root) == {"m": "1"}
    assert client.failed == []
    assert set(client.answered) == {"1", "2"}


def test_a_hang_without_a_previous_release_is_seen_by_the_agent(tmp_path, shelf):
    shelf.desire(assign(shelf.publish(artifact=faulty_folder(1.0, "hang", 5)), 1))
    with make_agent(tmp_path / "dev", shelf, options=SOAK) as agent:
        assert drive(agent, until=Phase.SOAKING) is Phase.SOAKING
        client = Client(agent.device.root)
        client._thread.start()
        assert end_of_soak(agent) is Phase.DEGRADED
        assert agent.device.state.update.code == "hang"
        client._stop.set()
        client.application.close()  # the thread that hangs is left alone


def test_a_hang_while_an_application_loads_it(agent, shelf):
    with Client(agent.device.root) as client:
        update(agent, shelf, 2, "hang_in_application")
        assert end_of_soak(agent) is Phase.ROLLED_BACK
        assert agent.device.state.update.code == "hang"
        # The application follows on.
        update(agent, shelf, 3, "")
        while client.answered["3"] < 100:
            assert agent.step() is Phase.SOAKING
    assert client.failed == []
    assert set(client.answered) == {"1", "3"}


def test_an_application_that_starts_in_a_soak_has_the_previous_release_to_answer(agent, shelf):
    update(agent, shelf, 2, "error")
    with Client(agent.device.root) as client:
        assert end_of_soak(agent) is Phase.ROLLED_BACK
        while not client.answered["1"]:
            time.sleep(0.01)
    assert agent.device.state.update.code == "errors"
    assert client.failed == []


APPLICATION = """
import sys
import numpy as np
import edgeinfer as ei

with ei.fleet.connect(sys.argv[1], follow_s=0.02) as device:
    model = device.model("m", accepts="m/1")
    for line in sys.stdin:
        with model.request() as session:
            y = session.infer({"x": np.full((1, 4), float(line), np.float32)})["y"]
            print(session.version, float(y[0, 0]), flush=True)
"""


class Service:
    """An application in a process of its own, and the service manager that starts it again."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.starts = 0
        self._start()

    def _start(self) -> None:
        self.starts += 1
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", APPLICATION, str(self._root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )

    def ask(self, value: float) -> tuple[str, float] | None:
        """Return the version and its answer; None where the application crashed, and was started again."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(b"%f\n" % value)
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if line:
            version, answer = line.split()
            return version.decode(), float(answer)
        self.stop()
        self._start()
        return None

    def stop(self) -> None:
        self._process.communicate()


def test_a_crash_takes_the_requests_of_its_process_and_then_the_release_back(agent, shelf):
    """No library answers from a process that is gone: a request is lost with each crash, and asked again."""
    service = Service(agent.device.root)
    answered: dict[str, int] = {}
    lost: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.001):
            answer = service.ask(3.0)
            if answer is None:
                lost.append("crash")
            elif answer[1] != 3.0 * min(2, int(answer[0])):
                lost.append(f"{answer}")
            else:
                answered[answer[0]] = answered.get(answer[0], 0) + 1

    client = threading.Thread(target=ask)
    client.start()
    while not answered:
        time.sleep(0.01)
    update(agent, shelf, 2, "crash", after=20)
    assert end_of_soak(agent) is Phase.ROLLED_BACK
    before = answered["1"]
    while answered["1"] < before + 20:  # it serves again
        time.sleep(0.01)
    over.set()
    client.join()
    service.stop()
    assert agent.device.state.update.code == "crash"
    assert running(agent.device.root) == {"m": "1"}
    assert lost == ["crash"] * (service.starts - 1)  # one for each crash, all others were answered right
    assert 2 <= len(lost) <= 3
    assert set(answered) == {"1", "2"}
    assert read_apps(agent.device.run_folder)[0] == ()
