"""`add_coarse_gram`: sums without rounding, in any order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgeinfer.numerics.coarse_gram import add_coarse_gram


def _gram(x):
    total = np.zeros((x.shape[0], x.shape[1], x.shape[1]))
    add_coarse_gram(total, x)
    return total


@given(
    seed=st.integers(0, 2**32 - 1),
    groups=st.integers(1, 3),
    rows=st.integers(1, 9),
    columns=st.integers(0, 512),
    exponents=st.tuples(st.integers(-70, 30), st.integers(-70, 30)),
)
def test_the_bits_do_not_depend_on_the_order_of_the_columns(seed, groups, rows, columns, exponents):
    rng = np.random.default_rng(seed)
    scale = 2.0 ** rng.uniform(min(exponents), max(exponents), (groups, rows, 1))
    x = (rng.standard_normal((groups, rows, columns)) * scale).astype(np.float32)
    shuffled = np.ascontiguousarray(x[:, :, rng.permutation(columns)])
    np.testing.assert_array_equal(_gram(x), _gram(shuffled))


@given(seed=st.integers(0, 2**32 - 1), columns=st.sampled_from([1, 700, 1025, 3000]))
def test_it_is_as_exact_as_8_bits(seed, columns):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((2, 5, columns)) * rng.uniform(1e-3, 1e3, (2, 5, 1))).astype(np.float32)
    exact = x.astype(np.float64) @ x.transpose(0, 2, 1).astype(np.float64)
    # Each value is off by half a step at most, and a step is a 90th of the greatest value at most.
    step = np.abs(x).max(axis=2) / 90.5
    power = np.sqrt(columns) * np.sqrt(exact.diagonal(axis1=1, axis2=2))
    bound = 0.5 * (step[:, :, None] * power[:, None, :] + step[:, None, :] * power[:, :, None])
    bound += columns * step[:, :, None] * step[:, None, :] / 4
    assert (np.abs(_gram(x) - exact) <= bound).all()


def test_it_adds_to_what_is_there():
    x = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    total = np.ones((1, 2, 2))
    add_coarse_gram(total, x)
    np.testing.assert_array_equal(total, 1 + x @ x.transpose(0, 2, 1))
