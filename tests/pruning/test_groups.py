"""Each family of operators: which channels it couples, and that removing unread ones changes nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

_spec = importlib.util.spec_from_file_location("pruning_graphs", Path(__file__).with_name("graphs.py"))
assert _spec is not None
assert _spec.loader is not None
graphs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(graphs)
Builder, prepared, remove, run = graphs.Builder, graphs.prepared, graphs.remove, graphs.run

X = {"x": np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)}
TOLERANCE = 1e-4  # float32, sums of up to a few hundred products


def head(b, x: str, channels: int) -> str:
    """A classifier, so that every channel before it is read."""
    pooled = b.op("Flatten", b.op("GlobalAveragePool", x))
    return b.op("Gemm", pooled, b.weight(channels, 5), b.weight(5))


def groups_of(model):
    return {group.name: group for group in prepared(model)[1].groups}


def drop_first(model, feeds=X, count: int = 2):
    """Remove the first channels of every group; the outputs must stay."""
    picks = {name: list(range(min(count, g.size - 1))) for name, g in groups_of(model).items() if g.size > 1}
    assert picks
    work, change = remove(model, picks, feeds)
    assert change < TOLERANCE
    return work


def weight_shape(work, node: str) -> tuple[int, ...]:
    found = next(n for n in work.graph if n.name == node)
    return tuple(found.inputs[1].shape)


def start(opset: int = 17):
    b = Builder(opset=opset)
    return b, b.input("x", ["N", 3, 8, 8])


def test_chain_shrinks_weights_and_biases():
    b, x = start()
    model = b.model(head(b, b.op("Relu", b.conv(b.op("Relu", b.conv(x, 3, 8)), 8, 16)), 16))
    work = drop_first(model)
    assert weight_shape(work, "Conv0") == (6, 3, 3, 3)
    assert weight_shape(work, "Conv2") == (14, 6, 3, 3)


def test_residual_sum_is_one_group():
    b, x = start()
    first = b.op("Relu", b.conv(x, 3, 8))
    inner = b.op("Relu", b.conv(first, 8, 12))
    total = b.op("Add", first, b.conv(inner, 12, 8))
    model = b.model(head(b, total, 8))
    groups = groups_of(model)
    assert groups["Conv0"].producers == ("Conv0", "Conv4")
    assert groups["Conv0"].consumers == ("Conv2", "Gemm8")
    assert groups["Conv2"].size == 12
    drop_first(model)


def test_several_consumers_shrink_together():
    b, x = start()
    first = b.conv(x, 3, 8)
    outputs = [head(b, b.conv(first, 8, 6, k), 6) for k in (1, 3)]
    work = drop_first(b.model(*outputs))
    assert weight_shape(work, "Conv1")[1] == weight_shape(work, "Conv5")[1] == 6


def test_concat_keeps_its_parts_apart():
    b, x = start()
    joined = b.op("Concat", b.conv(x, 3, 4, 1), b.conv(x, 3, 6), axis=1)
    model = b.model(head(b, b.conv(joined, 10, 8), 8))
    groups = groups_of(model)
    assert groups["Conv0"].size == 4
    assert groups["Conv1"].size == 6
    assert groups["Conv1"].positions("w4", 1, [0, 5]) == (4, 9)
    work = drop_first(model)
    assert weight_shape(work, "Conv3")[1] == 6


def test_split_and_slice_of_channels_adapt_their_sizes():
    b, x = start()
    first = b.conv(x, 3, 8)
    left, right = b.op("Split", first, b.ints(3, 5), axis=1, outputs=2).split(",")
    tail = b.op("Slice", first, b.ints(2), b.ints(7), b.ints(1))
    joined = b.op("Concat", b.conv(left, 3, 4), b.conv(right, 5, 4), b.conv(tail, 5, 4), axis=1)
    model = b.model(head(b, joined, 12))
    work, change = remove(model, {name: [0] for name, g in groups_of(model).items() if g.size > 1}, X)
    assert change < TOLERANCE
    assert weight_shape(work, "Conv0")[0] < 8


def test_depthwise_goes_with_its_input():
    b, x = start()
    wide = b.op("Clip", b.conv(x, 3, 8, 1), b.constant(np.float32(0)), b.constant(np.float32(6)))
    narrow = b.conv(b.conv(wide, 8, 8, group=8), 8, 6, 1)
    model = b.model(head(b, narrow, 6))
    assert groups_of(model)["Conv0"].producers == ("Conv0", "Conv2")
    work = drop_first(model)
    depthwise = next(n for n in work.graph if n.name == "Conv2")
    assert depthwise.attributes["group"].value == 6


def test_depthwise_with_a_multiplier():
    b, x = start()
    model = b.model(head(b, b.conv(b.conv(x, 3, 4, 1), 4, 8, group=4), 8))
    assert groups_of(model)["Conv0"].size == 4
    work = drop_first(model)
    assert weight_shape(work, "Conv1") == (4, 1, 3, 3)


def test_grouped_convolution_keeps_equal_groups():
    b, x = start()
    model = b.model(head(b, b.conv(b.conv(x, 3, 8, 1), 8, 12, group=2), 12))
    groups = groups_of(model)
    assert groups["Conv0"].size == 4
    assert groups["Conv1"].size == 6
    work = drop_first(model)
    assert weight_shape(work, "Conv1") == (8, 2, 3, 3)


def test_transposed_convolution():
    b, x = start()
    up = b.op("ConvTranspose", b.conv(x, 3, 8), b.weight(8, 6, 2, 2), b.weight(6), strides=[2, 2])
    work = drop_first(b.model(head(b, up, 6)))
    assert weight_shape(work, "ConvTranspose1") == (6, 4, 2, 2)


@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm_either_way_round(trans_b: int):
    b = Builder()
    x = b.input("x", ["N", 5])
    hidden = b.op("Gemm", x, b.weight(5, 8), b.weight(8))
    last = b.weight(*((4, 8) if trans_b else (8, 4)))
    model = b.model(b.op("Gemm", b.op("Relu", hidden), last, b.weight(4), transB=trans_b))
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)}
    assert weight_shape(drop_first(model, feeds), "Gemm0") == (5, 6)


def test_flatten_repeats_the_channel():
    b, x = start()
    flat = b.op("Flatten", b.op("MaxPool", b.conv(x, 3, 6), kernel_shape=[2, 2], strides=[2, 2]))
    work = drop_first(b.model(b.op("Gemm", flat, b.weight(96, 5), b.weight(5))))
    assert weight_shape(work, "Gemm3") == (64, 5)


def shuffle(b, x: str, groups: int, channels: int) -> str:
    apart = b.op("Reshape", x, b.ints(-1, groups, channels // groups, 8, 8))
    return b.op("Reshape", b.op("Transpose", apart, perm=[0, 2, 1, 3, 4]), b.ints(-1, channels, 8, 8))


def test_channel_shuffle_pairs_the_branches():
    b, x = start()
    joined = b.op("Concat", b.conv(x, 3, 4), b.conv(x, 3, 4, 1), axis=1)
    model = b.model(head(b, b.conv(shuffle(b, joined, 2, 8), 8, 6), 6))
    group = groups_of(model)["Conv0"]
    assert group.size == 4
    assert group.producers == ("Conv0", "Conv1")
    drop_first(model)


def sized_shuffle(b, x: str, groups: int, channels: int, opset: int) -> str:
    """The shuffle as exporters write it for a batch of any size: every size is read from a shape."""
    shape = b.op("Shape", x)

    def size(axis: int) -> str:
        scalar = b.op("Gather", shape, b.constant(np.array(axis)))
        return b.op("Unsqueeze", scalar, axes=[0]) if opset < 13 else b.op("Unsqueeze", scalar, b.ints(0))

    target = b.op("Concat", size(0), b.ints(groups), b.ints(channels // groups), size(2), size(3), axis=0)
    swapped = b.op("Transpose", b.op("Reshape", x, target), perm=[0, 2, 1, 3, 4])
    return b.op("Reshape", swapped, b.op("Concat", size(0), size(1), size(2), size(3), axis=0))


@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize("shape", [["N", 3, 8, 8], ["N", 3, "H", "W"], [2, 3, 8, 8]])
def test_channel_shuffles_with_sizes_read_from_shapes(shape, opset: int):
    b = Builder(opset=opset)
    x = b.input("x", shape)
    joined = b.op("Concat", b.conv(x, 3, 4), b.conv(x, 3, 4, 1), axis=1)
    first = b.conv(sized_shuffle(b, joined, 2, 8, opset), 8, 8)
    model = b.model(head(b, b.conv(sized_shuffle(b, first, 2, 8, opset), 8, 6), 6))
    groups = groups_of(model)
    assert groups["Conv0"].producers == ("Conv0", "Conv1")
    assert [group.size for group in groups.values()] == [4, 4, 6]
    drop_first(model)


def test_rows_of_channels_with_sizes_cut_from_a_shape():
    """Flatten of the spatial axes, as exporters write it: the shape up to the channels, then -1."""
    b = Builder()
    x = b.conv(b.input("x", ["N", 3, 8, 8]), 3, 8)
    front = b.op("Slice", b.op("Shape", x), b.ints(0), b.ints(2), b.ints(0))
    rows = b.op("Reshape", x, b.op("Concat", front, b.ints(-1), axis=0))
    features = b.op("MatMul", b.op("Transpose", rows, perm=[0, 2, 1]), b.weight(8, 6))
    model = b.model(b.op("MatMul", features, b.weight(6, 4)))
    assert [group.size for group in groups_of(model).values()] == [8, 6]
    drop_first(model)


def test_padded_shortcut():
    b, x = start()
    narrow = b.op("Relu", b.conv(x, 3, 4))
    wide = b.op("Pad", narrow, b.ints(0, 2, 0, 0, 0, 2, 0, 0))
    total = b.op("Add", wide, b.conv(narrow, 4, 8))
    model = b.model(head(b, total, 8))
    assert {group.size for group in groups_of(model).values()} == {4}
    drop_first(model)


@pytest.mark.parametrize("op", ["InstanceNormalization", "BatchNormalization"])
def test_statistics_of_a_channel_go_with_it(op: str):
    b, x = start()
    extra = [b.constant(np.full(6, v, np.float32)) for v in ((0.1, 0.5) if op[0] == "B" else ())]
    normal = b.op(op, b.conv(x, 3, 6), b.weight(6), b.weight(6), *extra)
    drop_first(b.model(head(b, normal, 6)))


def test_layer_normalization_holds_its_channels():
    b = Builder()
    x = b.input("x", ["N", 5])
    hidden = b.op("LayerNormalization", b.op("MatMul", x, b.weight(5, 8)), b.weight(8), b.weight(8))
    dependencies = prepared(b.model(b.op("MatMul", hidden, b.weight(8, 3))))[1]
    assert not dependencies.groups
    assert any("statistics over these channels" in entry.reason for entry in dependencies.locked)


def test_elementwise_operators_and_broadcasting():
    b, x = start()
    y = b.op("PRelu", b.conv(x, 3, 6), b.weight(6, 1, 1))
    y = b.op("Mul", y, b.weight(1, 6, 1, 1))
    y = b.op("Sub", y, b.weight(1, 1, 1, 1))
    y = b.op("Div", y, b.constant(np.full((6, 1, 1), 2, np.float32)))
    gate = b.op("Sigmoid", b.conv(b.op("GlobalAveragePool", y), 6, 6, 1))
    y = b.op("Resize", b.op("Mul", y, gate), "", b.constant(np.array([1, 1, 2, 2], np.float32)))
    y = b.op("ReduceMean", y, axes=[2, 3], keepdims=0)
    drop_first(b.model(b.op("Gemm", y, b.weight(6, 4), b.weight(4))))


def test_gather_of_channels():
    b, x = start()
    picked = b.op("Gather", b.conv(x, 3, 6), b.ints(5, 0, 3, 2), axis=1)
    drop_first(b.model(head(b, b.conv(picked, 4, 6), 6)), count=1)


def test_attention_heads():
    b = Builder()
    x = b.input("x", ["N", 7, 12])

    def project(order: list[int]) -> str:
        y = b.op("Add", b.op("MatMul", x, b.weight(12, 12)), b.weight(12))
        return b.op("Transpose", b.op("Reshape", y, b.ints(0, 7, 4, 3)), perm=order)

    q, k, v = project([0, 2, 1, 3]), project([0, 2, 3, 1]), project([0, 2, 1, 3])
    mixed = b.op("MatMul", b.op("Softmax", b.op("MatMul", q, k), axis=-1), v)
    back = b.op("Reshape", b.op("Transpose", mixed, perm=[0, 2, 1, 3]), b.ints(0, 7, 12))
    model = b.model(b.op("MatMul", back, b.weight(12, 12)))
    (group,) = groups_of(model).values()
    assert group.kind == "head"
    assert group.size == 4
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 7, 12)).astype(np.float32)}
    work = drop_first(model, feeds, count=1)
    assert weight_shape(work, "MatMul0") == (12, 9)


def test_unknown_operator_is_listed():
    b, x = start()
    y = b.op("Einsum", b.conv(x, 3, 6), equation="nchw->nchw")
    dependencies = prepared(b.model(head(b, y, 6)))[1]
    assert not dependencies.groups
    assert any(e.node == "Einsum1" and "no rule for Einsum" in e.reason for e in dependencies.locked)


def test_graph_outputs_are_listed():
    b, x = start()
    y = b.conv(x, 3, 6)
    dependencies = prepared(b.model(y, head(b, y, 6)))[1]
    assert not dependencies.groups
    assert any("output of the graph" in entry.reason and entry.channels == 6 for entry in dependencies.locked)


def test_shared_weight_couples_its_users():
    b, x = start()
    first = b.conv(x, 3, 6)
    shared = b.weight(6, 6, 1, 1)
    twice = b.op("Conv", b.op("Relu", b.op("Conv", first, shared)), shared)
    (group,) = (groups_of(b.model(head(b, twice, 6))).values(),)
    (only,) = group
    assert only.producers[:1] == ("Conv0",)
    drop_first(b.model(head(b, twice, 6)))
