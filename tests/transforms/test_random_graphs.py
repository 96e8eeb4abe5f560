"""Random graphs through every float transform: the same answers, twice equals once, or a typed refusal."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NotImplemented_

from edgeinfer.model.model import Model
from edgeinfer.transforms import ConvertOpset, FixShapes, FuseBatchNorm, Pipeline, Simplify, ToFloat16
from tests.random_graphs import BATCH, RandomModel, models

# The greatest difference of an output, relative to its greatest magnitude or 1. What computes in float16 has
# 11 bits, and loses a few of them over a dozen steps.
BOUNDS = {np.dtype(np.float64): 1e-6, np.dtype(np.float32): 1e-4, np.dtype(np.float16): 3e-2}
HALF = 6e-2

EXACT = [Simplify(), Simplify(widen_weights=True), FixShapes({"N": BATCH}), ConvertOpset(21)]
ROUNDING = [FuseBatchNorm(), Pipeline((Simplify(), FuseBatchNorm()))]
FLOAT16 = [ToFloat16(), ToFloat16(keep_io=False), Pipeline((Simplify(), ToFloat16()))]

# EDGEINFER_EXAMPLES=2000 looks further.
EXAMPLES = int(os.environ.get("EDGEINFER_EXAMPLES", "12"))
some = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES < 100, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def answers(model: Model, feeds: Mapping[str, np.ndarray], run: Callable) -> list[np.ndarray] | None:
    """Return the outputs in ONNX Runtime; None where it has no kernel for an operator of that opset."""
    inputs = {}
    for spec in model.signature.inputs:
        array = feeds[spec.name]
        inputs[spec.name] = array.astype(spec.dtype) if spec.dtype.kind == "f" else array
    try:
        return run(model, inputs)
    except NotImplemented_:
        return None


def same_answers(drawn: RandomModel, transform, run: Callable, bound: float | None) -> None:
    """Compare in ONNX Runtime; `bound` None for that of each output's dtype."""
    expected = answers(Model.load(drawn.without_hints()), drawn.feeds, run)
    model = Model.load(drawn.proto)
    before = model.digest
    after, report = transform.apply(model)
    found = answers(after, drawn.feeds, run)
    assume(expected is not None and found is not None)
    assert model.digest == before
    assert report.modified == (after.digest != before)
    for spec, wanted, got in zip(model.signature.outputs, expected, found, strict=True):
        same(got, wanted, BOUNDS.get(spec.dtype, 0.0) if bound is None else bound)
    if not isinstance(transform, Pipeline):
        again, second = transform.apply(after)
        assert not second.modified
        assert again.digest == after.digest


def same(found: np.ndarray, wanted: np.ndarray, bound: float) -> None:
    assert found.shape == wanted.shape
    if wanted.dtype == object:
        assert found.tolist() == wanted.tolist()
        return
    found = found.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    scale = max(1.0, float(np.nanmax(np.abs(wanted), initial=0.0)))
    assert np.nanmax(np.abs(found - wanted), initial=0.0) <= bound * scale


@pytest.mark.parametrize("transform", EXACT, ids=str)
@some
@given(drawn=models())
def test_exact(transform, run, drawn: RandomModel) -> None:
    same_answers(drawn, transform, run, None)


@pytest.mark.parametrize("transform", ROUNDING, ids=str)
@some
@given(drawn=models(smooth=True))
def test_rounding(transform, run, drawn: RandomModel) -> None:
    same_answers(drawn, transform, run, None)


@pytest.mark.parametrize("transform", FLOAT16, ids=str)
@some
@given(drawn=models(smooth=True))
def test_float16(transform, run, drawn: RandomModel) -> None:
    same_answers(drawn, transform, run, HALF)
