"""Tuning for several targets: the backend is chosen, too."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

import edgeinfer as ei
from edgeinfer.errors import OptionsError
from edgeinfer.tuning.targets import tune_each
from tests.tuning.simulated import World, run
from tests.tuning.test_planner import SPACE, problem, result
from tests.tuning.test_tune import feeds, model  # noqa: F401


def found(target, **limits):
    """The result of a search without a model, for a target."""
    of = problem(budget=ei.Budget(**limits), space=attrs.evolve(SPACE, options=({},)))
    return attrs.evolve(result(run(of, World()), of), target=str(target))


def test_the_best_of_those_that_keep_the_budget_is_taken(tmp_path):
    asked = []

    def tune_one(target, minutes, journal):
        asked.append((str(target), minutes, journal.name))
        return found(target, latency_p50_ms=1.0 if target.backend == "onnxruntime" else 6.0, max_drop=0.05)

    best = tune_each(["onnxruntime", "openvino:CPU"], tune_one, minutes=4, journal=tmp_path / "run.jsonl")
    assert best.met
    assert best.target == "openvino:CPU"
    assert [other.target for other in best.others] == ["onnxruntime"]
    assert "also tuned for onnxruntime: no candidate keeps the budget there" in str(best)
    assert asked == [
        ("onnxruntime", 2.0, "run.onnxruntime.jsonl"),
        ("openvino:CPU", 2.0, "run.openvino-CPU.jsonl"),
    ]
    assert [other["target"] for other in best.to_dict()["others"]] == ["onnxruntime"]


def test_where_none_keeps_the_budget_the_nearest_is_told():
    limits = {"onnxruntime": 0.5, "openvino": 1.0}
    best = tune_each(
        list(limits),
        lambda target, *_: found(target, latency_p50_ms=limits[target.backend], max_drop=0.05),
        minutes=None,
        journal=None,
    )
    assert not best.met
    assert best.target == "openvino"


@pytest.mark.parametrize("targets", [[], ["openvino", "openvino"]])
def test_no_target_and_one_twice_are_refused(targets):
    with pytest.raises(OptionsError, match="each once"):
        tune_each(targets, lambda target, *_: found(target), minutes=None, journal=None)


def test_one_call_tunes_for_both(model, feeds, tmp_path):  # noqa: F811
    best = ei.tune(
        model,
        ei.Budget(latency_p50_ms=1e4),
        target=["onnxruntime", "numpy-reference"],
        calibration=feeds,
        minutes=0.01,
        journal=tmp_path / "run.jsonl",
    )
    assert {best.target, best.others[0].target} == {"onnxruntime", "numpy-reference"}
    assert best.best.model.target == best.target
    assert np.isfinite(best.best.sqnr_db)
    assert (tmp_path / "run.numpy-reference.jsonl").exists()
