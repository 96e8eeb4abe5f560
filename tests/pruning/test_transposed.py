"""Transposed convolutions: their phases, and that they are refitted."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeinfer.graph.initializers import constant
from edgeinfer.graph.layers import find_layers
from edgeinfer.pruning.reconstruction.frontier import run, tap
from edgeinfer.pruning.reconstruction.transposed import phases
from edgeinfer.transforms import PruneChannels

_spec = importlib.util.spec_from_file_location("pruning_graphs", Path(__file__).with_name("graphs.py"))
graphs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(graphs)


def _model(*, kernel: int, stride: int, pad: int, group: int = 1, extra: int = 0):
    b = graphs.Builder(seed=3)
    x = b.input("x", ["N", 3, 6, 5])
    wide = b.op("Relu", b.conv(x, 3, 16))
    up = b.op(
        "ConvTranspose",
        wide,
        b.weight(16, 8 // group, kernel, kernel),
        b.weight(8),
        kernel_shape=[kernel, kernel],
        strides=[stride, stride],
        pads=[pad] * 4,
        output_padding=[extra, extra],
        group=group,
    )
    return b.model(up)


@settings(max_examples=25, deadline=None)
@given(
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    pad=st.integers(0, 1),
    group=st.sampled_from([1, 2]),
    extra=st.integers(0, 1),
)
def test_phases_are_the_whole_operator(kernel, stride, pad, group, extra):
    if 2 * pad >= kernel or extra >= stride:
        return
    model = _model(kernel=kernel, stride=stride, pad=pad, group=group, extra=extra)
    work, _ = graphs.prepared(model)
    layer = find_layers(work.graph)[1]
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 6, 5)).astype(np.float32)}
    (y,) = graphs.run(model, feed)
    with tap(work, [layer.input.name]) as session:
        x = next(run(session, [feed]))[layer.input.name]
    weight = constant(layer.weight)
    got = np.zeros(y.shape) + constant(layer.bias).reshape(1, -1, 1, 1)
    for phase in phases(layer.node, weight.shape, y.shape[2:]):
        for piece, index in phase.layout.columns(phase.read(x)):
            part = phase.matrix(weight) @ piece
            shape = (2, *phase.output(y).shape[2:])
            assert len(index) == np.prod(shape)
            part = np.moveaxis(part.reshape(-1, *shape), 0, 1)
            where = tuple(slice(o, None, s) for o, s in zip(phase.offsets, phase.strides, strict=True))
            got[(slice(None), slice(None), *where)] += part
    np.testing.assert_allclose(got, y, rtol=1e-4, atol=1e-4)


def test_writing_a_phase_back_changes_nothing():
    work, _ = graphs.prepared(_model(kernel=4, stride=2, pad=1, group=2))
    layer = find_layers(work.graph)[1]
    weight = constant(layer.weight).astype(np.float64)
    again = np.zeros_like(weight)
    for phase in phases(layer.node, weight.shape, (12, 10)):
        phase.write(again, phase.matrix(weight))
    np.testing.assert_array_equal(again, weight)


@pytest.mark.parametrize("kernel", [2, 4])
def test_refit_brings_the_output_closer(kernel):
    model = _model(kernel=kernel, stride=2, pad=kernel // 4)
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.standard_normal((8, 3, 6, 5)).astype(np.float32)} for _ in range(6)]
    transform = PruneChannels(0.7, calibration=feeds, multiple=1, measure=0)
    result = transform.apply(model)
    refit = result.report.data["refits"]["ConvTranspose2"]
    assert refit["after"] < refit["before"]
    plain = attrs.evolve(transform, calibration=None, criterion="magnitude").apply(model).model
    held = {"x": rng.standard_normal((8, 3, 6, 5)).astype(np.float32)}
    wanted, ours, theirs = (graphs.run(m, held)[0] for m in (model, result.model, plain))
    assert np.square(ours - wanted).mean() < 0.8 * np.square(theirs - wanted).mean()
