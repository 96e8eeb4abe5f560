"""What pruning says: what it refuses and why, what it asked for and reached, and wrong options at once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as nh
import pytest

from edgeinfer.errors import CalibrationError, PreconditionError, TargetError, TransformOptionError
from edgeinfer.model.model import Model
from edgeinfer.transforms import PruneChannels, PruneHeads, PruneNM, PruneWeights

_spec = importlib.util.spec_from_file_location("pruning_graphs", Path(__file__).with_name("graphs.py"))
assert _spec is not None
assert _spec.loader is not None
graphs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(graphs)


def feeds(*shape: int, count: int = 8) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def chain(*widths: int) -> Model:
    b = graphs.Builder(seed=2)
    x, before = b.input("x", ["N", 3, 8, 8]), 3
    for width in widths:
        x, before = b.op("Relu", b.conv(x, before, width)), width
    pooled = b.op("Flatten", b.op("GlobalAveragePool", x))
    return b.model(b.op("Gemm", pooled, b.weight(before, 5), b.weight(5)))


def detector() -> Model:
    """Scores and boxes go into NonMaxSuppression; a second stage reads what it keeps."""
    b = graphs.Builder(seed=4)
    h = b.op("Relu", b.conv(b.op("Relu", b.conv(b.input("x", [1, 3, 8, 8]), 3, 16)), 16, 16))
    boxes = b.op("Reshape", b.conv(h, 16, 4, 1), b.ints(0, 4, -1))
    boxes = b.op("Sigmoid", b.op("Transpose", boxes, perm=[0, 2, 1]))
    scores = b.op("Sigmoid", b.op("Reshape", b.conv(h, 16, 3, 1), b.ints(0, 3, -1)))
    half = b.constant(np.array([0.5], np.float32))
    kept = b.op("NonMaxSuppression", boxes, scores, b.ints(20), half, half)
    picks = b.op("Gather", kept, b.constant(np.array(2)), axis=1)
    rows = b.op("Gather", b.op("Squeeze", boxes, b.ints(0)), picks)
    deep = b.op("Relu", b.op("Gemm", rows, b.weight(4, 32), b.weight(32)))
    return b.model(b.op("Gemm", deep, b.weight(32, 2), b.weight(2)))


def test_outputs_of_a_size_that_depends_on_the_data_are_judged_by_what_is_in_front():
    result = PruneChannels(0.8, calibration=feeds(1, 3, 8, 8), multiple=1).apply(detector())
    assert result.report.modified
    assert any("its size depends on the data" in note for note in result.report.notes)
    reasons = [reason for _, reason in result.report.skipped]
    assert any("how often they are read depends on the data" in reason for reason in reasons)


@pytest.mark.parametrize("transform", [PruneNM, PruneWeights])
def test_layers_behind_a_size_that_depends_on_the_data_are_named(transform):
    result = transform(calibration=feeds(1, 3, 8, 8)).apply(detector())
    reasons = {node: reason for node, reason in result.report.skipped if "depends on the data" in reason}
    assert len(reasons) == 2
    assert result.report.modified


def test_texts_are_judged_by_the_scores_behind_them():
    b = graphs.Builder(seed=3)
    z = b.op(
        "MatMul", b.op("Relu", b.op("MatMul", b.input("x", ["N", 16]), b.weight(16, 32))), b.weight(32, 3)
    )
    names = b.constant(np.array(["cat", "dog", "bird"], object))
    label = b.op("Gather", names, b.op("ArgMax", z, axis=1, keepdims=0))
    graph = oh.make_graph(
        b.nodes,
        "labels",
        b.inputs,
        [oh.make_tensor_value_info(label, onnx.TensorProto.STRING, ["N"])],
        b.weights,
    )
    model = Model.load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8))
    result = PruneChannels(0.7, calibration=feeds(4, 16), multiple=1).apply(model)
    assert result.report.modified
    assert any(f"is judged by {z!r}" in note for note in result.report.notes)


def test_layers_out_of_reach_are_named():
    b = graphs.Builder(seed=3)
    y = b.op("Relu", b.conv(b.op("Relu", b.conv(b.input("x", [1, 3, 8, 8]), 3, 8)), 8, 8))
    weight = nh.from_array(np.ones((8, 8, 1, 1), np.float32), "inner")
    branch = [
        oh.make_graph(
            [oh.make_node("Conv", [y, "inner"], [f"{name}_y"], f"conv_{name}")],
            name,
            [],
            [oh.make_tensor_value_info(f"{name}_y", onnx.TensorProto.FLOAT, [1, 8, 8, 8])],
            [weight],
        )
        for name in ("yes", "no")
    ]
    b.inputs.append(oh.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []))
    b.nodes.append(
        oh.make_node("If", ["flag"], ["z"], "choose", then_branch=branch[0], else_branch=branch[1])
    )
    out = b.op("Einsum", "z", b.weight(8, 4), equation="nchw,cd->ndhw")
    model = b.model(out)
    data = [{**feed, "flag": np.array(True)} for feed in feeds(1, 3, 8, 8)]
    for transform in (PruneChannels(0.8, calibration=data, multiple=1), PruneNM(calibration=data)):
        skipped = dict(transform.apply(model).report.skipped)
        assert "layers in its subgraph" in skipped["choose"]
        assert "Einsum" in skipped[f"Einsum{len(b.nodes) - 1}"]


def test_the_report_says_what_was_asked_and_what_was_reached():
    report = PruneChannels(0.8, calibration=feeds(2, 3, 8, 8), multiple=4).apply(chain(16, 16)).report
    reached = report.data["macs_after"] / report.data["macs_before"]
    assert any(f"asked to keep 80.0%, kept {reached:.1%}" in note for note in report.notes)
    assert any("x (1, 3, 8, 8), the first sample of the calibration" in note for note in report.notes)


@pytest.mark.parametrize("keep", [0.95, 0.8])
def test_steps_become_finer_where_whole_ones_take_much_more_than_asked(keep):
    """One group of 32 channels holds nearly all the work: half of it would go by steps of 16."""
    report = PruneChannels(keep, calibration=feeds(2, 3, 8, 8), multiple=16).apply(chain(32)).report
    reached = report.data["macs_after"] / report.data["macs_before"]
    assert keep - 0.05 <= reached <= keep
    assert any("not 16: with 16 the nearest" in note for note in report.notes)


def test_sizes_that_are_not_known_are_asked_for():
    b = graphs.Builder(seed=2)
    y = b.conv(b.op("Relu", b.conv(b.input("x", ["N", 3, "H", "W"]), 3, 16)), 16, 8)
    model = b.model(b.op("GlobalAveragePool", b.op("Relu", b.conv(y, 8, 4))))
    with pytest.raises(PreconditionError, match="a size is not known") as caught:
        PruneChannels(0.8).apply(model)
    assert "calibration=" in str(caught.value)
    with pytest.raises(PreconditionError, match="size"):
        PruneChannels(keep_latency=0.8).apply(model)
    assert PruneChannels(keep_parameters=0.7, multiple=1).apply(model).report.modified
    report = PruneChannels(0.8, calibration=feeds(2, 3, 8, 6), multiple=1).apply(model).report
    assert any("x (1, 3, 8, 6)" in note for note in report.notes)


def test_nodes_that_are_to_be_kept_keep_their_weights():
    model = chain(16, 16)
    kept = PruneChannels(0.8, calibration=feeds(2, 3, 8, 8), multiple=1, keep_nodes=["Conv2"]).apply(model)
    weights = [m.ir.graph.initializers["w2"].const_value.numpy() for m in (model, kept.model)]
    np.testing.assert_array_equal(*weights)
    dense = PruneNM(calibration=feeds(2, 3, 8, 8), keep_nodes=["Conv2"]).apply(model)
    assert ("Conv2", "keep_nodes has it") in dense.report.skipped
    np.testing.assert_array_equal(dense.model.ir.graph.initializers["w2"].const_value.numpy(), weights[0])


@pytest.mark.parametrize("transform", [PruneChannels, PruneHeads, PruneNM, PruneWeights])
def test_unknown_names_are_refused_with_those_most_like_them(transform):
    with pytest.raises(PreconditionError, match="no node 'Conv22'") as caught:
        transform(keep_nodes=["Conv22"]).apply(chain(16, 16))
    assert "Conv2" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: PruneChannels(0.8, criterion="magnitud"), TransformOptionError, "Did you mean 'magnitude'"),
        (lambda: PruneChannels(0.8, multiple=0), TransformOptionError, "multiple"),
        (lambda: PruneChannels(0.8, rounds=1.5), TransformOptionError, "rounds"),
        (lambda: PruneChannels(None), TransformOptionError, "budget"),
        (lambda: PruneChannels("0.8"), TransformOptionError, "keep_macs"),
        (lambda: PruneChannels(20), TransformOptionError, "write keep_macs=0.8"),
        (lambda: PruneChannels(0.8, max_columns=3), TransformOptionError, "max_columns"),
        (lambda: PruneChannels(0.8, target="toaster"), TargetError, "toaster"),
        (lambda: PruneHeads(0), TransformOptionError, "keep"),
        (lambda: PruneHeads(calibration=iter([])), CalibrationError, "only once"),
        (lambda: PruneNM(n=0), TransformOptionError, "n does not fit"),
        (lambda: PruneNM(calibration=3), CalibrationError, "no feeds"),
        (lambda: PruneWeights(sparsity=1.0), TransformOptionError, "sparsity"),
        (lambda: PruneWeights(ridge=-1), TransformOptionError, "ridge"),
    ],
)
def test_wrong_options_are_refused_at_construction(make, error, text):
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)
