"""Algebra in a fixed order: right, and the same bits whatever BLAS does."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeinfer.numerics.fixed_order import cholesky, inverse, inverse_factor, matmul, solve


def _matrix(rng: np.random.Generator, size: int, batch: tuple[int, ...] = ()) -> np.ndarray:
    x = rng.standard_normal((*batch, size, 2 * size)) * np.exp2(rng.integers(-6, 6, (size, 1)))
    return np.asarray(x @ np.swapaxes(x, -1, -2))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 90), st.integers(1, 5), st.sampled_from([(), (1,), (3,)]), st.integers(0, 99))
def test_solutions_are_those_of_lapack(size, columns, batch, seed):
    rng = np.random.default_rng(seed)
    a = _matrix(rng, size, batch)
    right = rng.standard_normal((*batch, size, columns))
    np.testing.assert_allclose(
        np.einsum("...ij,...jk->...ik", a, solve(a, right)), right, rtol=1e-6, atol=1e-6
    )
    wanted = np.linalg.inv(a)
    np.testing.assert_allclose(inverse(a), wanted, rtol=1e-6, atol=1e-8 * np.abs(wanted).max())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 300), st.integers(1, 9), st.integers(0, 99), st.sampled_from([1, 2, 3]))
def test_products_are_right_whatever_the_magnitudes(terms, rows, seed, slices):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((rows, terms)) * np.exp2(rng.integers(-200, 200, (rows, 1)))
    b = rng.standard_normal((terms, 4)) * np.exp2(rng.integers(-200, 200, (1, 4)))
    tolerance = np.abs(a).max(1)[:, None] * np.abs(b).max(0) * terms * 2.0 ** (-19 * slices + 2)
    assert (np.abs(matmul(a, b, slices=slices) - a @ b) <= tolerance + 1e-13 * np.abs(a) @ np.abs(b)).all()


def test_the_inverse_has_its_factor():
    a = _matrix(np.random.default_rng(2), 70)
    upper = inverse_factor(a)
    wanted = np.linalg.inv(a)
    assert not np.tril(upper, -1).any()
    np.testing.assert_allclose(upper.T @ upper, wanted, rtol=1e-6, atol=1e-8 * np.abs(wanted).max())


def test_an_indefinite_matrix_is_refused_or_raised():
    a = np.diag([1.0, 0.0, 2.0])
    with pytest.raises(np.linalg.LinAlgError):
        cholesky(a)
    assert np.isfinite(solve(a, np.ones((3, 1)))).all()


def test_nothing_but_zeros():
    assert not matmul(np.zeros((3, 5)), np.ones((5, 2))).any()
    assert matmul(np.zeros((3, 0)), np.zeros((0, 2))).shape == (3, 2)


_CHILD = """
import hashlib, numpy as np
from edgeinfer.numerics.fixed_order import inverse, matmul, solve
rng = np.random.default_rng(0)
x = rng.standard_normal((200, 900))
a = matmul(x, x.T, slices=1)
parts = (a, solve(a, x[:, :7]), inverse(a[:90, :90]), matmul(a, a))
print(hashlib.sha256(b"".join(np.ascontiguousarray(p).tobytes() for p in parts)).hexdigest())
"""


def test_bits_do_not_depend_on_threads_or_kernels():
    variants = [{"OPENBLAS_NUM_THREADS": "1"}, {"OPENBLAS_NUM_THREADS": "2"}]
    variants += [{"OPENBLAS_CORETYPE": kernel} for kernel in ("Haswell", "Sandybridge", "Prescott")]
    digests = {
        subprocess.run(
            [sys.executable, "-c", _CHILD],
            env={**os.environ, **variant},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for variant in variants
    }
    assert len(digests) == 1
