"""What pages find when they run: a folder of their own with a small model, and samples for it."""

from __future__ import annotations

import functools
from pathlib import Path

import onnx
import pytest

from edgeinfer.demo import load_digits, model_path


@functools.cache
def _model() -> bytes:
    """The digits model, whose input has the name that the pages use."""
    model = onnx.load(model_path())
    (given,) = model.graph.input
    for node in model.graph.node:
        node.input[:] = ["input" if name == given.name else name for name in node.input]
    given.name = "input"
    return model.SerializeToString()


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The names that pages use without making them; the current folder has `model.onnx`."""
    (tmp_path / "model.onnx").write_bytes(_model())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    digits = load_digits()
    return {
        "x": digits.images[:4],
        "images": digits.images[:32],
        "labels": digits.labels[:32],
        "samples": [{"input": image[None]} for image in digits.calibration[:16]],
    }
