"""Which layers go back to float, with a stopwatch that says what the test wants."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import attrs
import numpy as np
import pytest

from edgeinfer.calibration.statistics import as_statistics
from edgeinfer.model.model import Model
from edgeinfer.quantization.placement.dialects import dialect_of
from edgeinfer.quantization.search import float_fallback
from edgeinfer.quantization.search.effort import EFFORTS
from edgeinfer.quantization.search.float_fallback import FloatFallback
from edgeinfer.quantization.search.int8_recipe import best_recipe
from edgeinfer.quantization.search.layer_gains import integer_nodes
from edgeinfer.quantization.search.model_runs import run_outputs
from edgeinfer.quantization.search.output_score import Score, Scorer
from edgeinfer.quantization.search.price import Price
from edgeinfer.quantization.search.quantize_int8 import QuantizeInt8
from edgeinfer.quantization.search.workbench import Attempt, Workbench
from tests.quantization.made_up_time import MadeUpTime
from tests.quantization.qdq_models import CHANNELS, Builder, feeds
from tests.quantization.weight_models import make

EVERYTHING = attrs.evolve(dialect_of("onnxruntime"), costs=None)  # these layers are too small to gain
LAYERS = {"first", "second"}
PROFILE = {"first": 50.0, "second": 40.0, "last": 10.0}
ALONE = {"first": 1e-2, "second": 1e-3, "last": 1e-3}  # noise that the layers bring, made up


def _net() -> Model:
    """Two convolutions, and a third one that makes the output."""
    b = Builder(1, 16, 12, 12)
    first = b.node("Relu", b.conv(b.input, "first", 16, CHANNELS), name="relu1")
    second = b.node("Relu", b.conv(first, "second", CHANNELS, CHANNELS), name="relu2")
    return b.model(b.conv(second, "last", CHANNELS, 8), 1, 8, 12, 12)


def _fallback(
    stopwatch: MadeUpTime | None, spend: float = 0.03, meets: Callable[[Attempt], bool] = lambda _: True
) -> tuple[FloatFallback, Attempt]:
    model = _net()
    fallback = _fallback_of(model, feeds(model, 6), stopwatch, spend, meets)
    return fallback, best_recipe(fallback.bench, EFFORTS["fast"], method="minmax")


def _fallback_of(
    model: Model,
    given: list[dict[str, np.ndarray]],
    stopwatch: MadeUpTime | None,
    spend: float = 0.03,
    meets: Callable[[Attempt], bool] = lambda _: True,
) -> FloatFallback:
    scorer = Scorer(model, run_outputs(model, given))

    def judge(candidate: Model) -> Score:
        return scorer.score(run_outputs(candidate, given))

    def noise_of(_: Attempt, names: Collection[str], summed: bool) -> Mapping[str, float]:
        return {name: ALONE[name] for name in names}

    statistics = as_statistics(given, model.signature)
    bench = Workbench(model, EVERYTHING, statistics, statistics, judge)
    return FloatFallback(
        bench, EVERYTHING, given[:1], Price(spend), stopwatch, noise_of=noise_of, meets=meets
    )


@pytest.mark.parametrize(
    ("ratio", "spend", "taken"),
    [(1.2, 0.03, True), (1.01, 0.03, False), (1.2, 10.0, False), (1.2, 0.0, False)],
    ids=["much time for little noise", "no time", "decibels are dear", "no trades"],
)
def test_an_output_comes_from_integers_where_that_is_worth_its_noise(ratio, spend, taken):
    fallback, whole = _fallback(MadeUpTime(lambda _: ratio), spend)
    assert integer_nodes(whole.model.ir) == LAYERS
    found = fallback.outputs(whole)
    assert integer_nodes(found.model.ir) == (LAYERS | {"last"} if taken else LAYERS)
    assert [o.name for o in found.model.ir.graph.outputs] == ["last_out"]


def test_no_output_comes_from_integers_that_breaks_the_tolerance():
    fallback, whole = _fallback(MadeUpTime(lambda _: 1.2), meets=lambda attempt: attempt is whole)
    assert fallback.outputs(whole) is whole


def test_half_of_the_layers_go_back_where_all_together_are_slow():
    fallback, whole = _fallback(MadeUpTime(lambda integer: 1.0 if integer else 0.5), spend=1.0)
    found = fallback.bargain(whole)
    assert integer_nodes(found.model.ir) == LAYERS - fallback.reasons.keys()
    assert len(fallback.reasons) == 1
    assert found.rank_db > whole.rank_db


def test_dear_trials_are_not_followed_by_smaller_ones_and_that_is_said(monkeypatch):
    monkeypatch.setattr(float_fallback, "_DEAR_S", 0.0)
    stopwatch = MadeUpTime(lambda _: 0.5)
    fallback, whole = _fallback(stopwatch, spend=2.0)
    cheap = sorted(integer_nodes(whole.model.ir))
    assert fallback._as_fast(whole, cheap) == ([], 0.0)
    assert len(stopwatch.compared) == 1
    assert "left out" in fallback.cut_short
    monkeypatch.setattr(float_fallback, "_DEAR_S", 1e9)
    assert fallback._as_fast(whole, cheap) == ([], 0.0)
    assert len(stopwatch.compared) == 1 + 2  # two layers, and one


def test_what_is_slower_than_its_decibels_are_worth_stays_in_integers():
    fallback, whole = _fallback(MadeUpTime(lambda _: 0.9), spend=1.0)
    assert fallback.bargain(whole) is whole
    assert fallback.reasons == {}


def test_nothing_is_timed_where_measuring_is_off():
    fallback, whole = _fallback(None, spend=0.7)
    fallback.place()
    assert fallback.outputs(whole) is whole
    found = fallback.bargain(whole)  # by multiply-accumulates, of which more than half are left
    assert len(LAYERS - integer_nodes(found.model.ir)) == 1
    assert fallback.unmeasured


def test_a_layer_that_is_slower_in_int8_stays_in_float_if_the_whole_is_faster():
    stopwatch = MadeUpTime(
        lambda integer: 1.0 if "second" in integer else 1.5,
        (PROFILE, {**PROFILE, "second": 60.0, "first": 9.0}),
    )
    fallback, _ = _fallback(stopwatch)
    fallback.place()
    assert fallback.reasons.keys() == {"second"}
    assert "slower in int8 here" in fallback.reasons["second"]
    assert "1.50x" in fallback.reasons["second"]
    assert fallback.bench.keep_float == {"second"}
    assert fallback.gains is not None
    assert {layer.node for layer in fallback.gains.layers} == {"first"}


def test_it_stays_in_int8_if_the_whole_is_no_faster():
    stopwatch = MadeUpTime(layers=(PROFILE, {**PROFILE, "first": 90.0, "second": 60.0}))
    fallback, _ = _fallback(stopwatch)
    fallback.place()
    assert fallback.reasons == {}
    tried = [before - after for before, after in stopwatch.compared]
    assert tried == [LAYERS, {"first"}]  # all of them, then those that lose most


def test_a_trial_that_took_long_and_did_not_help_is_not_followed_by_smaller_ones(monkeypatch):
    monkeypatch.setattr(float_fallback, "_DEAR_S", 0.0)
    stopwatch = MadeUpTime(layers=(PROFILE, {**PROFILE, "first": 90.0, "second": 60.0}))
    fallback, _ = _fallback(stopwatch)
    fallback.place()
    assert [before - after for before, after in stopwatch.compared] == [LAYERS]
    stopwatch = MadeUpTime(lambda integer: 1.0 if integer else 0.5)
    fallback, whole = _fallback(stopwatch, spend=1.0)
    assert fallback.bargain(whole) is whole
    assert len(stopwatch.compared) == 1


@pytest.mark.parametrize("in_float", [0, 1, 2])
def test_the_fewest_layers_go_back_that_meet_a_tolerance(in_float):
    """`first` is the noisier one for its time, so it goes first."""
    limit = len(LAYERS) - in_float
    fallback, whole = _fallback(None, meets=lambda attempt: len(integer_nodes(attempt.model.ir)) <= limit)
    found = fallback.meet(whole) if in_float else whole
    left = integer_nodes(found.model.ir) if found is not None else set()  # None: the float model is better
    assert len(LAYERS - left) == in_float
    assert set(fallback.reasons) == (set(), {"first"}, LAYERS)[in_float]


def test_the_report_says_which_outputs_are_of_8_bits_and_what_was_tried():
    model = _net()
    quantize = QuantizeInt8(
        calibration=feeds(model, 6), target="onnxruntime", stopwatch=MadeUpTime(lambda _: 1.2), min_sqnr_db=0
    )
    result = quantize.apply(model)
    assert "last" in integer_nodes(result.model.ir)
    (note,) = (note for note in result.report.notes if "8-bit" in note)
    assert "'last'" in note
    assert "keep_float" in note
    ledger = result.report.data["ledger"]
    assert any(trial.speed == 1.2 for trial in ledger)
    assert any(trial.kept and trial.score is not None for trial in ledger)


@pytest.mark.parametrize(("ratio", "tries"), [(0.95, True), (0.5, False)], ids=["slower", "far slower"])
def test_a_model_that_is_not_faster_than_what_was_given_stays_in_float(ratio, tries):
    model = _net()
    stopwatch = MadeUpTime(lambda _: ratio)
    quantize = QuantizeInt8(
        calibration=feeds(model, 6), target="onnxruntime", stopwatch=stopwatch, min_sqnr_db=0
    )
    report = quantize.apply(model).report
    assert not report.modified
    assert any("not faster than the model that was given" in reason for _, reason in report.skipped)
    assert any("stays in float" in text for text in report.results)
    assert report.data["speedup"] == ratio
    assert any(trial.score is not None for trial in report.data["ledger"].trials) == tries


@pytest.mark.parametrize(("ratio", "smooth"), [(1.0, True), (0.5, False)])
def test_a_node_is_inserted_where_its_decibels_are_worth_its_time(ratio, smooth):
    model = make(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 16] x) => (float[N, 8] y) { h = MatMul(x, w0)  r = Relu(h)  y = MatMul(r, w1) }""",
        w0=(16, 32),
        w1=(32, 8),
    )
    rng = np.random.default_rng(0)
    sizes = np.where(np.arange(16) < 2, 100.0, 1.0)  # a Mul before the first layer makes them alike
    given = [{"x": (rng.standard_normal((8, 16)) * sizes).astype(np.float32)} for _ in range(24)]
    fallback = _fallback_of(model, given, MadeUpTime(lambda _: ratio))
    effort = attrs.evolve(EFFORTS["fast"], prepares=True)
    found = best_recipe(fallback.bench, effort, pays=fallback.pays)
    assert ("SmoothQuant" in found.recipe.steps()) == smooth
