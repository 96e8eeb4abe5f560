"""A type that the device has natively, such as bfloat16, is tried with each model, and judged with it."""

from __future__ import annotations

import attrs
import pytest

import edgeinfer as ei
from edgeinfer.backends.protocol import DeviceInfo
from edgeinfer.backends.registry import get_backend
from edgeinfer.devices.profile import Target
from edgeinfer.tuning.actions import Prepare, Problem
from edgeinfer.tuning.candidate import Candidate
from edgeinfer.tuning.outcome import Facts, result_of
from edgeinfer.tuning.planner import space_of
from edgeinfer.tuning.space import FLOAT, Space, narrow_sets
from edgeinfer.tuning.state import State
from tests.tuning.simulated import World, run

BF16 = {"inference_precision": "bf16"}
SPACE = Space(precisions=("float32", "int8"), options=({}, {"slow": 1.5}), narrow=(BF16,))

FACTS = Facts(
    target="openvino",
    where="here",
    devices=lambda _: [],
    shapes={"x": (1, 3, 64, 64)},
    open_sides=False,
    load=lambda _: None,
)


def best_of(**budget: float):
    of = Problem(budget=ei.Budget(**budget), space=SPACE, evaluates=True)
    records = run(of, World())
    return result_of(State.of(records), of, FACTS).best.candidate, records


def test_the_narrow_float_model_wins_where_it_is_fast_enough_and_closer_than_int8():
    best, _ = best_of(latency_p50_ms=5.0, max_drop=0.05)
    assert (best.precision, dict(best.narrow)) == ("float32", BF16)
    assert best.run_options == BF16
    assert "inference_precision=bf16" in best.describe()


def test_int8_with_the_rest_in_the_narrow_type_is_tried_too():
    best, _ = best_of(latency_p50_ms=2.4, max_drop=0.05)
    assert (best.precision, dict(best.narrow)) == ("int8", BF16)


def test_each_is_made_and_judged_by_itself():
    _, records = best_of(latency_p50_ms=5.0, max_drop=0.05)
    made = [Candidate.from_dict(r["candidate"]) for r in records if r["kind"] == "made"]
    plain, narrow = (
        next(each for each in made if each.precision == "float32" and bool(each.narrow) == which)
        for which in (False, True)
    )
    assert plain.model_key != narrow.model_key


def test_the_float_model_is_a_baseline_in_it_too():
    assert SPACE.candidates(0)[FLOAT] == Candidate()
    narrow = [each for each in SPACE.baselines() if each.narrow]
    assert {each.precision for each in narrow} == {"float32"}
    assert [each.options for each in narrow] == list(SPACE.options)
    assert any(each.narrow and each.precision == "int8" for each in SPACE.candidates(0))


@pytest.mark.parametrize("useless", [[], ["dynamic"]])
def test_a_precision_that_finds_nothing_in_the_model_is_not_drawn(useless):
    of = Problem(budget=ei.Budget(), space=attrs.evolve(SPACE, precisions=("float32", "int8", "dynamic")))
    state = State.of([{"kind": "start"}, {**World().do(Prepare()), "changes_nothing": useless}])
    drawn = {each.precision for each in space_of(state, of).candidates(0)}
    assert ("dynamic" in drawn) != bool(useless)


@pytest.mark.parametrize(
    ("precisions", "fixed", "found"),
    [
        ({"float32"}, {}, ()),
        ({"float32", "bfloat16"}, {}, (BF16,)),
        ({"float32", "bfloat16"}, {"inference_precision": "f32"}, ()),
    ],
)
def test_it_is_offered_where_the_device_has_it_and_the_user_has_not_chosen(precisions, fixed, found):
    device = DeviceInfo(name="CPU", precisions=precisions)
    capabilities = attrs.evolve(get_backend("openvino").capabilities(), devices=(device,))
    assert narrow_sets(capabilities, Target.parse("openvino:CPU"), fixed) == found
    assert narrow_sets(capabilities, Target.parse("openvino:GPU"), fixed) == ()
