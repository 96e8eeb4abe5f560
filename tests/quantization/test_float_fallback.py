"""What QuantizeInt8 trades, with a stopwatch that says what the test wants (a fake of the measurement)."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

from edgeinfer.calibration.calibration import as_calibration
from edgeinfer.measure.speedup import Speedup
from edgeinfer.model.model import Model
from edgeinfer.quantization.placement.dialects import dialect_of
from edgeinfer.quantization.search import float_fallback, quantize_int8
from edgeinfer.quantization.search.fit_placement import Fit
from edgeinfer.quantization.search.float_fallback import Trades
from edgeinfer.quantization.search.int8_recipe import Attempt, Recipe, best_recipe
from edgeinfer.quantization.search.layer_gains import integer_nodes
from edgeinfer.quantization.search.output_score import Scorer, run_outputs
from edgeinfer.quantization.search.quantize_int8 import QuantizeInt8
from tests.quantization.qdq_models import CHANNELS, Builder, feeds

EVERYTHING = attrs.evolve(dialect_of("onnxruntime"), costs=None)  # these layers are too small to gain
LAYERS = {"first", "second"}


def _net() -> Model:
    """Two convolutions, and a third one that makes the output."""
    b = Builder(1, 16, 12, 12)
    first = b.node("Relu", b.conv(b.input, "first", 16, CHANNELS), name="relu1")
    second = b.node("Relu", b.conv(first, "second", CHANNELS, CHANNELS), name="relu2")
    return b.model(b.conv(second, "last", CHANNELS, 8), 1, 8, 12, 12)


def _trades(spend: float) -> tuple[Trades, Recipe, Attempt]:
    model = _net()
    given = feeds(model, 6)
    scorer = Scorer(model, run_outputs(model, given))

    def judge(candidate: Model):
        return scorer.score(run_outputs(candidate, given))

    recipe, whole = best_recipe(model, given, EVERYTHING, judge, method="minmax")
    trades = Trades(
        model=model,
        calibration=as_calibration(given, model.signature),
        judged=given,
        target="onnxruntime",
        on_target=False,
        measure=True,
        spend=spend,
        gains=None,
        judge=judge,
        meets=lambda _: True,
    )
    return trades, recipe, whole


@pytest.fixture
def stopwatch(monkeypatch) -> Callable[[Callable[[set[str]], float]], None]:
    """Let candidates be so many times as fast as the nodes that they have in integers say."""

    def set_to(ratio: Callable[[set[str]], float]) -> None:
        def fake(_: Model, candidate: Model, *__: object, **___: object) -> Speedup:
            found = ratio(integer_nodes(candidate.ir))
            return Speedup(ratio=found, reference_ms=1.0, candidate_ms=1.0 / found, where="fake")

        monkeypatch.setattr(float_fallback, "measure_speedup", fake)

    return set_to


@pytest.mark.parametrize(
    ("ratio", "spend", "taken"),
    [(1.2, 0.03, True), (1.01, 0.03, False), (1.2, 10.0, False), (1.2, 0.0, False)],
    ids=["much time for little noise", "no time", "decibels are dear", "no trades"],
)
def test_an_output_comes_from_integers_where_that_is_worth_its_noise(stopwatch, ratio, spend, taken):
    stopwatch(lambda _: ratio)
    trades, recipe, whole = _trades(spend)
    assert integer_nodes(whole.model.ir) == LAYERS
    found = trades.with_outputs(recipe, whole, ())
    assert integer_nodes(found.model.ir) == (LAYERS | {"last"} if taken else LAYERS)
    assert [o.name for o in found.model.ir.graph.outputs] == [o.name for o in trades.model.ir.graph.outputs]


def test_no_output_comes_from_integers_that_breaks_the_tolerance(stopwatch):
    stopwatch(lambda _: 1.2)
    trades, recipe, whole = _trades(0.03)
    trades.meets = lambda attempt: attempt is whole
    assert trades.with_outputs(recipe, whole, ()) is whole


def test_layers_go_back_one_by_one_where_all_together_are_slow(stopwatch):
    stopwatch(lambda integer: 1.0 if integer else 0.5)
    trades, recipe, whole = _trades(spend=1.0)
    found, given_back = trades.bargain(recipe, whole)
    assert len(given_back) == 1
    assert integer_nodes(found.model.ir) == LAYERS - {*given_back}
    assert found.rank_db > whole.rank_db
    assert trades.table is not None
    assert {layer.node for layer in trades.table.layers} >= LAYERS


def test_what_is_slower_than_its_decibels_are_worth_stays_in_integers(stopwatch):
    stopwatch(lambda _: 0.9)
    trades, recipe, whole = _trades(spend=1.0)
    assert trades.bargain(recipe, whole) == (whole, ())


def test_nothing_is_timed_where_measuring_is_off(monkeypatch):
    def refuse(*_: object, **__: object) -> Speedup:
        raise AssertionError("timed")

    monkeypatch.setattr(float_fallback, "measure_speedup", refuse)
    trades, recipe, whole = _trades(spend=0.7)
    trades.measure = False
    assert trades.with_outputs(recipe, whole, ()) is whole
    _, given_back = trades.bargain(recipe, whole)
    assert len(given_back) == 1  # by multiply-accumulates, of which more than half are left


def test_the_report_says_which_outputs_are_of_8_bits(stopwatch, monkeypatch):
    stopwatch(lambda _: 1.2)
    model = _net()
    monkeypatch.setattr(quantize_int8, "fit_placement", lambda *_, **__: Fit(dialect=EVERYTHING))
    monkeypatch.setattr(quantize_int8, "measure_speedup", float_fallback.measure_speedup)
    result = QuantizeInt8(calibration=feeds(model, 6), target="onnxruntime").apply(model)
    assert "last" in integer_nodes(result.model.ir)
    (note,) = (note for note in result.report.notes if "8-bit" in note)
    assert "'last'" in note
    assert "keep_float" in note
