"""The batch as a part of the search: a request waits for all of its batch; full batches bring more rows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import edgeinfer as ei
from edgeinfer.errors import OptionsError, TuningError
from edgeinfer.tuning.inputs import in_batches
from tests.tuning.simulated import World, run
from tests.tuning.test_planner import problem, result

NET = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[N, 4, 8, 8] x) => (float[N, 8, 8, 8] y) {
    y = Conv <pads = [1, 1, 1, 1]> (x, w)
}
"""


def parsed(text):
    model = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((8, 4, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return model


@pytest.fixture(scope="module")
def model():
    return parsed(NET)


@pytest.fixture(scope="module")
def feeds():
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 4, 8, 8)).astype(np.float32)} for _ in range(5)]


def tune(model, feeds, **more):
    return ei.tune(
        model,
        ei.Budget(latency_p50_ms=1e4),
        target="onnxruntime",
        calibration=feeds,
        minutes=0.01,
        options={"threads": 1},
        **more,
    )


def test_tuning_measures_larger_batches_of_the_survivors(model, feeds, tmp_path):
    evaluated = []

    def evaluate(model):
        evaluated.append(model.digest)
        return 0.9

    found = tune(model, feeds, evaluate=evaluate, batches=[4, 1], journal=tmp_path / "j.jsonl")
    by_batch = {size: [t for t in found.trials if t.candidate.batch == size] for size in (1, 4)}
    assert len(by_batch[1]) + len(by_batch[4]) == len(found.trials)
    assert by_batch[4]
    assert all(trial.outcome == "ok" for trial in by_batch[4])
    for trial in (trial for trial in found.trials if trial.outcome == "ok"):
        assert trial.throughput == pytest.approx(1e3 * trial.candidate.batch / trial.latency_p50_ms)
    # A model is evaluated once, whatever it is run with, and as accurate as it is with another batch.
    assert len(evaluated) == sum(trial.metric is not None for trial in by_batch[1])
    assert all(trial.metric == 0.9 for trial in by_batch[4])
    fits = [trial for trial in found.trials if trial.metric is not None]
    assert found.best.throughput == max(trial.throughput for trial in fits)
    assert found.best.peak_bytes > 0
    assert f"batch {found.best.candidate.batch} " in str(found)
    with pytest.raises(TuningError, match="batches differ"):
        tune(model, feeds, evaluate=evaluate, journal=tmp_path / "j.jsonl")


def test_the_limit_is_for_a_request_and_the_largest_batch_within_it_wins():
    of = problem(batches=(1, 2, 4, 8), budget=ei.Budget(latency_p50_ms=30.0, max_drop=0.05))
    found = result(run(of, World()), of)
    assert found.best.latency_p50_ms <= 30.0
    as_accurate = [t for t in found.trials if t.metric == found.best.metric and not t.violations]
    assert len({trial.candidate.batch for trial in as_accurate}) > 1
    assert found.best.candidate.batch == max(trial.candidate.batch for trial in as_accurate)
    # What was too slow with one batch was not tried with a larger one.
    times = {(t.candidate.model_key, t.candidate.batch): t.latency_p50_ms for t in found.trials}
    for (key, size), took in times.items():
        if took is not None and took > 30.0:
            assert (key, 2 * size) not in times


@pytest.mark.parametrize("cut", [40, 60, 80])
def test_after_a_kill_the_same_batches_are_measured(cut):
    of = problem(batches=(1, 2, 4), budget=ei.Budget(max_drop=0.05))
    entire = run(of, World())
    assert [record["name"] for record in entire if record["kind"] == "rung"][-2:] == ["batch", "batch"]
    assert run(of, World(), entire[: min(cut, len(entire) - 1)]) == entire


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_what_is_no_size_is_refused(model, feeds, size):
    with pytest.raises(OptionsError, match="batch"):
        tune(model, feeds, batches=[size])


def test_a_model_with_a_fixed_batch_is_refused_with_what_to_do(feeds):
    fixed = parsed(NET.replace("N,", "1,"))
    with pytest.raises(OptionsError) as caught:
        tune(fixed, feeds, batches=[1, 8])
    assert "a batch of 1" in str(caught.value)
    assert "open batch" in str(caught.value)


def test_rows_go_around_where_they_are_fewer_than_a_batch():
    feeds = [{"x": np.full((1, 2), number)} for number in range(3)]
    assert [feed["x"][:, 0].tolist() for feed in in_batches(feeds, 2)] == [[0, 1], [2, 0]]
    assert [feed["x"][:, 0].tolist() for feed in in_batches(feeds, 5)] == [[0, 1, 2, 0, 1]]
