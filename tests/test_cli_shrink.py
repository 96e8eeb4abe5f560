"""The commands that make a model smaller: `quantize`, `prune`, `sensitivity`, `tune`."""

from __future__ import annotations

import json

import numpy as np
import pytest

import edgeinfer as ei
from edgeinfer.cli import main
from edgeinfer.demo import load_digits, model_path
from tests.cli_kit import fails, run


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    path = tmp_path_factory.mktemp("samples") / "samples.npz"
    np.savez(path, images=load_digits().images[:24])
    return path


def test_quantize_writes_an_int8_model(capsys, samples, tmp_path):
    out = tmp_path / "int8.onnx"
    text = run(
        capsys,
        "quantize",
        model_path(),
        "-o",
        out,
        "--target",
        "onnxruntime",
        "--effort",
        "fast",
        "--calibration",
        samples,
        "--min-sqnr-db",
        "10",
    )
    assert "int8" in text
    assert ei.Model.load(out).signature == ei.Model.load(model_path()).signature


def test_prune_writes_a_model_with_fewer_products(capsys, samples, tmp_path):
    out = tmp_path / "small.onnx"
    told = json.loads(
        run(
            capsys, "prune", model_path(), "-o", out, "--keep-macs", "0.7", "--calibration", samples, "--json"
        )
    )
    assert told
    assert ei.inspect(out, batch=1).macs < 0.8 * ei.inspect(model_path(), batch=1).macs


def test_prune_takes_channels_or_heads(capsys, samples, tmp_path):
    text = fails(
        capsys,
        "prune",
        model_path(),
        "-o",
        tmp_path / "x.onnx",
        "--keep-macs",
        "0.7",
        "--keep-heads",
        "0.5",
        "--calibration",
        samples,
    )
    assert "Channels or heads, not both" in text


def test_heads_of_a_model_without_heads_are_refused_and_nothing_is_written(capsys, samples, tmp_path):
    out = tmp_path / "x.onnx"
    code = main(
        ["prune", str(model_path()), "-o", str(out), "--keep-heads", "0.5", "--calibration", str(samples)]
    )
    assert (code == 0) == out.exists()
    capsys.readouterr()


def test_sensitivity_names_the_layers(capsys, samples):
    told = json.loads(
        run(
            capsys,
            "sensitivity",
            model_path(),
            "--target",
            "onnxruntime",
            "--samples",
            "4",
            "--calibration",
            samples,
            "--json",
        )
    )
    assert told["layers"]
    assert {"node", "sqnr_db"} <= set(told["layers"][0])


@pytest.mark.parametrize("command", ["quantize", "prune", "sensitivity"])
def test_representative_inputs_are_asked_for(capsys, tmp_path, command):
    written = [] if command == "sensitivity" else ["-o", tmp_path / "x.onnx"]
    text = fails(capsys, command, model_path(), *written, "--target", "onnxruntime")
    assert "Representative inputs are needed" in text
    assert "--calibration" in text


def test_tune_writes_model_recipe_and_page(capsys, samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metric.py").write_text("def accuracy(model):\n    return 0.9\n")
    code = main(
        [
            "tune",
            str(model_path()),
            "-o",
            "small.onnx",
            "--target",
            "onnxruntime",
            "--calibration",
            str(samples),
            "--latency-p50-ms",
            "1000",
            "--max-drop",
            "0.01",
            "--evaluate",
            "metric:accuracy",
            "--minutes",
            "0.01",
            "--recipe",
            "small.recipe",
            "--html",
            "report.html",
            "--json",
            "--option",
            "threads=1",
            "--fix-shapes",
        ]
    )
    told = json.loads(capsys.readouterr().out)
    assert code == 0
    assert told["chosen"] is not None
    assert ei.Recipe.load("small.recipe").apply(model_path()).digest == ei.Model.load("small.onnx").digest
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_a_budget_that_nothing_keeps_writes_no_model_and_says_what_would_help(capsys, samples, tmp_path):
    out = tmp_path / "small.onnx"
    code = main(
        [
            "tune",
            str(model_path()),
            "-o",
            str(out),
            "--target",
            "onnxruntime",
            "--calibration",
            str(samples),
            "--memory",
            "1 MB",
            "--minutes",
            "0.01",
            "--option",
            "threads=1",
        ]
    )
    told = capsys.readouterr()
    assert code == 2
    assert "would help" in told.out
    assert "no model is written" in told.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("accuracy", "MODULE:FUNCTION"),
        ("no_such_module_here:accuracy", "cannot be imported"),
        ("json:no_such_function", "cannot be imported"),
        ("json:__name__", "no function"),
    ],
)
def test_a_metric_that_is_not_there_is_said_before_anything_is_done(capsys, samples, tmp_path, given, told):
    text = fails(
        capsys,
        "tune",
        model_path(),
        "-o",
        tmp_path / "x.onnx",
        "--target",
        "onnxruntime",
        "--calibration",
        samples,
        "--max-drop",
        "0.01",
        "--evaluate",
        given,
    )
    assert told in text
