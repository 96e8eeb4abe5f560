"""What is done next follows from the journal alone: a killed run goes on as if nothing had happened."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeinfer as ei
from edgeinfer.tuning.actions import SAMPLERS, Make, Problem, Time
from edgeinfer.tuning.advice import Advice
from edgeinfer.tuning.outcome import Facts, result_of
from edgeinfer.tuning.planner import dropped, next_action
from edgeinfer.tuning.space import FLOAT, INT8, Space
from edgeinfer.tuning.state import State
from tests.tuning.simulated import World, latency_ms, plain, run

SPACE = Space(precisions=("float32", "int8", "dynamic"), options=({}, {"slow": 1.5}))


def problem(**changes) -> Problem:
    given = {"budget": ei.Budget(latency_p50_ms=4.0, max_drop=0.05), "space": SPACE, "evaluates": True}
    return Problem(**{**given, **changes})


def result(records, of: Problem):
    facts = Facts(
        target="onnxruntime",
        where="here",
        devices=lambda _: [Advice(what="another device", estimate=0.4, basis="catalog")],
        shapes={"x": (1, 3, 64, 64)},
        open_sides=False,
        load=lambda _: None,
    )
    return result_of(State.of(records), of, facts)


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 5),
    cut=st.integers(1, 60),
    minutes=st.sampled_from([None, 3.0]),
    sampler=st.sampled_from(SAMPLERS),
)
def test_after_a_kill_at_any_point_the_same_is_proposed(seed, cut, minutes, sampler):
    of = problem(seed=seed, seconds=None if minutes is None else 60 * minutes, sampler=sampler)
    whole = run(of, World())
    resumed = run(of, World(), whole[: max(1, min(cut, len(whole) - 1))])
    assert resumed == whole


def test_optuna_proposes_other_candidates_within_the_same_limits():
    made = {}
    for sampler in SAMPLERS:
        of = problem(sampler=sampler, budget=ei.Budget(latency_p50_ms=4.0, max_drop=0.1))
        records = run(of, World())
        made[sampler] = [record["candidate"] for record in records if record["kind"] == "made"]
        assert result(records, of).best.latency_p50_ms <= of.budget.latency_p50_ms
    assert made["optuna"] != made["built-in"]
    assert len({str(each) for each in made["optuna"]}) == len(made["optuna"])


def test_an_unknown_sampler_is_refused():
    with pytest.raises(ei.errors.OptionsError, match="sampler"):
        ei.tune("no.onnx", ei.Budget(), target="onnxruntime", calibration=[], sampler="random")


def test_each_decision_follows_from_the_records_before_it():
    of = problem()
    records = run(of, World(run=1))
    other = run(of, World(run=2))  # other timings: another machine state, perhaps other decisions
    for recorded in (records, other):
        for number in range(1, len(recorded)):
            action = next_action(State.of(recorded[:number]), of)
            again = next_action(State.of(recorded[:number]), of)
            assert plain(action) == plain(again)
            if isinstance(action, Make):
                assert recorded[number]["trial"] == action.trial


def test_the_first_are_the_baselines_and_about_a_thousand_follow():
    space = attrs.evolve(SPACE, prunes=("channels",), sensitive=tuple("abcdefghij"))
    candidates = space.candidates(0)
    assert len(candidates) == 1000
    assert (candidates[FLOAT].precision, candidates[INT8].precision) == ("float32", "int8")
    assert len({(c.model_key, repr(c.options)) for c in candidates}) == 1000
    assert candidates == attrs.evolve(space).candidates(0)
    assert candidates != space.candidates(1)


def test_what_is_beyond_the_limit_and_the_band_is_never_made():
    of = problem()
    records = run(of, World())
    made = [r["trial"] for r in records if r["kind"] == "made"]
    assert not set(dropped(State.of(records), of)) & set(made[4:])
    assert len(dropped(State.of(records), of)) > 100


def test_the_best_keeps_the_limits_and_is_the_most_accurate_of_the_survivors():
    of = problem()
    found = result(run(of, World()), of)
    assert found.met
    assert found.best.latency_p50_ms <= 4.0
    assert found.best.drop <= 0.05
    able = [t for t in found.trials if t.stage == "evaluated" and not t.violations]
    assert found.best.metric == max(t.metric for t in able)
    assert all(t.lost for t in found.trials if t.index != found.chosen)
    assert not found.best.lost


def test_the_pareto_set_has_no_member_that_another_beats():
    found = result(run(problem(), World()), problem())
    front = [found.trial(index) for index in found.pareto]
    assert front
    for a in front:
        for b in found.trials:
            beats = (
                b.metric is not None
                and b.metric > a.metric
                and b.latency_p50_ms is not None
                and b.latency_p50_ms < a.latency_p50_ms
            )
            assert not beats


def test_survivors_alone_are_evaluated():
    records = run(problem(), World())
    evaluated = {r["trial"] for r in records if r["kind"] == "evaluated"}
    rungs = [r for r in records if r["kind"] == "rung" and r["name"] == "halving"]
    assert evaluated == {int(index) for index in rungs[-1]["timings"]} | {FLOAT}
    sizes = [len(rung["timings"]) for rung in rungs]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) > 1


@pytest.mark.parametrize("outcome", ["crashed", "hung", "out_of_memory", "refused", "failed"])
def test_a_precision_that_cannot_be_made_is_a_result_and_the_search_goes_on(outcome):
    of = problem(budget=ei.Budget(latency_p50_ms=9.0, max_drop=0.5))
    found = result(run(of, World(bad={"int8": outcome})), of)
    assert found.trial(INT8).outcome == outcome
    assert found.trial(INT8).lost == f"{outcome}: as told"
    assert found.met
    assert found.best.candidate.precision != "int8"


def test_a_float_model_that_cannot_be_run_ends_the_search():
    of = problem()
    found = result(run(of, World(bad={"float32": "crashed"})), of)
    assert not found.met
    with pytest.raises(ei.errors.BudgetError):
        _ = found.best


def test_under_pressure_processor_time_counts_and_it_is_said():
    of = problem()
    found = result(run(of, World(pressure=50.0)), of)
    assert found.clock == "processor"
    best = found.best
    assert best.latency_p50_ms == pytest.approx(latency_ms(best.candidate), rel=0.03)
    assert any("under pressure" in note and "processor time" in note for note in found.notes)
    assert result(run(of, World()), of).clock == "wall"


@pytest.mark.parametrize("more", [{}, {"peak_bytes": "1 GB"}, {"latency_p99_ms": 9.0}])
def test_a_model_with_options_that_make_it_slower_is_not_evaluated(more):
    """It would give the same outputs; options may matter for other limits than the median, though."""
    of = problem(budget=ei.Budget(latency_p50_ms=8.0, max_drop=0.05, **more), seconds=1.0)
    records = run(of, World())
    slow = {i for i, each in enumerate(SPACE.baselines()) if each.options}
    timed = {int(i) for each in records if each["kind"] == "rung" for i in each["timings"]}
    halved = {
        int(i)
        for each in records
        if each["kind"] == "rung" and each["name"] == "halving"
        for i in each["timings"]
    }
    assert slow <= timed
    assert bool(slow & halved) == bool(more)


def test_a_budget_that_cannot_be_met_says_how_near_it_came_and_what_would_help():
    of = problem(budget=ei.Budget(latency_p50_ms=0.5, peak_bytes="1 MB"))
    found = result(run(of, World()), of)
    assert not found.met
    limits = " ".join(advice.limit for advice in found.advice)
    assert "latency_p50_ms" in limits
    assert "peak_bytes" in limits
    looser = [advice for advice in found.advice if advice.what.startswith("latency_p50_ms of at most")]
    nearest = min(trial.latency_p50_ms for trial in found.trials if trial.stage == "evaluated")
    assert looser[0].estimate == pytest.approx(nearest)
    assert [advice.what for advice in found.advice if advice.basis == "catalog"] == ["another device"]
    smaller = [advice for advice in found.advice if "instead of 64 x 64" in advice.what]
    assert 0.0 < smaller[0].estimate <= 0.5
    with pytest.raises(ei.errors.BudgetError, match="No candidate keeps the budget") as caught:
        _ = found.best
    assert caught.value.facts["advice"]


def test_where_what_is_fast_enough_is_too_inaccurate_it_is_known_how_near_the_accurate_ones_come():
    of = problem(budget=ei.Budget(latency_p50_ms=1.6, max_drop=0.01))
    found = result(run(of, World()), of)
    assert not found.met
    accurate = [t for t in found.trials if t.drop is not None and t.drop <= 0.01 and t.index != FLOAT]
    assert min(trial.latency_p50_ms for trial in accurate) < 0.6 * found.baseline.latency_p50_ms
    assert "latency_p50_ms" in found.advice[0].limit
    assert "int8" in found.advice[0].limit


def test_a_limit_that_nobody_measured_is_not_kept():
    of = problem(budget=ei.Budget(latency_p50_ms=9.0, power_w=5.0))
    found = result(run(of, World()), of)
    assert not found.met
    assert any("power_w was not measured" in advice.what for advice in found.advice)


def test_with_a_limit_on_accuracy_alone_the_fastest_is_the_best():
    of = problem(budget=ei.Budget(max_drop=0.01))
    found = result(run(of, World()), of)
    able = [t for t in found.trials if t.stage == "evaluated" and not t.violations]
    assert found.best.latency_p50_ms == min(t.latency_p50_ms for t in able)
    assert found.best.latency_p50_ms < found.baseline.latency_p50_ms


def test_the_time_that_is_given_is_kept_about():
    of = problem(seconds=200.0)
    records = run(of, World())
    assert State.of(records).seconds < 260
    longer = run(problem(seconds=600.0), World())
    assert sum(r["kind"] == "made" for r in longer) > sum(r["kind"] == "made" for r in records)


def test_too_few_minutes_are_said():
    of = problem(seconds=20.0)
    found = result(run(of, World()), of)
    assert any("0.333 minutes were too few" in note for note in found.notes)
    assert not any("too few" in note for note in result(run(problem(), World()), problem()).notes)


def test_where_every_estimate_is_beyond_the_limit_that_is_said_and_not_the_time():
    of = problem(budget=ei.Budget(latency_p50_ms=1e-4), seconds=20.0)
    found = result(run(of, World()), of)
    assert found.dropped == found.candidates
    assert not any("too few" in note for note in found.notes)
    assert any("every other candidate is beyond a limit by its estimate" in note for note in found.notes)


def test_options_are_taken_from_the_baseline_that_was_fastest():
    of = problem(space=attrs.evolve(SPACE, options=({}, {"slow": 0.5})))
    records = run(of, World())
    made = [r for r in records if r["kind"] == "made" and r["trial"] >= 4]
    assert made
    assert all(r["candidate"]["options"] == {"slow": 0.5} for r in made)
    first = next_action(State.of(records[:4]), of)
    assert isinstance(first, Time)
    assert [candidate.options for _, candidate in first.trials] == [{}, {}, {"slow": 0.5}, {"slow": 0.5}]
