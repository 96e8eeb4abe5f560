"""The algebra of closeness, against its definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeinfer.numerics.closeness import ClosenessAccumulator

FLOATS = st.floats(-1e3, 1e3, allow_nan=False, width=32)
PAIRS = hnp.array_shapes(max_dims=3, max_side=6).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.float32, shape, elements=FLOATS), hnp.arrays(np.float32, shape, elements=FLOATS)
    )
)


def closeness(a, b, **options):
    total = ClosenessAccumulator(**options)
    total.update(np.asarray(a), np.asarray(b))
    return total.result()


@settings(deadline=None)
@given(PAIRS)
def test_figures_are_those_of_the_definitions(pair):
    a, b = (x.astype(np.float64) for x in pair)
    found = closeness(*pair)
    assert found.max_abs == pytest.approx(np.abs(a - b).max(), rel=1e-12)
    assert found.mean_abs == pytest.approx(np.abs(a - b).mean(), rel=1e-9)
    noise, signal = ((a - b) ** 2).sum(), (a**2).sum()
    if noise > 0 and signal > 0:
        assert found.sqnr_db == pytest.approx(10 * math.log10(signal / noise), rel=1e-9, abs=1e-9)
    assert -1 <= found.cosine <= 1


@settings(deadline=None)
@given(PAIRS, st.integers(0, 5))
def test_batches_add_up_to_the_whole(pair, at):
    whole = closeness(*pair)
    parts = ClosenessAccumulator()
    for piece in (slice(None, at), slice(at, None)):
        parts.update(pair[0][piece], pair[1][piece])
    assert parts.result().sqnr_db == pytest.approx(whole.sqnr_db, rel=1e-9, abs=1e-9)
    assert parts.result().elements == whole.elements


def test_equal_tensors_are_infinitely_close():
    found = closeness([1.0, -2.0], [1.0, -2.0])
    assert (found.sqnr_db, found.max_abs, found.cosine) == (math.inf, 0.0, pytest.approx(1.0))


def test_all_zeros_are_equal_to_themselves_and_far_from_anything_else():
    assert closeness([0.0], [0.0]).sqnr_db == math.inf
    assert closeness([0.0], [0.0]).cosine == 1.0
    assert closeness([0.0], [1.0]).sqnr_db == -math.inf


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_nan_that_the_reference_has_not_is_never_hidden(broken):
    found = closeness([1.0, 2.0], [1.0, broken])
    assert found.sqnr_db == -math.inf
    assert found.max_abs == math.inf


def test_infinities_that_both_have_are_no_difference():
    found = closeness([-math.inf, 2.0, math.nan], [-math.inf, 2.0, math.nan])
    assert found.sqnr_db == math.inf
    assert found.max_abs == 0.0


def test_top1_agreement_is_over_rows():
    a = np.array([[1, 2], [2, 1], [0, 1]], np.float32)
    b = np.array([[1, 2], [1, 2], [0, 1]], np.float32)
    assert closeness(a, b, classes=True).top1_agreement == pytest.approx(2 / 3)
    assert closeness(a, b).top1_agreement is None


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool_, np.float16])
def test_any_numeric_dtype(dtype):
    a = np.array([0, 1, 1], dtype)
    assert closeness(a, 1 - a if dtype is not np.bool_ else ~a).max_abs == 1.0
