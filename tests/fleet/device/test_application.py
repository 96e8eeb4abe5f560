"""The application's side: pinned requests, hot swaps, observations, captured requests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgeinfer.errors import InputError
from edgeinfer.fleet.device.application import connect
from edgeinfer.fleet.device.capture import Capture
from edgeinfer.fleet.device.exchange import read_apps
from edgeinfer.fleet.device.live_inputs import read_sample
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.errors import ApplicationError, InterfaceError, NoModelError
from tests.fleet.device.kit import NOW, Client, Shelf, artifact_folder, assign, drive, make_agent

X = np.ones((1, 4), np.float32)


@pytest.fixture
def agent(tmp_path: Path, shelf: Shelf):
    with make_agent(tmp_path / "dev", shelf) as agent:
        shelf.desire(*(assign(shelf.publish(model), 1) for model in "mn"))
        assert drive(agent) is Phase.COMMITTED
        yield agent


def switch(agent, shelf: Shelf, n: int) -> None:
    factor = float(n)
    releases = [shelf.publish(model, str(n), artifact_folder(factor)) for model in "mn"]
    shelf.desire(*(assign(release, n) for release in releases), at=NOW + n)
    assert drive(agent) is Phase.COMMITTED


def wait_for(application, generation: int) -> None:
    end = time.monotonic() + 20
    while application.generation != generation:
        assert time.monotonic() < end, application.generation
        time.sleep(0.01)


def test_a_request_sees_one_set_of_models(agent, shelf):
    with connect(agent.device.root, follow_s=0.01) as application:
        m, n = application.model("m", accepts="m/1"), application.model("n")
        with m.request() as session:
            assert session.version == "1"
            switch(agent, shelf, 2)
            wait_for(application, 2)
            assert np.array_equal(session.infer({"x": X})["y"], X)
            with n.request() as inner:  # another model, in the same request
                assert (inner.version, inner.generation) == ("1", 1)
        with m.request() as session, n.request() as inner:
            assert (session.version, inner.version) == ("2", "2")
            assert np.array_equal(session.infer(X)["y"], 2 * X)
            assert (session.bundle / "labels.txt").read_text() == "a\nb\n"


def test_no_request_fails_over_many_swaps(agent, shelf):
    with Client(agent.device.root) as client:
        for n in (2, 1, 2):
            switch(agent, shelf, 2 + client.application.generation) if n == 0 else None
            releases = [r for r in shelf.releases.values() if r.version == str(n)] or None
            if releases is None:
                switch(agent, shelf, n)
            else:
                generation = agent.device.state.floors.generations["m"][1] + 1
                shelf.desire(*(assign(r, generation) for r in releases), at=NOW + generation)
                assert drive(agent) is Phase.COMMITTED
            wait_for(client.application, agent.device.generations.current())
            time.sleep(0.1)
    assert client.failed == []
    assert min(client.answered.values()) > 5


def test_refuses_what_it_cannot_give(agent, tmp_path):
    with pytest.raises(ApplicationError, match="no folder"):
        connect(tmp_path / "nowhere")
    with connect(agent.device.root) as application:
        with pytest.raises(InterfaceError, match="another interface"):
            application.model("m", accepts="m/9")
        with pytest.raises(NoModelError, match="No model 'q'"):
            application.model("q")
        model = application.model("m")
        with model.request() as session, pytest.raises(InputError):
            session.infer({"x": X.astype(np.float64)})
    with pytest.raises(ApplicationError, match="closed"), model.request():
        pass
    # An input that does not fit is the caller's fault, not the model's.
    assert read_apps(agent.device.run_folder)[0] == ()


def test_observations_are_counted_by_release(agent):
    with connect(agent.device.root) as application:
        model = application.model("m", deadline_ms=1e-6)
        with model.request() as session:
            session.infer(X)
            session.observe(confidence=0.9, label="scratch")
        for index in range(1500):
            model.observe(label=f"label {index}")
        application.allow()
        (status,) = read_apps(agent.device.run_folder)[0]
    found = status.models["m"]
    assert (found.requests, found.deadline_misses, found.confidence.count) == (1, 1, 1)
    assert found.labels["scratch"] == 1
    assert len(found.labels) <= 1001  # bounded, whatever an application calls its labels
    assert sum(found.labels.values()) == 1501


def test_captures_a_bounded_ring_when_asked(agent):
    folder = agent.device.root / "capture" / "m"
    with connect(agent.device.root) as application, application.model("m").request() as session:
        session.infer(X)
    assert not folder.exists()  # off by default
    with connect(agent.device.root, capture=Capture(max_bytes=6000, every=2)) as application:
        model = application.model("m")
        for index in range(60):
            with model.request() as session:
                session.infer(X * np.float32(index))
            time.sleep(0.002)
        signature = session.signature
    found = sorted(folder.glob("*.npz"))
    assert len(found) >= 1
    assert sum(path.stat().st_size for path in found) <= 6000
    samples = [read_sample(path, signature) for path in found]
    assert all(np.array_equal(sample.inputs["x"], sample.outputs["y"]) for sample in samples)
    assert all(int(sample.inputs["x"][0, 0]) % 2 == 1 for sample in samples)


def test_a_capture_that_cannot_be_written_is_told_once_and_fails_no_request(agent, caplog):
    (agent.device.root / "capture").write_text("a file, where the folder should be")
    with connect(agent.device.root, capture=Capture(max_bytes=6000)) as application:
        for _ in range(3):
            with application.model("m").request() as session:
                session.infer(X)
    told = [record for record in caplog.records if "captured" in record.message]
    assert len(told) == 1


def test_captures_what_an_observation_chooses(agent):
    folder = agent.device.root / "capture" / "m"
    capture = Capture(max_bytes="1 MB", when=lambda seen: seen.confidence < 0.5 and seen.label != "good")
    with connect(agent.device.root, capture=capture) as application:
        model = application.model("m")
        for confidence, label in ((0.9, "scratch"), (0.3, "scratch"), (0.2, "good"), (None, "scratch")):
            x = X * np.float32(confidence or 0)
            with model.request() as session:
                session.infer(x)
                x += 1  # the caller's array is its own again
                session.observe(confidence=confidence, label=label)
        with model.request() as session:
            session.infer(X)  # of which nothing is observed
        model.observe(confidence=0.1)  # of no request
        signature = session.signature
    (found,) = [read_sample(path, signature) for path in folder.glob("*.npz")]
    assert np.array_equal(found.inputs["x"], X * np.float32(0.3))
    assert np.array_equal(found.outputs["y"], X * np.float32(0.3))


def test_an_application_that_is_killed_is_counted_once(agent):
    code = (
        "import sys, time, edgeinfer as ei\n"
        "a = ei.fleet.connect(sys.argv[1]); a.model('m'); print('ready', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(agent.device.root)], stdout=subprocess.PIPE, env=environment
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    assert len(read_apps(agent.device.run_folder)[0]) == 1
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    agent.step()
    assert agent.device.state.boots.crashes == 1
    agent.step()
    assert agent.device.state.boots.crashes == 1
    assert list((agent.device.run_folder / "apps").iterdir()) == []


def test_serves_the_generation_before_when_the_current_one_does_not_load(agent, shelf):
    switch(agent, shelf, 2)
    pin = agent.device.running().models["m"]
    model = next((agent.device.root / pin.folder / "artifact").glob("*.onnx"))
    model.write_bytes(b"\0" * model.stat().st_size)
    with connect(agent.device.root) as application:
        with application.model("m").request() as session:
            assert session.version == "1"
        for _ in range(3):
            agent.step()
        assert agent.device.generations.current() == 1  # the agent saw it, too
