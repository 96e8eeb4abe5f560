"""The pruning transforms through the public API."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from edgeinfer.errors import CalibrationError, PreconditionError, TransformOptionError
from edgeinfer.graph.initializers import constant
from edgeinfer.graph.layers import find_layers
from edgeinfer.model.model import Model
from edgeinfer.pruning.budget.allocate import levels, step_of
from edgeinfer.pruning.structure.masks import export_training, import_weights
from edgeinfer.transforms import Pipeline, PruneChannels, PruneHeads, PruneNM, PruneWeights

_spec = importlib.util.spec_from_file_location("pruning_graphs", Path(__file__).with_name("graphs.py"))
assert _spec is not None
assert _spec.loader is not None
graphs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(graphs)


@pytest.fixture(scope="module")
def network() -> Model:
    """Two residual blocks and a classifier; 8 channels that do the work of 4 in the first block."""
    b = graphs.Builder(seed=5)
    x = b.input("x", ["N", 4, 8, 8])
    first = b.op("Relu", b.conv(x, 4, 8))
    half = b.rng.standard_normal((8, 8, 3, 3)).astype(np.float32) * 0.2
    twin = b.op(
        "Conv",
        first,
        b.constant(np.concatenate([half, half])),
        b.constant(np.zeros(16, np.float32)),
        pads=[1] * 4,
    )
    first = b.op("Relu", b.op("Add", first, b.conv(b.op("Relu", twin), 16, 8)))
    second = b.op("Add", first, b.conv(b.op("Relu", b.conv(first, 8, 16)), 16, 8))
    pooled = b.op("Flatten", b.op("GlobalAveragePool", second))
    return b.model(b.op("Gemm", pooled, b.weight(8, 4), b.weight(4)))


@pytest.fixture(scope="module")
def calibration() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((8, 4, 8, 8)).astype(np.float32)} for _ in range(4)]


def error(a: Model, b: Model) -> float:
    feed = {"x": np.random.default_rng(9).standard_normal((32, 4, 8, 8)).astype(np.float32)}
    (first,), (second,) = graphs.run(a, feed), graphs.run(b, feed)
    return float(np.square(first - second).sum() / np.square(first - first.mean(0)).sum())


def test_doubled_channels_go_first_and_cost_nothing(network, calibration):
    result = PruneChannels(0.75, calibration=calibration, multiple=1).apply(network)
    assert result.report.data["groups"]["Conv2"] == {"before": 16, "after": 8}
    assert error(network, result.model) < 1e-3
    assert result.model.signature == network.signature


def test_data_beats_magnitude(network, calibration):
    ours = PruneChannels(0.5, calibration=calibration, multiple=1).apply(network)
    plain = PruneChannels(0.5, criterion="magnitude", multiple=1).apply(network)
    assert any("no calibration" in note for note in plain.report.notes)
    assert ours.report.data["macs_after"] <= 0.5 * ours.report.data["macs_before"]
    assert error(network, ours.model) < 0.5 * error(network, plain.model)


@pytest.mark.parametrize("criterion", ["activation", "magnitude", "random"])
def test_every_criterion_meets_the_budget(network, calibration, criterion):
    report = PruneChannels(0.7, calibration=calibration, criterion=criterion, measure=0).apply(network).report
    assert report.data["macs_after"] <= 0.7 * report.data["macs_before"]


@pytest.mark.parametrize("metric", ["keep_parameters", "keep_memory"])
def test_other_budgets(network, calibration, metric):
    result = PruneChannels(calibration=calibration, measure=0, **{metric: 0.8}).apply(network)
    name = metric.removeprefix("keep_")
    assert result.report.data[f"{name}_after"] <= 0.8 * result.report.data[f"{name}_before"]


def test_latency_is_measured(network, calibration):
    result = PruneChannels(keep_latency=0.9, calibration=calibration, measure=0, target="onnxruntime").apply(
        network
    )
    # Whether the budget is met is up to the machine; what was removed, and that it was timed, is not.
    assert any(group["after"] < group["before"] for group in result.report.data["groups"].values())
    assert 0 < result.report.data["latency_after"] < 100  # milliseconds
    assert any("ms on onnxruntime, measured" in note for note in result.report.notes)


def test_rounds_reach_the_same_budget(network, calibration):
    report = (
        PruneChannels(0.5, calibration=calibration, rounds=2, multiple=1, measure=0).apply(network).report
    )
    assert report.data["macs_after"] <= 0.5 * report.data["macs_before"]


def test_refitting_is_reported(network, calibration):
    refits = PruneChannels(0.6, calibration=calibration).apply(network).report.data["refits"]
    assert refits
    assert all(entry["after"] <= entry["before"] for entry in refits.values())


def test_an_impossible_budget_is_said(network, calibration):
    result = PruneChannels(0.01, calibration=calibration, measure=0).apply(network)
    assert any("cannot be met" in note for note in result.report.notes)


def test_nothing_to_do_changes_nothing(network, calibration):
    result = PruneChannels(1.0, calibration=calibration).apply(network)
    assert not result.report.modified
    assert result.model.digest == network.digest


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.5])
def test_a_ratio_out_of_range_is_refused(keep):
    with pytest.raises(TransformOptionError, match="keep_macs is the part to keep"):
        PruneChannels(keep)


def test_an_iterator_is_refused(network, calibration):
    with pytest.raises(CalibrationError):
        PruneChannels(calibration=iter(calibration)).apply(network)


def test_layers_without_biases_get_them_where_they_help(calibration):
    """A layer that is read and pruned at once: the bias it gets must have its new size."""
    b = graphs.Builder(seed=1)
    y = b.input("x", ["N", 4, 8, 8])
    for channels in (8, 8, 8):
        y = b.op("Sigmoid", b.conv(y, 4 if channels == 8 and y == "x" else 8, channels, bias=False))
    pooled = b.op("Flatten", b.op("GlobalAveragePool", y))
    model = b.model(b.op("Gemm", pooled, b.weight(8, 4)))
    result = PruneChannels(0.5, calibration=calibration, multiple=1).apply(model)
    assert error(model, result.model) < 0.5
    biases = [layer.bias for layer in find_layers(result.model.ir.graph)]
    assert sum(bias is not None for bias in biases) >= 2


def test_heads_note_when_there_are_none(network, calibration):
    report = PruneHeads(calibration=calibration).apply(network).report
    assert not report.modified
    assert any("no group of heads" in note for note in report.notes)


def patterns(model: Model, m: int) -> list[np.ndarray]:
    """Count the weights other than zero of each m input channels, by layer that has whole groups."""
    counts = []
    for layer in find_layers(model.ir.graph):
        weight = np.moveaxis(constant(layer.weight), layer.input_axis, -1)
        if weight.shape[-1] % m == 0:
            counts.append((weight.reshape(-1, m) != 0).sum(1))
    return counts


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4)])
def test_nm_keeps_n_of_m_input_channels(network, calibration, n, m):
    result = PruneNM(n, m, calibration=calibration).apply(network)
    counts = patterns(result.model, m)
    assert len(counts) >= 5
    assert all((count <= n).all() for count in counts)
    assert sum(result.report.data["zeros"].values()) >= (1 - n / m) * sum(
        result.report.data["weights"].values()
    )


def test_nm_refits_what_magnitude_loses(network, calibration):
    ours, plain = PruneNM(calibration=calibration).apply(network), PruneNM().apply(network)
    assert error(network, ours.model) < 0.5 * error(network, plain.model)


def test_nm_skips_odd_channels_and_is_idempotent(calibration):
    b = graphs.Builder()
    x = b.input("x", ["N", 4, 8, 8])
    odd = b.conv(b.op("Relu", b.conv(x, 4, 6)), 6, 8)
    model = b.model(b.op("Flatten", b.op("GlobalAveragePool", odd)))
    result = PruneNM(calibration=calibration).apply(model)
    assert ("Conv2", "6 input channels are no multiple of 4") in result.report.skipped
    again = PruneNM(calibration=calibration).apply(result.model)
    assert not again.report.modified
    assert ("Conv0", "it is 2:4 already") in again.report.skipped


@pytest.mark.parametrize("sparsity", [0.3, 0.7])
def test_unstructured_sparsity(network, calibration, sparsity):
    result = PruneWeights(sparsity, calibration=calibration).apply(network)
    zeros, weights = result.report.data["zeros"], result.report.data["weights"]
    assert sum(zeros.values()) == pytest.approx(sparsity * sum(weights.values()), rel=0.03)
    plain = PruneWeights(sparsity).apply(network)
    assert error(network, result.model) < error(network, plain.model)


def test_nm_needs_n_below_m():
    with pytest.raises(PreconditionError, match="n of m"):
        PruneNM(4, 4)


def test_pipeline_of_channels_and_nm(network, calibration):
    steps = [PruneChannels(0.8, calibration=calibration, multiple=4), PruneNM(calibration=calibration)]
    result = Pipeline(steps).apply(network)
    assert [entry.name for entry in result.model.history] == ["PruneChannels", "PruneNM"]
    assert result.model.signature == network.signature


def test_training_round_trip(network, calibration, tmp_path):
    sparse = PruneNM(calibration=calibration).apply(network).model
    files = export_training(sparse, tmp_path / "run")
    same = import_weights(sparse, files.weights)
    assert error(sparse, same) == 0
    with np.load(files.weights, allow_pickle=False) as archive:
        trained = {name: archive[name] + np.float32(0.01) for name in archive.files}
    tuned = import_weights(sparse, trained)
    assert all((count <= 2).all() for count in patterns(tuned, 4))
    assert error(sparse, tuned) > 0
    groups = json.loads(files.groups.read_text())["groups"]
    assert sorted(group["size"] for group in groups) == [8, 16, 16]


def test_wrong_weights_are_refused(network, tmp_path):
    with pytest.raises(PreconditionError, match="no such weight"):
        import_weights(network, {"nothing": np.zeros(3, np.float32)})
    name = find_layers(network.ir.graph)[0].weight.name
    with pytest.raises(PreconditionError, match="does not fit"):
        import_weights(network, {name: np.zeros(3, np.float32)})
    (tmp_path / "broken.npz").write_bytes(b"none")
    with pytest.raises(PreconditionError, match="cannot be read"):
        import_weights(network, tmp_path / "broken.npz")


@pytest.mark.parametrize(
    ("size", "multiple", "step"), [(16, 16, 8), (24, 16, 8), (64, 16, 16), (32, 32, 16), (4, 8, 2), (1, 8, 1)]
)
def test_small_groups_take_small_steps(size, multiple, step):
    assert step_of(size, multiple) == step


def test_levels_leave_multiples():
    assert levels(20, 8, 0.5) == [4]
    assert [58 - removed for removed in levels(58, 8, 0.85)] == [56, 48, 40, 32, 24, 16]


@pytest.mark.data
def test_resnet20_keeps_its_answers(models, baselines):
    """Thirty per cent fewer multiply-accumulates; accuracy on all rows is held by the benchmark."""
    images, labels = baselines.cifar()
    pre = (images[:700].astype(np.float32) - baselines.IM_M) / baselines.IM_S
    pre = baselines.nchw(pre)
    feeds = [{"input": pre[k : k + 50]} for k in range(0, 200, 50)]
    model = Model.load(models("cifar10_resnet20"))
    result = PruneChannels(0.7, calibration=feeds, measure=24, max_columns=8000).apply(model)
    assert result.report.data["macs_after"] <= 0.7 * result.report.data["macs_before"]
    held = {"input": pre[200:]}
    accuracy = [
        float((graphs.run(m, held)[0].argmax(1) == labels[200:700]).mean()) for m in (model, result.model)
    ]
    assert accuracy[1] > accuracy[0] - 0.08
