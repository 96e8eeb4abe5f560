"""What pruning a group does to the outputs is judged on samples that its compensation has not seen."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from edgeinfer.model.model import Model
from edgeinfer.pruning.budget import plan as planning
from edgeinfer.pruning.budget.sensitivity import Fold, measured_errors
from edgeinfer.transforms import PruneChannels

_spec = importlib.util.spec_from_file_location("pruning_graphs", Path(__file__).with_name("graphs.py"))
assert _spec is not None
assert _spec.loader is not None
graphs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(graphs)


def wide_net() -> Model:
    """A layer of 64 outputs of 48 inputs: with as few samples, any output is a sum of any others."""
    b = graphs.Builder(seed=1)
    x = b.op("Relu", b.op("Gemm", b.input("x", ["N", 48]), b.weight(48, 64), b.weight(64)))
    return b.model(b.op("Gemm", x, b.weight(64, 8), b.weight(8)))


@pytest.mark.parametrize("count", [20, 60])
def test_measured_errors_are_those_on_other_samples(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few samples compensation learns them by heart, and nearly any loss looks harmless on them."""
    seen: list[tuple[dict[str, list[float]], dict[str, list[float]]]] = []
    rng = np.random.default_rng(2)
    fresh = [{"x": rng.standard_normal((200, 48)).astype(np.float32)}]

    def spy(model, groups, rankings, folds, **options):
        errors = measured_errors(model, groups, rankings, folds, **options)
        others = [Fold(feeds=fresh, moments=fold.moments) for fold in folds]
        seen.append((errors, measured_errors(model, groups, rankings, others, **options)))
        return errors

    monkeypatch.setattr(planning, "measured_errors", spy)
    samples = [{"x": rng.standard_normal((1, 48)).astype(np.float32)} for _ in range(count)]
    PruneChannels(0.7, calibration=samples).apply(wide_net())

    [(errors, truth)] = seen
    for name, curve in truth.items():
        assert errors[name][15] == pytest.approx(curve[15], rel=0.5)
        assert curve[15] > 0.01
