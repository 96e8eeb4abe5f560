"""Random graphs through every float transform: the same answers, twice equals once, or a typed refusal."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

from edgeinfer.errors import TransformError
from edgeinfer.model.model import Model
from edgeinfer.transforms import ConvertOpset, FixShapes, FuseBatchNorm, Pipeline, Simplify, ToFloat16
from tests.random_graphs import BATCH, RandomModel, models

# The greatest difference of an output, relative to its greatest magnitude or 1. What computes in float16 has 11
# bits, and loses a few of them over a dozen steps.
BOUNDS = {np.dtype(np.float64): 1e-6, np.dtype(np.float32): 1e-4, np.dtype(np.float16): 3e-2}
HALF = 6e-2

EXACT = [Simplify(), Simplify(widen_weights=True), FixShapes({"N": BATCH}), ConvertOpset(23)]
ROUNDING = [FuseBatchNorm(), Pipeline((Simplify(), FuseBatchNorm()))]
FLOAT16 = [ToFloat16(), ToFloat16(keep_io=False), Pipeline((Simplify(), ToFloat16()))]

some = settings(
    max_examples=25, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def same_answers(drawn: RandomModel, transform, run: Callable, bound: float | None) -> None:
    """Compare in ONNX Runtime; `bound` None for that of each output's dtype."""
    try:
        expected = run(Model.load(drawn.without_hints()), drawn.feeds)
    except Exception:
        assume(False)  # ONNX Runtime has no kernel for what was drawn
    model = Model.load(drawn.proto)
    before = model.digest
    try:
        after, report = transform.apply(model)
    except TransformError as error:
        assert type(error) is not TransformError or "convert" in str(error)
        return
    assert model.digest == before
    assert report.modified == (after.digest != before)
    feeds = {
        spec.name: drawn.feeds[spec.name].astype(spec.dtype) if spec.dtype.kind == "f" else drawn.feeds[spec.name]
        for spec in after.signature.inputs
    }
    for spec, wanted, found in zip(model.signature.outputs, expected, run(after, feeds), strict=True):
        if spec.dtype == object:
            assert found.tolist() == wanted.tolist()
            continue
        found = found.astype(np.float64)
        assert found.shape == wanted.shape
        np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
        scale = max(1.0, float(np.nanmax(np.abs(wanted), initial=0.0)))
        limit = (BOUNDS[spec.dtype] if bound is None else bound) * scale
        assert np.nanmax(np.abs(found - wanted), initial=0.0) <= limit, drawn.steps
    again, second = transform.apply(after)
    assert not second.modified
    assert again.digest == after.digest


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
