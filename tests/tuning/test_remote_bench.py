"""Timing on a device: in turns, and what goes wrong there is a result."""

from __future__ import annotations

import numpy as np
import pytest

from edgeinfer.devices.profile import Target
from edgeinfer.errors import DeviceError, RemoteConnectionError
from edgeinfer.tuning.candidate import Candidate
from edgeinfer.tuning.remote_bench import RemoteBench
from edgeinfer.tuning.state import Timing
from tests.quantization.qdq_models import Builder


class Report:
    def __init__(self, latencies):
        self.latencies_ms = np.array(latencies, np.float64)


class Device:
    """Answers as `RemoteDevice` does, out of a list."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    def benchmark(self, artifact, feeds, *, warmup, runs):
        threads = artifact.manifest.options.get("threads", 0)
        self.asked.append((threads, runs))
        answer = self.answers[threads]
        if isinstance(answer, Exception):
            raise answer
        return Report([answer] * runs)


@pytest.fixture
def folder(tmp_path):
    net = Builder(1, 8, 4, 4)
    model = net.model(net.conv(net.input, "only", 8, 8), 1, 8, 4, 4)
    model.save(tmp_path / f"{Candidate().model_key}.onnx")
    return tmp_path


def bench(folder, device):
    feed = {"x": np.ones((1, 8, 4, 4), np.float32)}
    return RemoteBench(device=device, folder=folder, target=Target.parse("onnxruntime"), feed=feed)


def trials(*threads):
    return [(number, Candidate(options={"threads": count})) for number, count in enumerate(threads)]


def test_candidates_take_turns_back_and_forth(folder):
    device = Device({1: 2.0, 2: 1.0})
    found = bench(folder, device).time(trials(1, 2), 20)
    assert device.asked == [(1, 10), (2, 10), (2, 10), (1, 10)]
    timing = Timing(**found[0])
    assert (timing.outcome, timing.n, timing.wall_p50_ms, timing.wall_p99_ms) == ("ok", 20, 2.0, 2.0)
    assert timing.cpu_p50_ms is None
    assert timing.disk_bytes > 0
    assert Timing(**found[1]).wall_p50_ms == 1.0


@pytest.mark.parametrize(
    ("error", "outcome"), [(RemoteConnectionError("gone"), "hung"), (DeviceError("no such"), "failed")]
)
def test_what_goes_wrong_there_is_a_result(folder, error, outcome):
    device = Device({1: error, 2: 1.0})
    found = bench(folder, device).time(trials(1, 2), 4)
    assert found[0]["outcome"] == outcome
    assert str(error) in found[0]["reason"]
    assert found[1]["outcome"] == "ok"
    assert [threads for threads, _ in device.asked] == [1, 2, 2]  # not asked again
