"""`plan`: pure, and within budgets, stages, windows and ramps whatever the tallies are."""

from __future__ import annotations

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeinfer.fleet import FailureRate, MaintenanceWindow, Rejected, Site, Stage
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.operator.absorb import Heard, absorb, adopt
from edgeinfer.fleet.operator.evidence import Cell, Tallies
from edgeinfer.fleet.operator.member import Member
from edgeinfer.fleet.operator.outcomes import Counts, Motion, Outcome
from edgeinfer.fleet.operator.planner import Expose, Move, Revert, plan
from edgeinfer.fleet.operator.record import Record, State
from edgeinfer.fleet.operator.specification import Specification

NOW = 1_800_000_000
NEW, OLD = "b" * 64, "a" * 64


def record(**fields) -> Record:
    stages = fields.pop("stages", [Stage(count=59, soak="1h"), Stage(percent=100)])
    specification = Specification(
        stages=stages, gates=[FailureRate(max=0.05)], on_fail=fields.pop("on_fail", "rollback")
    )
    fields = {"state": State.RUNNING, "stage_started_at": NOW, **fields}
    return Record(id=1, model="m", release=NEW, specification=specification, **fields)


def tallies(*rows, **more) -> Tallies:
    cells: dict[Cell, dict] = {}
    for stage, site, outcome, motion, count in rows:
        cells.setdefault(Cell(stage, "a", site), {})[outcome, motion] = count
    return Tallies(cells={cell: Counts(states) for cell, states in cells.items()}, **more)


WAITING = (Outcome.WAITING, Motion.STILL)
DONE = (Outcome.SUCCESS, Motion.STILL)
MOVING = (Outcome.ACCEPTED, Motion.FORWARD)

STATES = st.dictionaries(
    st.tuples(st.sampled_from(Outcome), st.sampled_from(Motion)), st.integers(0, 30), max_size=8
).map(Counts)
CELLS = st.dictionaries(
    st.builds(Cell, st.integers(0, 2), st.sampled_from("ab"), st.sampled_from(["x", "y", "z"])),
    STATES,
    max_size=10,
)
SITES = {
    "x": Site(name="x", max_in_flight=3),
    "y": Site(name="y", windows=[MaintenanceWindow(start="00:00", end="00:01")]),
}


@settings(deadline=None)
@given(
    CELLS,
    st.sampled_from(State),
    st.integers(0, 1),
    st.dictionaries(st.sampled_from("xyz"), st.integers(0, 5)),
)
def test_whatever_the_tallies_are_the_limits_hold(cells, state, stage, elsewhere):
    found = Tallies(cells=cells, elsewhere=elsewhere)
    rollout = record(state=state, stage=stage, sites=SITES)
    actions = plan(found, rollout, NOW)
    assert actions == plan(found, rollout, NOW)
    given_out: dict[str, int] = {}
    for action in actions:
        if isinstance(action, Expose):
            assert state.exposing
            assert action.stage <= stage
            assert action.site != "y"  # its window is closed
            assert action.start_before > NOW
        if isinstance(action, (Expose, Revert)):
            assert action.count > 0
            given_out[action.site] = given_out.get(action.site, 0) + action.count
    # What takes no part in the budget does not count: devices that stand still.
    if given_out.get("x"):
        assert found.in_flight().get("x", 0) + given_out["x"] <= 3
    moves = [action for action in actions if isinstance(action, Move)]
    assert len(moves) <= 1
    assert not (moves and len(actions) > 1)
    if moves and moves[0].stage > stage:
        assert found.evidence(stage).counts.reached >= 0.9 * found.evidence(stage).counts.members > 0


def test_nothing_happens_to_a_rollout_that_is_over():
    found = tallies((0, "x", *WAITING, 5))
    for state in (State.DRAFT, State.ABORTED, State.ROLLED_BACK, State.SUPERSEDED, State.FAILED):
        assert plan(found, record(state=state), NOW) == ()


def test_the_soak_begins_with_the_quantile_and_ends_with_the_gates():
    almost = tallies((0, "x", *DONE, 53), (0, "x", *MOVING, 6), (1, "x", *WAITING, 40))
    assert not any(isinstance(action, Move) for action in plan(almost, record(), NOW))
    enough = tallies((0, "x", *DONE, 54), (0, "x", *MOVING, 5), (1, "x", *WAITING, 40))
    (move,) = plan(enough, record(), NOW)
    assert (move.stage, move.soak_started_at) == (0, NOW)
    soaking = record(soak_started_at=NOW)
    assert plan(enough, soaking, NOW + 3599) == ()
    (move,) = plan(enough, soaking, NOW + 3600)
    assert (move.state, move.stage) == (State.RUNNING, 1)


def test_a_failure_stops_before_anything_else_is_done():
    bad = tallies((0, "x", Outcome.ROLLED_BACK, Motion.STILL, 3), (0, "x", *WAITING, 56))
    (move,) = plan(bad, record(), NOW)
    assert move.state is State.ROLLING_BACK
    (move,) = plan(bad, record(on_fail="pause"), NOW)
    assert move.state is State.FAILED


def test_late_failures_of_passed_stages_stop_a_completed_rollout():
    late = tallies((0, "x", *DONE, 50), (0, "x", Outcome.FAILED, Motion.STILL, 9), (1, "x", *DONE, 500))
    (move,) = plan(late, record(state=State.COMPLETED, stage=1), NOW)
    assert move.state is State.ROLLING_BACK


def test_the_ramp_is_shared_among_the_sites():
    stages = [Stage(count=59, per_hour=10), Stage(percent=100)]
    found = tallies((0, "x", *WAITING, 30), (0, "z", *WAITING, 29))
    exposures = plan(found, record(stages=stages), NOW + 3600)
    assert {action.site: action.count for action in exposures} == {"x": 5, "z": 5}


def test_a_document_ends_with_its_window():
    site = Site(name="x", windows=[MaintenanceWindow(start="00:00", end="23:59")])
    (exposure,) = plan(tallies((0, "x", *WAITING, 59)), record(sites={"x": site}), NOW)
    assert exposure.start_before == site.open_until(NOW) < NOW + 86_400


def member(**fields) -> Member:
    values = {"outcome": Outcome.OFFLINE, "motion": Motion.FORWARD, "exposures": 1, **fields}
    place = {"rollout": 1, "device": "d", "stage": 0, "rank": 0, "target": NEW, "origin": OLD}
    return Member(**place, **{"epoch": 1, "number": 1, **values})


def heard(phase: Phase, generation=(1, 1), **fields) -> Heard:
    return Heard(generation=generation, phase=phase, at=NOW, **fields)


def after(before: Member, *reports: Heard) -> tuple[Outcome, Motion]:
    for report in reports:
        before = absorb(before, report, release=NEW, retries=1)
    return before.outcome, before.motion


def test_what_reports_make_of_a_device():
    assert after(member(), heard(Phase.ACCEPTED)) == (Outcome.ACCEPTED, Motion.FORWARD)
    assert after(member(), heard(Phase.COMMITTED, digest=NEW)) == (Outcome.SUCCESS, Motion.STILL)
    assert after(member(), heard(Phase.COMMITTED, digest=OLD)) == (Outcome.FAILED, Motion.STILL)
    assert after(member(), heard(Phase.DEGRADED)) == (Outcome.FAILED, Motion.STILL)
    # A success that breaks later, and a silent device that answers after all.
    assert (
        after(member(outcome=Outcome.SUCCESS, motion=Motion.STILL), heard(Phase.ROLLED_BACK))[0]
        is Outcome.ROLLED_BACK
    )
    assert after(member(outcome=Outcome.TIMED_OUT), heard(Phase.COMMITTED, digest=NEW)) == DONE
    # What is about another document says nothing about this one.
    assert after(member(), heard(Phase.FAILED, generation=(0, 9))) == (Outcome.OFFLINE, Motion.FORWARD)


def test_a_device_that_lost_its_document_is_given_one_again_when_it_has_run_out():
    # A clone accepted it and is gone, or the device was reset.
    late = {"start_before": NOW - 7200, "epoch": 1, "number": 4}
    for outcome in (Outcome.ACCEPTED, Outcome.TIMED_OUT):
        lost = member(outcome=outcome, **late)
        assert after(lost, heard(Phase.COMMITTED, (0, 0), digest=OLD)) == (Outcome.OFFLINE, Motion.STILL)
        assert after(lost, heard(Phase.SOAKING, (1, 3))) == (outcome, Motion.FORWARD)  # it works on another
        in_time = attrs.evolve(lost, start_before=NOW + 60)
        assert after(in_time, heard(Phase.COMMITTED, (0, 0), digest=OLD)) == (outcome, Motion.FORWARD)
    decided = member(outcome=Outcome.FAILED, motion=Motion.STILL, **late)
    assert after(decided, heard(Phase.COMMITTED, (0, 0), digest=OLD)) == (Outcome.FAILED, Motion.STILL)


def test_a_device_that_went_on_after_the_backup_is_given_the_release_again():
    known = member(outcome=Outcome.SUCCESS, motion=Motion.STILL, start_before=NOW - 7200, epoch=2, number=1)
    assert after(known, heard(Phase.COMMITTED, (1, 9), digest=OLD)) == (Outcome.OFFLINE, Motion.STILL)
    assert after(known, heard(Phase.COMMITTED, (1, 1), digest=NEW)) == DONE  # it has it
    assert after(known, heard(Phase.IDLE, (0, 0))) == DONE  # reflashed: it has a document already
    in_time = attrs.evolve(known, start_before=NOW + 60)
    assert after(in_time, heard(Phase.COMMITTED, (1, 9), digest=OLD)) == DONE  # it may take the document up


def test_a_device_that_has_the_release_by_a_document_that_was_forgotten_counts_as_having_it():
    waits = member(outcome=Outcome.WAITING, motion=Motion.STILL, exposures=0, epoch=0, number=0)
    for phase, digest, outcome in (
        (Phase.COMMITTED, NEW, Outcome.SUCCESS),
        (Phase.COMMITTED, OLD, Outcome.WAITING),
        (Phase.SOAKING, NEW, Outcome.WAITING),
    ):
        assert adopt(waits, heard(phase, digest=digest), release=NEW).outcome is outcome
    on_its_way = member()
    assert adopt(on_its_way, heard(Phase.COMMITTED, (1, 9), digest=NEW), release=NEW) == on_its_way


def test_a_device_that_could_not_go_back_has_the_release():
    asked = member(outcome=Outcome.SUCCESS, motion=Motion.BACK, back_epoch=1, back_number=2)
    back = {"generation": (1, 2), "digest": NEW}
    late = heard(Phase.FAILED, code="lease", **back)
    assert after(asked, late, late) == DONE  # to be asked again, under another lease
    network = heard(Phase.FAILED, code="network", **back)
    assert after(asked, network) == DONE
    spent = attrs.evolve(asked, attempts=1)
    assert after(spent, network) == (Outcome.SUCCESS, Motion.KEPT)
    golden = heard(Phase.REJECTED, code="golden", **back)
    assert after(asked, golden) == (Outcome.SUCCESS, Motion.KEPT)
    assert after(asked, golden, golden) == (Outcome.SUCCESS, Motion.KEPT)
    went = heard(Phase.COMMITTED, (1, 2), digest=OLD)
    assert after(asked, golden, went) == (Outcome.SUCCESS, Motion.REVERTED)
    broken = heard(Phase.DEGRADED, code="errors", **back)
    assert after(asked, broken) == (Outcome.FAILED, Motion.KEPT)
    assert after(member(), heard(Phase.DEGRADED, digest=NEW)) == (Outcome.FAILED, Motion.STUCK)


def test_a_device_that_went_back_by_an_earlier_document_is_back():
    asked = {"outcome": Outcome.SUCCESS, "back_epoch": 1, "back_number": 3}
    for motion in (Motion.BACK, Motion.STILL, Motion.STUCK, Motion.KEPT):
        twice = member(motion=motion, **asked)
        went = heard(Phase.COMMITTED, (1, 2), digest=OLD)
        assert after(twice, went) == (Outcome.SUCCESS, Motion.REVERTED)
        assert after(twice, heard(Phase.ACCEPTED, (1, 2), digest=NEW))[1] is motion


def test_a_rollback_ends_only_when_no_device_can_go_back_any_more():
    rolling = record(state=State.ROLLING_BACK)
    stuck = tallies((0, "x", Outcome.FAILED, Motion.STUCK, 3), (0, "x", Outcome.FAILED, Motion.STILL, 2))
    (asked,) = plan(stuck, rolling, NOW)
    assert asked.count == 3
    (end,) = plan(tallies((0, "x", Outcome.SUCCESS, Motion.KEPT, 2)), rolling, NOW)
    assert (end.state, end.reason[:30]) == (State.ROLLED_BACK, "2 devices could not go back; e")


def test_a_device_that_went_back_because_it_was_told_to_is_no_failure():
    # It was in its soak when a gate failed elsewhere, when another rollout took it over, or in a quarantine.
    called_back = member(outcome=Outcome.ACCEPTED, motion=Motion.BACK, back_epoch=1, back_number=2)
    for code in ("superseded", "withdrawn"):
        went = heard(Phase.ROLLED_BACK, code=code)
        assert after(called_back, went) == (Outcome.OFFLINE, Motion.BACK)
        assert after(called_back, went, heard(Phase.COMMITTED, (1, 2), digest=OLD))[1] is Motion.REVERTED
        taken_over = after(member(outcome=Outcome.ACCEPTED), went, heard(Phase.ACCEPTED, (1, 2)))
        assert taken_over == (Outcome.ACCEPTED, Motion.STILL)
    assert after(member(), heard(Phase.ROLLED_BACK, code="errors"))[0] is Outcome.ROLLED_BACK


def test_retryable_failures_are_tried_again_as_often_as_allowed():
    failed = heard(Phase.FAILED, code="network")
    first = absorb(member(), failed, release=NEW, retries=1)
    assert (first.outcome, first.motion) == (Outcome.ACCEPTED, Motion.AGAIN)
    again = attrs.evolve(first, motion=Motion.FORWARD, number=2, outcome=Outcome.OFFLINE)
    assert after(again, heard(Phase.FAILED, (1, 2), code="network")) == (Outcome.FAILED, Motion.STILL)


def test_a_rejection_is_tried_again_only_when_the_device_has_changed():
    rejected = member(outcome=Outcome.REJECTED, motion=Motion.STILL)
    assert after(rejected, heard(Phase.IDLE))[1] is Motion.STILL
    assert after(rejected, heard(Phase.IDLE, facts_changed=True))[1] is Motion.AGAIN


def test_an_abort_and_a_late_success_race():
    called_back = member(motion=Motion.BACK, back_epoch=1, back_number=2)
    assert after(called_back, heard(Phase.COMMITTED, digest=NEW)) == (Outcome.SUCCESS, Motion.BACK)
    done = heard(Phase.COMMITTED, (1, 2), digest=OLD)
    assert after(called_back, heard(Phase.COMMITTED, digest=NEW), done) == (Outcome.SUCCESS, Motion.REVERTED)
    assert after(called_back, done) == (Outcome.OFFLINE, Motion.REVERTED)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(Phase), st.integers(0, 3), st.sampled_from([OLD, NEW])), max_size=12)
)
def test_a_withdrawn_device_stays_withdrawn(reports):
    gone = member(outcome=Outcome.WITHDRAWN, motion=Motion.STILL)
    told = [heard(phase, (1, number), digest=digest) for phase, number, digest in reports]
    assert after(gone, *told) == (Outcome.WITHDRAWN, Motion.STILL)


REFUSED = (Outcome.REJECTED, Motion.STILL)


def test_a_stage_that_is_decided_and_cannot_pass_waits_for_people_and_not_for_ever():
    # So many rejections are below their limit, and leave too few devices to judge failures by.
    some = tallies((0, "x", *DONE, 52), (0, "x", *REFUSED, 8), (1, "x", *WAITING, 40))
    rollout = attrs.evolve(record(), soak_started_at=NOW)
    specification = attrs.evolve(rollout.specification, gates=[FailureRate(max=0.05), Rejected(max=0.3)])
    rollout = attrs.evolve(rollout, specification=specification)
    assert plan(some, rollout, NOW + 60) == ()  # it soaks
    (move,) = plan(some, rollout, NOW + 3600)
    assert move.state is State.PAUSED
    assert "52 devices judged; 54 must be" in move.reason
    silent = (Outcome.TIMED_OUT, Motion.FORWARD)
    assert plan(
        tallies((0, "x", *DONE, 51), (0, "x", *REFUSED, 8), (0, "x", *silent, 1)), rollout, NOW + 3600
    )
    again = (Outcome.REJECTED, Motion.AGAIN)  # the facts of one have changed: it is tried again, so it waits
    (exposure,) = plan(
        tallies((0, "x", *DONE, 52), (0, "x", *REFUSED, 7), (0, "x", *again, 1)), rollout, NOW + 3600
    )
    assert isinstance(exposure, Expose)


def test_a_stage_in_which_nothing_committed_and_nothing_will_waits_for_people():
    specification = Specification(stages=[Stage(count=1), Stage(percent=100)], gates=[FailureRate(max=0.99)])
    rollout = attrs.evolve(record(), specification=specification)
    withdrawn = (Outcome.WITHDRAWN, Motion.STILL)
    gone = tallies((0, "x", *withdrawn, 1), (1, "x", *WAITING, 5))
    (move,) = plan(gone, rollout, NOW)
    assert move.state is State.PAUSED
    assert "0 committed, and 1 device must" in move.reason
