"""Random graphs of supported operators stay valid, keep their signature, and lose nothing that is read."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeinfer.model.model import Model
from edgeinfer.pruning.structure.surgery import kept_rows
from edgeinfer.transforms import PruneChannels

_spec = importlib.util.spec_from_file_location("pruning_graphs", Path(__file__).with_name("graphs.py"))
assert _spec is not None
assert _spec.loader is not None
graphs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(graphs)

STEPS = (
    "conv", "relu", "depthwise", "grouped", "residual", "concat", "shuffle", "pool", "norm", "gate", "split",
    "pad", "scalar", "shared bias", "transposed", "subgraph", "slice", "clip",
)  # fmt: skip


@st.composite
def networks(draw: st.DrawFn) -> Model:
    b = graphs.Builder(seed=draw(st.integers(0, 1000)))
    x = b.input("x", ["N", 3, 8, 8])
    channels = draw(st.sampled_from([4, 8]))
    x = b.conv(x, 3, channels)
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=7)):
        x, channels = grow(b, x, channels, step, draw)
    pooled = b.op("Flatten", b.op("GlobalAveragePool", x))
    alpha, beta = draw(st.sampled_from([(1.0, 1.0), (0.5, 2.0)]))
    y = b.op("Gemm", pooled, b.weight(channels, 5), b.weight(5), alpha=alpha, beta=beta)
    if not draw(st.booleans()):
        return b.model(y)
    names = b.constant(np.array(list("abcde"), object))
    return b.model(y, texts=[b.op("Gather", names, b.op("ArgMax", y, axis=1, keepdims=0))])


def grow(b, x: str, c: int, step: str, draw: st.DrawFn) -> tuple[str, int]:
    wider = draw(st.sampled_from([4, 8, 12]))
    if step == "conv":
        return b.conv(x, c, wider, draw(st.sampled_from([1, 3])), bias=draw(st.booleans())), wider
    if step == "relu":
        return b.op(draw(st.sampled_from(["Relu", "Sigmoid", "LeakyRelu", "HardSwish"])), x), c
    if step == "depthwise":
        return b.conv(x, c, c, group=c), c
    if step == "grouped":
        return b.conv(x, c, wider, group=2 if c % 2 == 0 else 1), wider
    if step == "residual":
        return b.op("Add", x, b.conv(b.op("Relu", b.conv(x, c, wider)), wider, c)), c
    if step == "concat":
        return b.op("Concat", x, b.conv(x, c, wider, 1), axis=1), c + wider
    if step == "shuffle" and c % 2:
        return x, c
    if step == "shuffle":
        apart = b.op("Reshape", x, b.ints(-1, 2, c // 2, 8, 8))
        return b.op("Reshape", b.op("Transpose", apart, perm=[0, 2, 1, 3, 4]), b.ints(-1, c, 8, 8)), c
    if step == "pool":
        return b.op("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), c
    if step == "norm":
        positive = b.constant(np.full(c, 0.7, np.float32))
        return b.op("BatchNormalization", x, b.weight(c), b.weight(c), b.weight(c), positive), c
    if step == "gate":
        gate = b.op("Sigmoid", b.conv(b.op("GlobalAveragePool", x), c, c, 1))
        return b.op("Mul", x, gate), c
    if step == "split":
        left, right = b.op("Split", x, b.ints(c // 2, c - c // 2), axis=1, outputs=2).split(",")
        return b.op("Concat", right, b.conv(left, c // 2, wider), axis=1), c - c // 2 + wider
    if step == "scalar":
        gain = b.input("gain", []) if draw(st.booleans()) else b.constant(np.array(0.7, np.float32))
        return b.op(draw(st.sampled_from(["Mul", "Add", "Div"])), x, gain), c
    if step == "shared bias":
        bias = b.weight(c)
        for _ in range(2):
            x = b.op("Relu", b.op("Conv", x, b.weight(c, c, 1, 1), bias))
        return x, c
    if step == "transposed":
        group = draw(st.sampled_from([1, 2, c]))
        out = c if group == c else wider
        weight, bias = b.weight(c, out // group, 3, 3), b.weight(out)
        return b.op("ConvTranspose", x, weight, bias, pads=[1, 1, 1, 1], group=group), out
    if step == "subgraph":
        return b.choose(x, ["N", c, 8, 8]), c
    if step == "slice" and c >= 6:
        return b.op("Slice", x, b.ints(1), b.ints(c - 1), b.ints(1)), c - 2
    if step in ("clip", "slice"):
        return b.op("Clip", x, b.constant(np.array(0, np.float32)), b.constant(np.array(1, np.float32))), c
    return b.op("Pad", x, b.ints(0, 2, 0, 0, 0, 2, 0, 0)), c + 4


FEED = {
    "x": np.random.default_rng(3).standard_normal((2, 3, 8, 8)).astype(np.float32),
    "gain": np.array(1.5, np.float32),
    "flag": np.array(True),
}


def feed_of(model: Model) -> dict[str, np.ndarray]:
    return {spec.name: FEED[spec.name] for spec in model.signature.inputs}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(networks(), st.integers(0, 1000))
def test_removing_unread_channels_changes_no_output(model: Model, seed: int):
    rng = np.random.default_rng(seed)
    picks = {
        group.name: rng.choice(group.size, rng.integers(0, group.size), replace=False).tolist()
        for group in graphs.prepared(model)[1].groups
    }
    work, change = graphs.remove(model, picks, feed_of(model))
    scale = max(1.0, float(np.abs(graphs.run(work, feed_of(model))[0]).max()))
    assert change / scale < 1e-4  # float32
    assert Model.from_ir(work).signature == model.signature


@settings(max_examples=60, deadline=None, derandomize=True)
@given(networks())
def test_groups_are_closed(model: Model):
    """Whatever a channel touches is in its group's slices, and groups do not overlap."""
    _, dependencies = graphs.prepared(model)
    taken: set[int] = set()
    for group in dependencies.groups:
        classes = dependencies.members[group.name]
        assert len(classes) == group.size
        assert not taken & set(classes)
        taken |= set(classes)
        for channel, label in enumerate(classes):
            touched = {
                (value.name, axis): tuple(np.flatnonzero(~mask).tolist())
                for value, axes in kept_rows(dependencies, [label]).items()
                for axis, mask in enumerate(axes)
                if mask is not None and not mask.all()
            }
            listed = {(part.tensor, part.axis): part.positions[channel] for part in group.slices}
            assert touched == listed


@settings(max_examples=12, deadline=None, derandomize=True)
@given(networks(), st.sampled_from([0.5, 0.8]))
def test_reports_add_up(model: Model, keep: float):
    result = PruneChannels(keep, calibration=[feed_of(model)], multiple=1, measure=2).apply(model)
    data = result.report.data
    assert result.report.modified == bool(result.report.applied)
    if not result.report.modified:
        assert result.report.notes or result.report.skipped
        return
    removed = {
        name: g["before"] - g["after"] for name, g in data["groups"].items() if g["before"] > g["after"]
    }
    assert {entry.node for entry in result.report.applied} == set(removed)
    assert data["macs_after"] < data["macs_before"]
    assert result.model.nbytes < model.nbytes + 4 * 200  # smaller, but for biases that were added
    missed = any("cannot be met" in note for note in result.report.notes)
    assert missed != (data["macs_after"] <= keep * data["macs_before"] * (1 + 1e-9))
