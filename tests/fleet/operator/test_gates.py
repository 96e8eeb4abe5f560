"""Gates: PASS, FAIL or INCONCLUSIVE; no data is never PASS; what cannot see its threshold is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeinfer.errors import OptionsError
from edgeinfer.fleet import Constraint, FailureRate, Regression, Rejected, Stage
from edgeinfer.fleet.operator.canary import Sums, compare_arms
from edgeinfer.fleet.operator.cohorts import Candidate, freeze
from edgeinfer.fleet.operator.detection import binomial_tail, chance_to_see, devices_needed
from edgeinfer.fleet.operator.evidence import CANARY, CONTROL, Evidence, MetricSums
from edgeinfer.fleet.operator.outcomes import Counts, Motion, Outcome
from edgeinfer.fleet.operator.specification import Specification, check_cohorts
from edgeinfer.fleet.operator.verdicts import Verdict


def counts(**outcomes: int) -> Counts:
    return Counts({(Outcome(name), Motion.STILL): number for name, number in outcomes.items() if number})


def evidence(found: Counts, **more) -> Evidence:
    return Evidence(counts=found, pooled=found, by_class={"a": found}, **more)


def verdict(gate, **outcomes: int) -> Verdict:
    return gate.judge(evidence(counts(**outcomes))).verdict


def test_a_fault_of_5_percent_at_95_percent_needs_59_devices():
    assert devices_needed(0.05, 0.95) == 59
    assert chance_to_see(0.05, 59) >= 0.95 > chance_to_see(0.05, 58)
    assert round(chance_to_see(0.05, 20), 2) == 0.64


@settings(deadline=None)
@given(st.floats(0.001, 0.9), st.floats(0.5, 0.999))
def test_devices_needed_is_the_least_number(rate, confidence):
    needed = devices_needed(rate, confidence)
    assert chance_to_see(rate, needed) >= confidence - 1e-9
    assert needed == 1 or chance_to_see(rate, needed - 1) < confidence + 1e-9


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.floats(0.01, 0.99))
def test_the_binomial_tail_is_the_sum_of_its_terms(k, n, p):
    exact = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
    assert binomial_tail(k, n, p) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("stages", [[Stage(count=20), Stage(percent=100)], [Stage(count=58)]])
def test_a_specification_that_cannot_see_its_threshold_is_refused_with_the_number(stages):
    with pytest.raises(OptionsError, match="it needs 59 devices") as caught:
        Specification(stages=stages, gates=[FailureRate(max=0.05)])
    assert caught.value.facts["needed"] == 59
    Specification(stages=[Stage(count=59), Stage(percent=100)], gates=[FailureRate(max=0.05)])


def test_a_fleet_that_is_too_small_is_refused_with_the_number():
    specification = Specification(
        stages=[Stage(percent=10), Stage(percent=100)], gates=[FailureRate(max=0.05)]
    )
    fleet = [Candidate(device=f"d{n}", device_class="ab"[n % 2]) for n in range(580)]
    with pytest.raises(OptionsError, match="needs 59 devices") as caught:
        check_cohorts(specification, freeze(fleet, specification.stages, "s"))
    assert caught.value.facts == {"needed": 59, "found": 58}
    larger = [*fleet, *(Candidate(device=f"e{n}") for n in range(10))]
    check_cohorts(specification, freeze(larger, specification.stages, "s"))


def test_each_class_needs_enough_devices_where_it_is_asked_for():
    fleet = [Candidate(device=f"d{n}", device_class="ab"[n % 10 == 0]) for n in range(400)]
    gates = [FailureRate(max=0.05, by_class=True)]
    few = Specification(stages=[Stage(count=100), Stage(percent=100)], gates=gates)
    with pytest.raises(OptionsError, match="class b in stage 1"):
        check_cohorts(few, freeze(fleet, few.stages, "s"))
    fleet = [Candidate(device=f"d{n}", device_class="ab"[n % 4 == 0]) for n in range(400)]
    enough = Specification(stages=[Stage(count=100, min_per_class=59), Stage(percent=100)], gates=gates)
    check_cohorts(enough, freeze(fleet, enough.stages, "s"))


def test_a_comparison_without_anybody_to_compare_with_is_refused():
    with pytest.raises(OptionsError, match="stage after the first"):
        Specification(stages=[Stage(percent=100)], gates=[Regression("latency_p99", margin=0.05)])
    specification = Specification(
        stages=[Stage(count=59), Stage(percent=100)], gates=[Regression("latency_p99", margin=0.05)]
    )
    fleet = [Candidate(device=f"d{n}") for n in range(64)]
    with pytest.raises(OptionsError, match="too few devices to compare with"):
        check_cohorts(specification, freeze(fleet, specification.stages, "s"))


def test_the_failure_rate_is_the_one_of_the_design():
    found = counts(
        SUCCESS=80, FAILED=2, ROLLED_BACK=2, TIMED_OUT=1, REJECTED=20, WITHDRAWN=15, OFFLINE=7, WAITING=3
    )
    # (FAILED + ROLLED_BACK + TIMED_OUT) / (decided - REJECTED); the withdrawn stay in the denominator.
    assert found.failure_rate == 5 / 100


def test_the_failure_rate_passes_fails_and_waits():
    gate = FailureRate(max=0.05)
    assert verdict(gate, SUCCESS=59) is Verdict.PASS
    assert verdict(gate, SUCCESS=57, FAILED=2) is Verdict.PASS  # 3.4 %
    assert verdict(gate, SUCCESS=56, FAILED=3) is Verdict.FAIL  # 5.1 %
    assert verdict(gate, FAILED=3, WAITING=56) is Verdict.FAIL  # it cannot come below 5 % any more
    assert verdict(gate, FAILED=1, WAITING=58) is Verdict.INCONCLUSIVE
    assert verdict(gate, FAILED=2, WAITING=1000) is Verdict.FAIL  # two of two are no chance
    assert verdict(gate, SUCCESS=40, OFFLINE=19) is Verdict.INCONCLUSIVE  # not enough reached
    assert verdict(gate, SUCCESS=54, OFFLINE=5) is Verdict.PASS


def test_a_class_that_fails_beyond_chance_fails_the_stage():
    good, bad = counts(SUCCESS=290), counts(SUCCESS=5, FAILED=5)
    both = Counts.sum([good, bad])
    assert both.failure_rate < 0.05
    found = Evidence(counts=both, pooled=both, by_class={"a": good, "b": bad})
    judged = FailureRate(max=0.05).judge(found)
    assert judged.verdict is Verdict.FAIL
    assert "class b" in judged.reason


def test_rejections_have_their_own_limit():
    gate = Rejected(max=0.1)
    assert verdict(gate, SUCCESS=95, REJECTED=5) is Verdict.PASS
    assert verdict(gate, SUCCESS=80, REJECTED=20) is Verdict.FAIL
    assert verdict(FailureRate(max=0.05), SUCCESS=80, REJECTED=20) is Verdict.PASS
    added = Specification(stages=[Stage(count=59), Stage(percent=100)], gates=[FailureRate(max=0.05)])
    assert [gate.name for gate in added.gates] == ["FailureRate", "Rejected"]


NO_DATA = {
    "empty stage": {},
    "all deleted": {"WITHDRAWN": 59},
    "all offline": {"OFFLINE": 59},
    "all waiting": {"WAITING": 59},
    "all rejected": {"REJECTED": 59},
    "all on their way": {"ACCEPTED": 59},
}
GATES = (
    FailureRate(max=0.05),
    FailureRate(max=0.05, by_class=True),
    Rejected(max=0.05),
    Regression("latency_p99", margin=0.05),
    Regression("errors", margin=0.01),
    Constraint("latency_p99_ms"),
)


@pytest.mark.parametrize(("name", "gate"), list(itertools.product(NO_DATA, GATES)), ids=str)
def test_no_data_is_never_a_pass(name, gate):
    assert verdict(gate, **NO_DATA[name]) is not Verdict.PASS


@pytest.mark.parametrize(
    "changes", [Sums(20, math.nan, math.nan), Sums(20, math.inf, math.inf), Sums(9, 0.1, 0.2), Sums()]
)
def test_metrics_that_are_no_numbers_or_too_few_are_never_a_pass(changes):
    good = Sums(200, 0.0, 0.5)
    for canary, control in ((changes, good), (good, changes)):
        found = evidence(
            counts(SUCCESS=59),
            metrics={
                (CANARY, "a", "latency_p99"): MetricSums(changes=canary),
                (CONTROL, "a", "latency_p99"): MetricSums(changes=control),
            },
        )
        assert Regression("latency_p99", margin=0.05).judge(found).verdict is Verdict.INCONCLUSIVE


def test_a_comparison_passes_below_the_margin_and_fails_above_it():
    def judged(change: float) -> Verdict:
        canary = [change + 0.02 * (-1) ** n for n in range(60)]
        control = [0.02 * (-1) ** n for n in range(200)]
        found = evidence(
            counts(SUCCESS=60),
            metrics={
                (CANARY, "a", "latency_p99"): MetricSums(changes=Sums.of(canary)),
                (CONTROL, "a", "latency_p99"): MetricSums(changes=Sums.of(control)),
            },
        )
        return Regression("latency_p99", margin=0.05).judge(found).verdict

    assert judged(0.0) is Verdict.PASS
    assert judged(0.05) is Verdict.INCONCLUSIVE
    assert judged(0.2) is Verdict.FAIL


def test_agreement_is_compared_with_a_model_that_agrees_with_itself():
    gate = Regression("agreement", margin=0.02)

    def judged(lost: float, devices: int = 20) -> Verdict:
        changes = Sums.of(lost + 0.002 * (-1) ** n for n in range(devices))
        metrics = {(CANARY, "a", "agreement"): MetricSums(changes=changes)}
        return gate.judge(evidence(counts(SUCCESS=devices), metrics=metrics)).verdict

    assert (judged(0.001), judged(0.02), judged(0.1)) == (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL)
    assert judged(0.1, devices=9) is Verdict.INCONCLUSIVE
    # No controls are needed, so one stage is enough.
    Specification(stages=[Stage(percent=100)], gates=[FailureRate(max=0.3), gate])


def test_the_last_stage_has_no_controls_and_says_so():
    found = Evidence(counts=counts(SUCCESS=59), pooled=counts(SUCCESS=59), by_class={}, controls=False)
    judged = Regression("latency_p99", margin=0.05).judge(found)
    assert (judged.verdict, judged.applies) == (Verdict.INCONCLUSIVE, False)


def test_a_constraint_reads_the_limits_of_the_budget():
    def judged(over: int, limited: int) -> Verdict:
        metrics = {(CANARY, "a", "latency_p99"): MetricSums(limited=limited, over=over)}
        return Constraint("latency_p99_ms").judge(evidence(counts(SUCCESS=59), metrics=metrics)).verdict

    assert judged(0, 59) is Verdict.PASS
    assert judged(10, 59) is Verdict.FAIL
    assert judged(0, 5) is Verdict.INCONCLUSIVE
    with pytest.raises(OptionsError, match="do not report"):
        Constraint("max_drop")


@settings(deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from(Outcome), st.sampled_from(Motion)), st.integers(0, 200), max_size=12
    )
)
def test_a_pass_always_has_its_rate_and_enough_devices(states):
    found = Counts(states)
    for gate in (FailureRate(max=0.05), Rejected(max=0.05)):
        judged = gate.judge(evidence(found))
        if judged.verdict is Verdict.PASS:
            assert judged.figure is not None
            assert judged.figure <= 0.05
            assert found.reached >= 0.9 * found.members > 0
            assert found.reached >= 53


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=40))
def test_sums_give_mean_and_variance(changes):
    sums = Sums.of(changes)
    mean = sum(changes) / len(changes)
    assert sums.mean == pytest.approx(mean, abs=1e-9)
    expected = sum((change - mean) ** 2 for change in changes) / (len(changes) - 1)
    assert sums.variance == pytest.approx(expected, abs=1e-9)


def test_fewer_than_ten_devices_have_no_interval():
    assert compare_arms(Sums(9, 1.0, 1.0), Sums(200, 0.0, 1.0), 0.01).interval is None
    assert compare_arms(Sums(10, 1.0, 1.0), Sums(10, 0.0, 1.0), 0.01).interval is not None


@pytest.mark.parametrize("bad", [{"max": 0}, {"max": 1}, {"max": "5%"}, {"max": 0.05, "confidence": 1.0}])
def test_shares_that_are_none_are_refused(bad):
    with pytest.raises(OptionsError):
        FailureRate(**bad)


def test_a_specification_survives_json():
    specification = Specification(
        stages=[Stage(count=59, soak="6h", group="site=x"), Stage(percent=100, per_hour=10, growth=2)],
        gates=[FailureRate(max=0.05), Regression("latency_p99", margin=0.05), Constraint("peak_bytes")],
        on_fail="pause",
        lease="2h",
    )
    assert Specification.from_dict(specification.to_dict()) == specification


def changes_of(rng, devices, effect=0.0, spread=1.0):
    return Sums.of(rng.normal(effect, 0.0525 * spread, devices))  # a drift of 5 %, and what 20 looks leave


def test_ten_canaries_see_a_release_that_is_a_fifth_slower():
    rng = np.random.default_rng(4)
    seen = 0
    for _ in range(400):
        found = compare_arms(changes_of(rng, 10, math.log(1.2)), changes_of(rng, 200), 0.01)
        seen += found.interval.low > math.log(1.05)
    assert seen >= 396


def test_a_release_that_makes_devices_unlike_each_other_raises_no_false_alarm():
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(1000):
        found = compare_arms(changes_of(rng, 10, spread=2.0), changes_of(rng, 200), 0.01)
        alarms += found.interval.low > 0
    assert alarms <= 5  # of one look; twenty of them may raise 1 %


def test_failures_that_come_before_the_successes_are_no_surprise():
    # Of a thousand devices that began together 5 % fail, in the first minute; the others soak for an hour.
    gates = (FailureRate(max=0.15), Rejected(max=0.15))
    for gate, bad in zip(gates, ("FAILED", "REJECTED"), strict=True):
        for count, working, verdict in (
            (3, 997, Verdict.INCONCLUSIVE),
            (50, 950, Verdict.INCONCLUSIVE),
            (200, 800, Verdict.FAIL),
        ):
            judged = gate.judge(evidence(counts(**{bad: count}, ACCEPTED=working)))
            assert judged.verdict is verdict, (gate, count)
        # Devices that have not begun say nothing: so many of so few is no chance.
        assert gate.judge(evidence(counts(**{bad: 4}, OFFLINE=500, WAITING=496))).verdict is Verdict.FAIL
