"""Rounding by output error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeinfer.numerics.gptq import Grid, output_error, round_weights


def _problem(seed: int, groups: int, rows: int, columns: int, samples: int, bits: int):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((groups, rows, columns)).astype(np.float32)
    mixing = rng.standard_normal((groups, columns, columns))
    inputs = np.maximum(mixing @ rng.standard_normal((groups, columns, samples)), 0)
    high = 2 ** (bits - 1) - 1
    scale = np.abs(weights).max(axis=2, keepdims=True) / high
    return weights, inputs @ inputs.transpose(0, 2, 1), Grid(scale=scale, low=-high, high=high)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    groups=st.integers(1, 4),
    rows=st.integers(1, 6),
    columns=st.integers(1, 24),
    samples=st.integers(1, 40),
    bits=st.integers(2, 8),
    act_order=st.booleans(),
    sweeps=st.integers(0, 2),
)
def test_never_worse_than_round_to_nearest(seed, groups, rows, columns, samples, bits, act_order, sweeps):
    weights, moment, grid = _problem(seed, groups, rows, columns, samples, bits)
    integers = round_weights(weights, moment, grid, act_order=act_order, sweeps=sweeps)
    assert np.array_equal(integers, np.rint(integers))
    assert integers.min() >= grid.low
    assert integers.max() <= grid.high
    error = output_error(weights, grid.dequantize(integers), moment)
    nearest = output_error(weights, grid.dequantize(grid.quantize(weights)), moment)
    # Both sides are sums in floating point; the choice between them was made on a scaled float32 copy.
    assert np.all(error <= nearest * (1 + 1e-4) + 1e-6 * np.abs(nearest).max())


@pytest.mark.parametrize("bits", [4, 8])
def test_halves_the_error_of_correlated_inputs(bits):
    rng = np.random.default_rng(0)
    columns = 128
    weights = rng.standard_normal((1, 16, columns)).astype(np.float32)
    inputs = rng.standard_normal((columns, 32)) @ rng.standard_normal((32, 2000))
    moment = (inputs @ inputs.T)[None]
    high = 2 ** (bits - 1) - 1
    grid = Grid(scale=np.abs(weights).max(axis=2, keepdims=True) / high, low=-high, high=high)
    error = output_error(weights, grid.dequantize(round_weights(weights, moment, grid)), moment).sum()
    nearest = output_error(weights, grid.dequantize(grid.quantize(weights)), moment).sum()
    assert error < 0.5 * nearest


def test_weights_on_the_grid_stay():
    weights, moment, grid = _problem(1, 2, 3, 12, 30, 8)
    on_grid = grid.dequantize(grid.quantize(weights)).astype(np.float32)
    assert np.array_equal(round_weights(on_grid, moment, grid), grid.quantize(on_grid))
