"""Rollouts from start to end, in simulated fleets: the real planner, store and ingest."""

from __future__ import annotations

import json

import pytest

from edgeinfer.errors import FleetError
from edgeinfer.fleet import FailureRate, Regression, Site, Stage
from edgeinfer.fleet.operator import commands
from edgeinfer.fleet.operator.controller import Controller
from edgeinfer.fleet.operator.devices import Devices
from edgeinfer.fleet.operator.forecast import simulate
from edgeinfer.fleet.operator.outcomes import Outcome
from edgeinfer.fleet.operator.publisher import Publisher
from edgeinfer.fleet.operator.record import State
from edgeinfer.fleet.operator.simulator.faults import Faults, Quality
from edgeinfer.fleet.operator.specification import Specification
from edgeinfer.fleet.operator.store.inventory import remove_device, save_release
from edgeinfer.fleet.operator.store.members import load_members
from tests.fleet.operator.trial import ENDED, HOUR, NEW, OLD, STONE, Trial


def test_a_good_release_reaches_every_device_stage_by_stage():
    trial = Trial(
        sites=[Site(name="s0", max_in_flight=2)], faults=Faults(offline=0.1, duplicate=0.2, delay_s=120)
    )
    trial.start().until(State.COMPLETED)
    trial.world.heal()
    trial.run(12)
    assert trial.running(NEW) == 40
    assert trial.counts.of(Outcome.SUCCESS) == 40
    actions = [line["action"] for line in trial.log]
    assert actions.index("stage 2") < actions.index("COMPLETED")
    assert trial.oracle.most_disturbed["s0"] <= 2


def test_a_bad_release_is_rolled_back_by_itself_before_the_second_stage():
    trial = Trial(quality=Quality(rolled_back=0.6))
    trial.start().until(State.ROLLED_BACK)
    assert trial.running(NEW) == 0
    assert trial.counts.exposed == 20
    assert any("FailureRate failed in stage 1" in line["reason"] for line in trial.log)


def test_a_slower_release_is_caught_by_the_canaries():
    trial = Trial(quality=Quality(slower=0.25), devices=60, on_fail="pause", heartbeat_s=7200,
                  gates=[FailureRate(max=0.14), Regression("latency_p99", margin=0.05)],
                  stages=[Stage(count=20, soak="12h"), Stage(percent=100)])  # fmt: skip
    trial.start().until(State.FAILED, State.COMPLETED)
    assert trial.state is State.FAILED
    assert "Regression(latency_p99) failed in stage 1" in trial.log[-1]["reason"]
    assert trial.counts.exposed == 20


def test_an_equally_fast_release_passes_the_comparison():
    trial = Trial(
        devices=80,
        heartbeat_s=7200,
        gates=[FailureRate(max=0.14), Regression("latency_p99", margin=0.10)],
        stages=[Stage(count=30, soak="12h"), Stage(percent=100)],
    )
    trial.start().until(*ENDED)
    assert trial.state is State.COMPLETED
    judgements = trial.rollout.status().judgements[0]
    assert {j.gate: j.verdict.value for j in judgements}["Regression(latency_p99)"] == "PASS"


def test_failure_rates_count_late_failures_of_passed_stages():
    trial = Trial(quality=Quality(late=0.9), stages=[Stage(count=20), Stage(percent=100, per_hour=0.2)])
    trial.start().until(State.ROLLED_BACK, State.ROLLING_BACK)
    assert "failed in stage 1" in next(
        line["reason"] for line in trial.log if line["action"] == "ROLLING_BACK"
    )


def test_pause_gives_no_new_documents_and_hold_calls_back():
    trial = Trial(faults=Faults(slow=1.0), sites=[Site(name=f"s{n}", max_in_flight=2) for n in range(3)])
    trial.start().run(0.5)
    trial.rollout.pause(reason="lunch")
    exposed = trial.counts.exposed
    assert 0 < exposed < 20
    trial.run(6)
    assert trial.counts.exposed == exposed
    trial.rollout.resume()
    trial.run(0.2)
    trial.rollout.hold(reason="fire alarm")
    trial.run(12)
    assert trial.counts.in_flight == 0
    new = trial.running(NEW)
    trial.run(6)
    assert trial.running(NEW) == new
    trial.rollout.resume()
    trial.until(State.COMPLETED, hours=300)


def test_abort_leaves_committed_devices_and_stops_the_others():
    trial = Trial(sites=[Site(name=f"s{n}", max_in_flight=2) for n in range(3)])
    trial.start()
    trial.world.run_until(lambda: trial.counts.of(Outcome.SUCCESS) >= 3, 48 * HOUR)
    trial.rollout.abort(reason="wrong labels")
    trial.run(12)
    assert trial.state is State.ABORTED
    assert trial.counts.in_flight == 0
    done = trial.running(NEW)
    assert 3 <= done <= 20
    trial.run(24)
    assert trial.running(NEW) == done
    with pytest.raises(FleetError, match="reason is needed"):
        trial.rollout.abort(reason=" ")
    with pytest.raises(FleetError, match="cannot be changed so: pause"):
        trial.rollout.pause()


def test_after_a_failed_gate_resuming_needs_a_reason_and_new_failures_fail_again():
    trial = Trial(quality=Quality(failed=0.5), on_fail="pause")
    trial.start().until(State.FAILED)
    with pytest.raises(FleetError, match="reason is needed to resume after a failed gate"):
        trial.rollout.resume()
    trial.rollout.resume(reason="those are known to be broken")
    assert trial.state is State.RUNNING
    assert any("known to be broken" in line["reason"] for line in trial.log)
    trial.until(State.FAILED)  # the rest fails as often


def test_an_operator_who_answers_for_failures_gets_on():
    trial = Trial(on_fail="pause")
    trial.world.quality[NEW] = Quality(failed=0.5)
    trial.start().until(State.FAILED)
    trial.world.quality[NEW] = Quality()
    trial.run(3)
    trial.rollout.resume(reason="the server's fault")
    trial.until(State.COMPLETED)


def test_retryable_failures_are_tried_again_and_do_not_count():
    trial = Trial(quality=Quality(transient=0.3), retries=8)
    trial.start().until(State.COMPLETED)
    trial.run(12)
    assert trial.running(NEW) == 40


def test_rejections_stop_at_their_own_limit():
    trial = Trial(quality=Quality(rejected=1.0), on_fail="pause")
    trial.start().until(State.FAILED)
    assert "Rejected failed" in trial.log[-1]["reason"]
    assert trial.counts.failure_rate is None


def test_silence_after_accepting_is_a_failure():
    trial = Trial(
        quality=Quality(silent=0.7),
        on_fail="pause",
        stages=[Stage(count=20, timeout="2h"), Stage(percent=100)],
    )
    trial.start().until(State.FAILED)
    assert trial.counts.of(Outcome.TIMED_OUT) >= 2


def test_nothing_is_decided_without_data():
    trial = Trial()
    trial.world.partitioned = True
    trial.start().run(60)
    assert trial.state is State.RUNNING
    assert trial.counts.of(Outcome.SUCCESS) == 0
    assert commands.get(trial.db, trial.number).stage == 0


def test_deleted_devices_stay_in_the_denominator():
    trial = Trial(devices=40)
    trial.world.partitioned = True
    trial.start().run(1)
    for name in list(trial.world.devices):
        remove_device(trial.db, name)
    trial.world.devices.clear()
    trial.world.partitioned = False
    trial.run(30)
    assert trial.state is State.PAUSED  # nobody is left who could decide it
    assert trial.counts.of(Outcome.WITHDRAWN) == 40
    assert all(j.verdict.value != "PASS" for j in trial.rollout.status().judgements[0])


def test_the_deadline_of_a_stage_pauses_the_rollout():
    trial = Trial(stages=[Stage(count=20, deadline="1d"), Stage(percent=100)])
    trial.world.partitioned = True
    trial.start().until(State.PAUSED, hours=30)
    assert "deadline of stage 1" in trial.log[-1]["reason"]


def test_a_stage_waits_for_approval():
    trial = Trial(stages=[Stage(count=20), Stage(percent=100, needs_approval=True)])
    trial.start().until(State.AWAITING_APPROVAL)
    trial.run(6)
    assert trial.counts.exposed == 20
    trial.rollout.approve()
    trial.until(State.COMPLETED)


def test_late_joiners_go_last_and_after_the_end():
    trial = Trial()
    trial.start().run(1)
    trial.add(5, first=100)
    trial.until(State.COMPLETED)
    trial.run(12)
    assert trial.running(NEW) == 45
    trial.add(3, first=200)
    trial.run(12)
    assert trial.running(NEW) == 48


def test_a_stepping_stone_is_installed_before():
    trial = Trial(requires="1.5")
    save_release(trial.db, digest=STONE, model="m", version="1.5")
    seen = []
    trial.world.on_step = lambda device: seen.append((device.name, device.running[:1]))
    trial.start().until(State.COMPLETED)
    trial.run(12)
    assert trial.running(NEW) == 40
    for name in trial.world.devices:
        mine = [digest for device, digest in seen if device == name]
        assert mine.index("c") < mine.index("b")


def test_a_quarantined_release_is_named_by_no_document():
    trial = Trial(sites=[Site(name=f"s{n}", max_in_flight=1) for n in range(3)])
    trial.start().run(1.5)
    commands.quarantine(trial.db, NEW, device_class="b", reason="wrong arithmetic")
    trial.oracle.withdrawn.add((NEW, "b"))
    had = {d.name for d in trial.world.devices.values() if d.device_class == "b" and d.running == NEW}
    trial.run(30)
    have = {d.name for d in trial.world.devices.values() if d.device_class == "b" and d.running == NEW}
    assert have <= had
    assert any(d.device_class == "a" and d.running == NEW for d in trial.world.devices.values())


def test_one_live_rollout_for_a_model_and_a_device():
    trial = Trial()
    trial.start().run(0.1)
    specification = Specification(stages=[Stage(count=20), Stage(percent=100)], gates=[FailureRate(max=0.14)])
    other = commands.draft(trial.db, model="m", release=OLD, specification=specification)
    with pytest.raises(FleetError, match="Another rollout of this model has some of the devices"):
        commands.start(trial.db, other)
    urgent = Specification(
        stages=[Stage(count=20), Stage(percent=100)], gates=[FailureRate(max=0.14)], priority=1
    )
    other = commands.draft(trial.db, model="m", release=OLD, specification=urgent)
    commands.start(trial.db, other)
    assert trial.state is State.SUPERSEDED
    trial.world.run_until(lambda: commands.get(trial.db, other).state is State.COMPLETED, 96 * HOUR)
    trial.run(12)
    assert trial.running(OLD) == 40
    third = Specification(stages=[Stage(count=20), Stage(percent=100)], gates=[FailureRate(max=0.14)])
    commands.start(trial.db, commands.draft(trial.db, model="m", release=NEW, specification=third))
    with pytest.raises(FleetError, match="A later rollout of this model"):
        commands.roll_back(trial.db, other, reason="too late")


def test_two_controllers_do_nothing_twice():
    trial = Trial(sites=[Site(name=f"s{n}", max_in_flight=2) for n in range(3)])
    second = Controller(trial.db, Publisher(trial.world.shelf, lambda _: ()))
    trial.world.on_tick = second.tick
    trial.start().until(State.COMPLETED)
    with trial.db.reading() as connection:
        members = load_members(connection)
    assert {member.exposures for member in members} == {1}


def test_clones_and_reflashed_devices_are_flagged_and_harmless():
    trial = Trial()
    trial.start().run(0.5)
    trial.world.clone("d1")
    trial.world.reflash("d2")
    trial.until(State.COMPLETED)
    trial.world.heal()
    trial.run(12)
    flags = {row["device"]: row["flag"] for row in Devices(trial.db)}
    assert flags["d2"] == "reflashed"
    assert flags["d1"] == "clone"
    assert trial.running(NEW) == 40


def test_a_forecast_tells_the_time_the_exposure_and_what_gates_see():
    trial = Trial(devices=60, gates=[FailureRate(max=0.14), Regression("latency_p99", margin=0.05)])
    found = simulate(trial.db, commands.get(trial.db, trial.number), bad_rate=0.5)
    assert found.good.state == "COMPLETED"
    assert found.bad.state == "ROLLED_BACK"
    assert found.bad.exposed == 20 < found.devices == 60
    assert [gate for gate, _ in found.gates] == ["FailureRate", "Regression(latency_p99)", "Rejected"]
    assert trial.state is State.DRAFT
    assert "<table" in found._repr_html_()


def test_the_status_is_shown():
    trial = Trial()
    trial.start().run(0.5)
    status = trial.rollout.status()
    assert status.state == "RUNNING"
    assert "20 devices" in str(status)
    assert "<table" in trial.rollout._repr_html_()
    json.dumps(status.to_dict())
