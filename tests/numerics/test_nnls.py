"""Non-negative least squares: the conditions of Karush, Kuhn and Tucker, which hold at the minimum."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeinfer.numerics.nnls import nnls


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 12), st.booleans())
def test_the_minimum(seed, rows, columns, ragged):
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((rows, columns))
    if ragged:  # counts beside bytes, columns that are alike, and one of zeros
        matrix = np.abs(matrix) * 10.0 ** rng.integers(-6, 7, columns)
        matrix[:, rng.integers(columns)] = matrix[:, 0]
        matrix[:, -1] = 0
    target = matrix @ np.maximum(rng.standard_normal(columns), 0) + 0.1 * rng.standard_normal(rows)
    x = nnls(matrix, target)
    assert (x >= 0).all()
    lengths = np.linalg.norm(matrix, axis=0)
    slope = matrix.T @ (target - matrix @ x) / np.where(lengths > 0, lengths, 1)
    scale = 1e-6 * max(1.0, float(np.abs(target).max()))
    assert (slope <= scale).all(), "a coefficient that would help stays out"
    used = x * lengths > 1e-9 * max(1.0, float((x * lengths).max()))
    assert (np.abs(slope[used]) <= scale).all(), "a coefficient is not at its best value"


def test_exact_recovery():
    rng = np.random.default_rng(0)
    matrix = np.abs(rng.standard_normal((50, 6))) * [1, 1e9, 1e-3, 1e6, 1, 1e2]
    wanted = np.array([2.0, 3e-9, 0.0, 1e-6, 0.0, 5e-2])
    np.testing.assert_allclose(nnls(matrix, matrix @ wanted), wanted, rtol=1e-6, atol=1e-12)


def test_nothing_to_fit():
    assert nnls(np.zeros((3, 2)), np.ones(3)).tolist() == [0, 0]
    assert nnls(np.zeros((3, 0)), np.ones(3)).shape == (0,)
    assert nnls(np.eye(2), np.array([-1.0, 2.0])).tolist() == [0, 2]
