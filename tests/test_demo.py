"""The small demonstration: its model is what it claims, and `edgeinfer demo --small` runs the whole way."""

from __future__ import annotations

import json

import numpy as np
import pytest

import edgeinfer as ei
from edgeinfer.backends import registry
from edgeinfer.cli import main
from edgeinfer.demo import load_digits, model_path, run_demo
from edgeinfer.demo import run as demo_run
from edgeinfer.transforms import QuantizeInt8


def test_the_model_is_small_and_has_something_to_optimize():
    model = ei.Model.load(model_path())
    assert model_path().stat().st_size < 100_000
    assert model_path().with_name("digits.npz").stat().st_size < 100_000
    assert model.signature.inputs[0].shape == ("N", 1, 8, 8)
    assert [node.op_type for node in model.ir.graph].count("BatchNormalization") == 3


def test_the_model_is_accurate_on_the_held_out_digits():
    digits = load_digits()
    with ei.load(ei.compile(model_path(), "onnxruntime")) as session:
        logits = session.infer({"images": digits.images})["logits"]
    assert digits.accuracy(logits) == pytest.approx(443 / 449)  # what the training script printed


def test_the_images_are_those_that_the_script_holds_out():
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    held_out = np.arange(len(data.images)) % 4 == 3
    digits = load_digits()
    np.testing.assert_array_equal(digits.images[:, 0] * 16, data.images[held_out])
    np.testing.assert_array_equal(digits.labels, data.target[held_out])
    np.testing.assert_array_equal(digits.calibration[:, 0] * 16, data.images[~held_out][:100])
    assert digits.images.dtype == np.float32
    assert len(digits.calibration_feeds()) == 10


def test_the_demo_keeps_accuracy_on_every_backend():
    report = run_demo(runs=20, progress=False)
    by_backend = {row.backend.split(":")[0]: row for row in report.rows if row.variant == "optimized"}
    assert "onnxruntime" in by_backend
    for row in report.rows:
        assert row.accuracy == pytest.approx(443 / 449, abs=2 / 449 if row.variant == "int8" else 1e-9)
        assert row.sqnr_db > (30 if row.variant == "int8" else 80)
        assert 0 < row.p50_ms <= row.p99_ms
        # Never is a row called int8 that ran in float, and the reverse.
        assert row.variant == "int8" or not row.stayed_float
        assert row.variant != "int8" or bool(row.stayed_float) == ("int8" not in row.ran), row
    assert dict(report.transforms)["FuseBatchNorm"] == 3
    assert len(report.after.nodes) == len(report.before.nodes) - 3
    assert set(by_backend) | set(report.unavailable) == set(ei.backends())
    assert {"onnxruntime:CPU"} <= {row.backend for row in report.rows if row.variant == "int8"}
    assert "held-out" in str(report)
    assert report._repr_html_().count("<table") == 3


def test_a_model_that_stayed_float_is_not_called_int8(monkeypatch):
    real = demo_run.optimize

    def optimize(model, *, target=None, calibration=None):
        if calibration is None:
            return real(model)
        kept = [node.name for node in ei.Model.load(model).ir.graph]
        return real(model, [QuantizeInt8(calibration, target=target, keep_float=kept)])

    monkeypatch.setattr(demo_run, "optimize", optimize)
    report = run_demo(runs=5, progress=False)
    rows = [row for row in report.rows if row.variant == "int8"]
    assert rows
    for row in rows:
        assert "float" in row.stayed_float
        assert "int8" not in row.ran
        assert f"int8 on {row.backend} stayed float: {row.stayed_float}" in str(report)
    assert "int8, but it stayed float" in str(report)
    assert all(row["stayed_float"] for row in report.to_dict()["rows"] if row["variant"] == "int8")


def test_the_demo_says_what_is_missing(monkeypatch):
    real = registry.BackendEntry.load

    def load(entry):
        if entry.name != "onnxruntime":
            raise ei.errors.BackendUnavailableError(f"{entry.name} is not installed (by this test).")
        return real(entry)

    monkeypatch.setattr(registry.BackendEntry, "load", load)
    report = run_demo(runs=5, progress=False)
    assert {row.backend for row in report.rows} == {"onnxruntime:CPU"}
    assert "openvino is not installed (by this test)." in report.unavailable["openvino"]
    assert "openvino did not take part" in str(report)


def test_the_command(capsys):
    assert main(["demo", "--small", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 449
    assert {row["variant"] for row in found["rows"]} >= {"original", "optimized"}
