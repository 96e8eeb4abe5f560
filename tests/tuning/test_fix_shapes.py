"""Shapes that the model leaves open may be fixed to those of the feeds, where the caller allows it."""

from __future__ import annotations

import numpy as np
import pytest

import edgeinfer as ei
from edgeinfer.errors import OptionsError
from edgeinfer.feeds.feeds import Feeds
from edgeinfer.tuning.candidate import Candidate
from edgeinfer.tuning.inputs import require_one_shape
from edgeinfer.tuning.space import Space
from tests.tuning.test_batches import parsed

OPEN = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[N, 4, 8, 8] x) => (float[N, 8, 8, 8] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w)
    y = Relu (c)
}
"""


def feeds_of(*sizes):
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((size, 4, 8, 8)).astype(np.float32)} for size in sizes]


def tune(model, feeds, **more):
    return ei.tune(
        model,
        ei.Budget(min_sqnr_db=60.0),  # int8 does not keep it
        target="openvino",
        calibration=feeds,
        minutes=0.01,
        options={"threads": 1},
        fix_shapes=True,
        **more,
    )


def test_all_but_the_original_have_fixed_shapes_and_give_the_same_answers():
    model, feeds = parsed(OPEN), feeds_of(2, 2, 2, 2)
    found = tune(model, feeds)
    assert found.baseline.model.signature.inputs[0].shape == ("N", 4, 8, 8)
    fixed = [trial for trial in found.trials if trial.index != 0 and trial.candidate.fixed]
    best = next(trial for trial in fixed if trial.candidate.precision == "float32")
    assert best.model.signature.inputs[0].shape == (2, 4, 8, 8)
    assert "fixed shapes" in best.candidate.describe()
    assert best.recipe.apply(model).digest == best.model.digest
    with ei.load(ei.compile(model)) as before, ei.load(ei.compile(best.model)) as after:
        np.testing.assert_allclose(after.infer(feeds[0])["y"], before.infer(feeds[0])["y"], atol=1e-5)


def test_feeds_of_several_shapes_are_refused():
    with pytest.raises(OptionsError, match="several") as caught:
        tune(parsed(OPEN), feeds_of(2, 1))
    assert "(1, 4, 8, 8)" in str(caught.value)
    assert "(2, 4, 8, 8)" in str(caught.value)


def test_it_does_not_go_with_a_choice_of_the_batch():
    with pytest.raises(OptionsError, match="batch is chosen"):
        tune(parsed(OPEN), feeds_of(1), batches=[1, 2])


@pytest.mark.parametrize(("batch", "left"), [("N", True), ("1", False)])
def test_a_model_that_leaves_nothing_open_has_nothing_to_fix(batch, left):
    signature = ei.Model.load(parsed(OPEN.replace("float[N,", f"float[{batch},"))).signature
    assert require_one_shape(Feeds.of(feeds_of(1, 1), signature), signature, ()) is left


def test_the_candidates_are_fixed_and_the_baseline_is_not():
    space = Space(precisions=("float32", "int8"), options=({}, {"slow": 1.5}), fixes=True)
    candidates = space.candidates(0)
    assert candidates[0] == Candidate()
    assert [each.fixed for each in candidates[:4]] == [False, True, False, True]
    assert all(each.fixed for each in candidates[4:])
    assert len({(each.model_key, repr(each.options)) for each in candidates}) == len(candidates)
