"""Operators that move, repeat, pad or mix channels: what goes changes nothing; what cannot go is listed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pruning import graphs
from tests.pruning.graphs import Builder, prepared

X = {"x": np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)}
TOLERANCE = 1e-4


def start(opset: int = 18):
    b = Builder(opset=opset)
    return b, b.input("x", ["N", 3, 8, 8])


def classified(b, y: str, channels: int):
    """The model with a classifier behind y, so that every channel of it is read."""
    pooled = b.op("Flatten", b.op("GlobalAveragePool", y))
    return b.model(b.op("Gemm", pooled, b.weight(channels, 5), b.weight(5)))


def drop(model, count: int = 1) -> list[int]:
    """Remove the first channels of every group; the outputs must stay. Return the sizes of the groups."""
    groups = [group for group in prepared(model)[1].groups if group.size > count]
    assert groups
    _, change = graphs.remove(model, {group.name: list(range(count)) for group in groups}, X)
    assert change < TOLERANCE
    return sorted(group.size for group in groups)


def reasons(model) -> str:
    return " / ".join(entry.reason for entry in prepared(model)[1].locked)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_channels_that_become_pixels_go_in_blocks(mode: str):
    b, x = start()
    y = b.op("DepthToSpace", b.conv(x, 3, 12), blocksize=2, mode=mode)
    assert drop(classified(b, y, 3)) == [3]


def test_pixels_that_become_channels_go_with_theirs():
    b, x = start()
    y = b.op("SpaceToDepth", b.conv(x, 3, 6), blocksize=2)
    assert drop(classified(b, y, 24), count=2) == [6]


def test_repetition_of_other_axes_keeps_channels():
    b, x = start()
    pooled = b.op("GlobalAveragePool", b.conv(x, 3, 6))
    assert drop(classified(b, b.op("Expand", pooled, b.ints(1, 6, 4, 4)), 6)) == [6]


@pytest.mark.parametrize("repeats", [(1, 2, 1, 1), (1, 1, 4, 4)])
def test_repetition_by_tiles_keeps_only_what_it_can_adapt(repeats):
    b, x = start()
    pooled = b.op("GlobalAveragePool", b.conv(x, 3, 6))
    model = classified(b, b.op("Tile", pooled, b.ints(*repeats)), 6 * repeats[1])
    if repeats[1] == 1:
        assert drop(model) == [6]
    else:
        assert "repeats this axis" in reasons(model)
        assert not prepared(model)[1].groups


def test_padding_along_named_axes():
    b, x = start()
    narrow = b.op("Relu", b.conv(x, 3, 4))
    wide = b.op("Pad", narrow, b.ints(1, 3), "", b.ints(1))
    assert drop(classified(b, b.op("Add", wide, b.conv(narrow, 4, 8)), 8)) == [4, 4]


@pytest.mark.parametrize(
    ("pads", "mode", "reason"),
    [
        ((0, -1, 0, 0, 0, 0, 0, 0), "constant", "crops or repeats"),
        ((0, 1, 0, 0, 0, 1, 0, 0), "reflect", "crops or repeats"),
    ],
)
def test_a_pad_that_crops_or_repeats_channels_is_listed(pads, mode, reason):
    b, x = start()
    y = b.op("Pad", b.conv(x, 3, 6), b.ints(*pads), mode=mode)
    channels = 6 + pads[1] + pads[5]
    assert reason in reasons(classified(b, y, channels))


def test_a_pad_with_computed_amounts_is_listed():
    b, x = start()
    computed = b.op("Cast", b.op("ReduceMean", x, b.ints(0, 1, 2, 3), keepdims=0), to=7)
    amounts = b.op("Expand", computed, b.ints(8))
    y = b.op("Pad", b.conv(x, 3, 6), amounts)
    assert "computed from data" in reasons(classified(b, y, 6))


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_group_normalization_loses_entire_groups(groups: int):
    b, x = start(opset=21)
    y = b.op("GroupNormalization", b.conv(x, 3, 6), b.weight(6), b.weight(6), num_groups=groups)
    model = classified(b, y, 6)
    assert [group.size for group in prepared(model)[1].groups] == [groups]
    if groups > 1:
        assert drop(model) == [groups]


@pytest.mark.parametrize(
    ("op", "attributes"),
    [("LRN", {"size": 3}), ("LpNormalization", {"axis": 1}), ("MeanVarianceNormalization", {})],
)
def test_normalizations_across_channels_are_listed(op: str, attributes):
    b, x = start()
    model = classified(b, b.op(op, b.conv(x, 3, 6), **attributes), 6)
    assert "mixes neighbouring channels" in reasons(model)


def test_a_reduction_with_axes_as_an_input():
    b, x = start()
    y = b.op("ReduceMean", b.conv(x, 3, 6), b.ints(2, 3), keepdims=1)
    assert drop(classified(b, y, 6)) == [6]


def test_a_reduction_over_no_axes_keeps_channels():
    b, x = start()
    y = b.op("ReduceMean", b.conv(x, 3, 6), noop_with_empty_axes=1)
    assert drop(classified(b, y, 6)) == [6]


def test_a_gather_of_one_channel_is_listed():
    b, x = start()
    single = b.op("Gather", b.conv(x, 3, 6), b.constant(np.array(2, np.int64)), axis=1)
    model = b.model(b.op("Flatten", single))
    assert "picks single channels" in reasons(model)


def test_a_split_with_computed_sizes_is_listed():
    b, x = start()
    y = b.conv(x, 3, 6)
    size = b.op("Cast", b.op("ReduceMax", x, b.ints(0, 1, 2, 3), keepdims=0), to=7)
    both = b.op("Add", b.op("Mul", b.op("Expand", size, b.ints(2)), b.ints(0, 0)), b.ints(2, 4))
    first = b.op("Split", y, both, outputs=2, axis=1).split(",")[0]
    assert "computed from data" in reasons(b.model(b.op("Flatten", first)))
