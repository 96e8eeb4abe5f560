"""Histograms and the ranges that observers choose."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeinfer.calibration.channel_observers import (
    ChannelMagnitudeObserver,
    ChannelMeanObserver,
    ChannelRangeObserver,
)
from edgeinfer.calibration.observers import (
    METHODS,
    HistogramObserver,
    MovingAverageObserver,
    make_observer,
)
from edgeinfer.errors import CalibrationError
from edgeinfer.numerics.histogram import StreamingHistogram
from edgeinfer.numerics.qparams import activation_qparams

# Wide, but not so wide that the ratio of two of them underflows float32.
magnitudes = st.floats(2.0**-50, 2.0**50, width=32)
floats = st.just(0.0) | magnitudes | magnitudes.map(lambda x: -x)
KINDS = [("uint8", False), ("int8", True), ("uint4", False)]
small = st.floats(-9, 9, width=32)
arrays = hnp.arrays(np.float32, st.integers(1, 40), elements=floats)


def filled(*parts: np.ndarray, bins: int = 64) -> StreamingHistogram:
    histogram = StreamingHistogram(bins)
    for part in parts:
        histogram.update(part)
    return histogram


def same(a: StreamingHistogram, b: StreamingHistogram) -> None:
    for x, y in zip((*a.bins(), *a.populated()), (*b.bins(), *b.populated()), strict=True):
        np.testing.assert_array_equal(x, y)
    assert (a.low, a.high, a.zeros, a.total) == (b.low, b.high, b.zeros, b.total)


@settings(max_examples=150, deadline=None)
@given(parts=st.lists(arrays, min_size=1, max_size=5))
def test_every_value_is_counted_in_the_bin_that_holds_it(parts):
    histogram = filled(*parts)
    values = np.concatenate(parts)
    assert histogram.total == values.size
    assert histogram.zeros == np.count_nonzero(values == 0)
    assert (histogram.low, histogram.high) == (float(values.min()), float(values.max()))
    edges, counts = histogram.bins()
    if counts.size:
        assert counts.size <= 64
        expected = [
            np.count_nonzero((values >= a) & (values < b) & (values != 0))
            for a, b in itertools.pairwise(edges)
        ]
        assert counts.tolist() == expected


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(arrays, min_size=2, max_size=5), order=st.randoms(use_true_random=False))
def test_order_and_grouping_do_not_matter_and_merging_is_exact(parts, order):
    whole = filled(np.concatenate(parts))
    merged = filled(parts[0])
    merged.merge(filled(*parts[1:]))
    shuffled = list(parts)
    order.shuffle(shuffled)
    one_by_one = filled(*shuffled)
    same(merged, whole)
    same(one_by_one, whole)


def test_memory_is_flat_and_the_extremes_of_a_sampled_array_are_exact():
    histogram = StreamingHistogram()
    rng = np.random.default_rng(0)
    size = None
    for i in range(20):
        x = rng.standard_normal(200_000).astype(np.float32) * (i + 1)
        x[12_345] = 1000 + i
        histogram.update(x)
        now = sum(array.nbytes for array in histogram.state().values())
        assert size in (None, now)
        size = now
    assert histogram.high == 1019
    assert 20 * 4096 <= histogram.total < 20 * 200_000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_not_finite_are_refused(method, bad):
    with pytest.raises(CalibrationError, match="not finite"):
        make_observer(method).update(np.array([1, bad, 2], np.float32))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "symmetric"), [*KINDS, ("int16", True)])
@settings(max_examples=25, deadline=None)
@given(x=arrays)
def test_a_range_is_within_the_extremes(method, dtype, symmetric, x):
    observer = make_observer(method, dtype=dtype, symmetric=symmetric)
    observer.update(x)
    low, high = observer.range()
    bound = float(max(abs(x.min()), abs(x.max()), 0)) * (1 + 1e-6)
    assert -bound <= low <= high <= bound
    activation_qparams(low, high, dtype, symmetric)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 3.0, -2.0, 1e-42])
def test_a_constant_is_kept(method, value):
    observer = make_observer(method)
    observer.update(np.full(100, value, np.float32))
    low, high = observer.range()
    qparams = activation_qparams(low, high, "uint8", False)
    back = float(qparams.fake_quantize(np.float32(value)))
    assert back == pytest.approx(value, rel=0.01, abs=1e-37)


def error_of(x: np.ndarray, ends: tuple[float, float], dtype: str, symmetric: bool) -> float:
    return float(np.mean((x - activation_qparams(*ends, dtype, symmetric).fake_quantize(x)) ** 2))


@pytest.mark.parametrize(("dtype", "symmetric"), [*KINDS, ("int8", False)])
@pytest.mark.parametrize("kind", ["normal", "relu", "outlier", "student", "shifted"])
def test_mse_is_near_the_best_range_that_brute_force_finds(kind, dtype, symmetric):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(4000).astype(np.float32)
    x = {
        "normal": x,
        "relu": np.maximum(x, 0),
        "outlier": np.append(x, np.float32(60)),
        "student": rng.standard_t(3, 4000).astype(np.float32),
        "shifted": x + 3,
    }[kind]
    observer = HistogramObserver("mse", dtype=dtype, symmetric=symmetric)
    observer.update(x)
    found = error_of(x, observer.range(), dtype, symmetric)
    low, high = min(float(x.min()), 0), max(float(x.max()), 0)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    steps = [i / 40 for i in range(1, 41)]
    pairs = [(a, a) for a in steps] if symmetric else itertools.product(steps if low else [1.0], steps)
    best = min(error_of(x, (a * low, b * high), dtype, symmetric) for a, b in pairs)
    assert found <= best * 1.05 + 1e-12
    assert found <= error_of(x, (low, high), dtype, symmetric) * 1.02


@pytest.mark.parametrize("method", ["mse", "entropy"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_many_exact_zeros_change_nothing(method, symmetric):
    rng = np.random.default_rng(0)
    x = np.abs(rng.standard_normal(3000)).astype(np.float32)
    plain, padded = (HistogramObserver(method, dtype="uint8", symmetric=symmetric) for _ in range(2))
    plain.update(x)
    padded.update(x)
    padded.update(np.zeros(1_000_000, np.float32))
    assert plain.range()[1] == padded.range()[1]
    assert plain.range()[1] > 0.6 * x.max()


@pytest.mark.parametrize("symmetric", [True, False])
def test_entropy_clips_a_far_outlier_and_keeps_a_uniform_range(symmetric):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(4000).astype(np.float32)
    observer = HistogramObserver("entropy", dtype="int8", symmetric=symmetric)
    observer.update(np.append(x, np.float32(30)))
    assert observer.range()[1] < 15
    assert observer.range()[0] < -1.5
    uniform = HistogramObserver("entropy", dtype="int8", symmetric=symmetric)
    uniform.update(rng.uniform(-1, 1, 4000).astype(np.float32))
    assert uniform.range()[1] > 0.9
    assert uniform.range()[0] < -0.9


def test_percentile_leaves_out_its_share():
    x = np.linspace(-1, 1, 4001, dtype=np.float32)
    observer = HistogramObserver("percentile", percentile=90)
    observer.update(x)
    np.testing.assert_allclose(observer.range(), (-0.9, 0.9), atol=0.01, rtol=0)
    symmetric = HistogramObserver("percentile", percentile=90, symmetric=True, dtype="int8")
    symmetric.update(x)
    np.testing.assert_allclose(symmetric.range(), (-0.9, 0.9), atol=0.01, rtol=0)


def test_the_moving_average_moves():
    observer = MovingAverageObserver(momentum=0.5)
    observer.update(np.array([-1, 1], np.float32))
    observer.update(np.array([-3, 5], np.float32))
    assert observer.range() == (-2, 3)
    assert observer.extremes == (-3, 5)


@pytest.mark.parametrize("method", METHODS)
def test_an_observer_that_saw_nothing_says_so(method):
    with pytest.raises(CalibrationError, match="seen no values"):
        make_observer(method).range()


def test_unknown_methods_and_types_are_refused():
    with pytest.raises(CalibrationError, match="no such method"):
        make_observer("magic")
    with pytest.raises(CalibrationError, match="no such dtype"):
        make_observer("mse", dtype="int7")


@settings(max_examples=30, deadline=None)
@given(
    x=hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(-9, 9, width=32)),
    axis=st.sampled_from([0, 1, -1]),
)
def test_observers_per_channel_agree_with_numpy(x, axis):
    mean, ends, magnitude = (
        ChannelMeanObserver(axis),
        ChannelRangeObserver(axis),
        ChannelMagnitudeObserver(axis),
    )
    other = tuple(i for i in range(3) if i != axis % 3)
    for part in (x, x * 2):
        for observer in (mean, ends, magnitude):
            observer.update(part)
    both = np.stack([x, x * 2])
    shifted = tuple(i + 1 for i in other)
    np.testing.assert_allclose(
        mean.mean, both.mean(axis=(0, *shifted), dtype=np.float64), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(ends.range()[0], both.min(axis=(0, *shifted)))
    np.testing.assert_array_equal(magnitude.abs_max, np.abs(both).max(axis=(0, *shifted)))
