"""Measuring on another device: a real sshd, links that break, devices that hang or are full."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgeinfer as ei
from edgeinfer.errors import (
    GoldenMismatchError,
    InputError,
    OptionsError,
)
from edgeinfer.runtime.benchmark import BenchmarkReport
from edgeinfer.runtime.memory import MemoryReport


@pytest.fixture
def device(lab, tmp_path):
    return lab.connect(tmp_path / "copies")


def copies(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_benchmark_memory_and_golden(device, artifact, tmp_path):
    timing = device.benchmark(artifact, runs=50, warmup=3, shapes={"N": 8})
    assert isinstance(timing, BenchmarkReport)
    assert timing.n == 50
    assert timing.latencies_ms.min() > 0
    assert (timing.backend, timing.warmup) == ("onnxruntime", 3)
    assert any(device.host in note for note in timing.notes)
    peak = device.memory(artifact, {"x": np.ones((3, 4), np.float32)}, runs=2)
    assert isinstance(peak, MemoryReport)
    assert peak.peak_bytes > peak.baseline_bytes > 1 << 20
    assert device.check_golden(artifact) is None
    cost = device.cost(artifact, {"x": np.ones((1, 4), np.float32)})
    assert not ei.Budget(latency_p99_ms=1e6, peak_bytes="1 TB", disk_bytes="1 GB").check(cost)
    assert len(copies(tmp_path / "copies")) == 1, "one copy of one artifact, and no scratch left"


def test_feeds_travel(device, artifact):
    feeds = [{"x": np.full((n, 4), n, np.float32)} for n in (1, 2, 3)]
    assert device.benchmark(artifact, feeds, runs=6).n == 6
    with pytest.raises(InputError, match="input 'x'"):
        device.benchmark(artifact, {"x": np.ones((1, 5), np.float32)}, runs=1)


def test_a_wrong_golden_output_is_the_same_error_as_here(device, artifact):
    wrong = artifact.with_golden(
        {"x": np.ones((2, 4), np.float32)}, {"y": np.zeros((2, 4), np.float32)}, rtol=0, atol=1e-3
    )
    with pytest.raises(GoldenMismatchError) as caught:
        device.check_golden(wrong)
    assert caught.value.where.startswith(device.host)
    assert caught.value.facts["output"] == "y"


def test_an_option_that_is_refused_there(device, artifact):
    with pytest.raises(OptionsError, match="no_such_option"):
        device.benchmark(artifact, runs=1, options={"no_such_option": 1})


def test_what_the_device_is(device):
    here = ei.devices.local()
    there = device.local()
    assert there.cpu == here.cpu
    assert there.cgroup == here.cgroup
    assert device.version == ei.__version__
    assert "processor" in device._repr_html_()


def test_an_artifact_is_copied_once(device, artifact, tmp_path, monkeypatch):
    key = device.push(artifact)
    saved = artifact.save(tmp_path / "saved.edge")
    asked = []
    original = type(device)._ask

    def ask(self, request, *arguments, **named):
        asked.append(request["operation"])
        return original(self, request, *arguments, **named)

    monkeypatch.setattr(type(device), "_ask", ask)
    assert device.push(saved.path) == key
    assert asked == ["has"]
    assert device.clear() == 1
    assert device.push(artifact) == key
