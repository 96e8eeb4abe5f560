"""Estimates from a measured baseline: what cancels out, what is said, what is refused."""

from __future__ import annotations

import attrs
import pytest

from edgeinfer.budget import Budget
from edgeinfer.errors import OptionsError
from edgeinfer.estimate.scaled import Baseline, Scaled
from edgeinfer.estimate.workload import workload
from edgeinfer.transforms import PruneChannels
from tests.estimate.nets import convolutions

MEASURED = {"latency_p50_ms": 4.0, "latency_p99_ms": 6.0, "peak_bytes": 200e6, "power_w": 5.0}


@pytest.fixture(scope="module")
def scaled() -> Scaled:
    model = convolutions()
    return Scaled([Baseline.of(model, MEASURED, target="onnxruntime")], target="onnxruntime")


def test_the_baseline_itself_gets_what_was_measured(scaled):
    found = scaled.estimate(convolutions())
    for name, value in MEASURED.items():
        assert found[name].value == pytest.approx(value)
        assert found[name].basis == "scaled"
        assert found[name].low <= value <= found[name].high
    assert found["energy_mj"].value == pytest.approx(4.0 * 5.0)  # ms times W
    assert found["disk_bytes"].basis == "counted"
    assert found.basis == "scaled"


def test_fewer_channels_take_less_of_everything(scaled):
    whole, half = scaled.estimate(convolutions()), scaled.estimate(convolutions(32))
    for name in ("latency_p50_ms", "latency_p99_ms", "peak_bytes", "disk_bytes", "energy_mj"):
        assert half[name].value < whole[name].value
    # What changed more is known less well.
    assert half["latency_p50_ms"].band.high > whole["latency_p50_ms"].band.high


def test_a_pruned_model_is_near_its_workload_that_was_made_up(scaled):
    pruned = PruneChannels(keep_macs=0.6).apply(convolutions()).model
    work = workload(convolutions(), target="onnxruntime")
    real = workload(pruned, target="onnxruntime")
    made_up = scaled.estimate(work.pruned(real.macs / work.macs))
    assert made_up["latency_p50_ms"].value == pytest.approx(
        scaled.estimate(pruned)["latency_p50_ms"].value, rel=0.2
    )


def test_another_precision_is_wider_and_says_so(scaled):
    int8 = scaled.estimate(workload(convolutions(), target="onnxruntime").assume("int8"))
    assert int8.precision == "int8"
    assert int8["latency_p50_ms"].band.high > 1.25
    assert "baseline in float32" in str(int8)
    assert int8["disk_bytes"].value < scaled.estimate(convolutions())["disk_bytes"].value / 2


def test_the_baseline_of_the_same_precision_is_taken():
    work = workload(convolutions(), target="openvino")
    slow = Baseline(work=work, latency_p50_ms=10.0)
    fast = Baseline(work=work.assume("int8"), latency_p50_ms=1.0)
    scaled = Scaled([slow, fast], target="openvino")
    assert scaled.estimate(work.assume("int8"))["latency_p50_ms"].value == pytest.approx(1.0)
    assert scaled.estimate(work)["latency_p50_ms"].value == pytest.approx(10.0)


def test_a_budget_checks_an_estimate(scaled):
    found = scaled.estimate(convolutions())
    assert not Budget(latency_p99_ms=7, peak_bytes="300 MB").check(found.values)
    (violation,) = Budget(latency_p50_ms=2).check(found.values)
    assert violation.ratio == pytest.approx(2.0)


@pytest.mark.parametrize("latency", [None, 0.0])
def test_a_baseline_without_latency_is_refused(latency):
    with pytest.raises(OptionsError, match="measured latency"):
        Baseline.of(convolutions(8), {"latency_p50_ms": latency}, target="onnxruntime")


def test_no_baseline_is_refused():
    with pytest.raises(OptionsError, match="measured baseline"):
        Scaled([], target="onnxruntime")


def test_recurrent_layers_are_said():
    work = attrs.evolve(workload(convolutions(8)), recurrent=True)
    scaled = Scaled([Baseline(work=work, latency_p50_ms=1.0)], target="onnxruntime")
    assert "recurrent" in str(scaled.estimate(work))
