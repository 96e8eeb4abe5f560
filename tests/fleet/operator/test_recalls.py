"""Devices that began in time and are heard of late: held, aborted or rolled back in between."""

from __future__ import annotations

import pytest

from edgeinfer.fleet import Site, Stage
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.operator import commands
from edgeinfer.fleet.operator.devices import Devices
from edgeinfer.fleet.operator.outcomes import Motion, Outcome
from edgeinfer.fleet.operator.record import State
from edgeinfer.fleet.operator.store.members import load_members
from edgeinfer.fleet.operator.store.schema import members
from tests.fleet.operator.trial import NEW, OLD, Trial

ONE_AT_A_TIME = [Site(name=f"s{n}", max_in_flight=1) for n in range(3)]
STAGES = [Stage(count=20, timeout="6h"), Stage(percent=100)]


def cut_off(trial, hours=0.0):
    """Cut the operator off once devices have begun with their documents, and return these devices."""
    trial.run(hours)
    floors = {name: device.floor for name, device in trial.world.devices.items()}
    begun = []
    while not begun:
        trial.world.run(20)
        devices = trial.world.devices.values()
        begun = [d for d in devices if d.phase is Phase.ACCEPTED and d.floor > floors[d.name]]
    trial.world.partitioned = True
    return begun


def parts(trial, devices):
    with trial.db.reading() as connection:
        found = load_members(connection, members.c.device.in_([device.name for device in devices]))
    return {(member.outcome, member.motion) for member in found}


def held_by_nobody(command, sites=ONE_AT_A_TIME, hours=0.0):
    """Return a trial that was cut off until all leases are over, and devices that were faster than that."""
    trial = Trial(devices=22, lease="2h", sites=sites, stages=STAGES).start()
    begun = cut_off(trial, hours)
    getattr(commands, command)(trial.db, trial.number, reason="enough")
    trial.run(4)
    assert all(device.running == NEW for device in begun)
    return trial, begun


def test_a_device_that_reports_after_its_rollback_goes_back_within_its_sites_budget():
    trial, _ = held_by_nobody("roll_back", hours=5)
    assert trial.state is State.ROLLING_BACK
    assert trial.running(NEW) >= 6
    trial.world.partitioned = False
    trial.run(1).until(State.ROLLED_BACK)  # the oracle sees that at no site two of them switch
    assert trial.running(OLD) == 22
    assert Devices(trial.db).drifted() == []


def test_a_rollback_that_had_ended_goes_on_for_devices_that_turn_up():
    trial, begun = held_by_nobody("roll_back", sites=[])
    assert (trial.state, parts(trial, begun)) == (State.ROLLED_BACK, {(Outcome.OFFLINE, Motion.REVERTED)})
    trial.world.partitioned = False
    trial.until(State.ROLLING_BACK, hours=3)
    assert "reported late: the release is there still" in trial.log[-1]["reason"]
    trial.until(State.ROLLED_BACK)
    assert trial.running(OLD) == 22
    assert Devices(trial.db).drifted() == []


@pytest.mark.parametrize("command", ["hold", "abort"])
def test_a_device_that_was_faster_than_a_hold_or_an_abort_keeps_the_release(command):
    trial, begun = held_by_nobody(command)
    trial.world.partitioned = False
    trial.run(12)
    assert all(device.running == NEW for device in begun)
    assert parts(trial, begun) == {(Outcome.SUCCESS, Motion.STILL)}
    assert Devices(trial.db).drifted() == []  # it runs what it is to run, as those that had it before
    if command == "hold":
        commands.resume(trial.db, trial.number, reason="looked at")
        trial.until(State.COMPLETED)
        assert trial.running(NEW) == 22
    commands.roll_back(trial.db, trial.number, reason="too warm")
    trial.run(1).until(State.ROLLED_BACK)
    assert trial.running(OLD) == 22


def test_a_device_that_could_not_go_back_after_an_abort_keeps_the_release():
    trial = Trial(devices=22, lease="2h", stages=STAGES).start()
    begun = cut_off(trial)
    trial.world.partitioned = False
    trial.world.tick()
    commands.abort(trial.db, trial.number, reason="enough")
    for device in begun:
        device.step = lambda now, _quality, its=device: its.end(Phase.REJECTED, now, "golden")
        device.running = device.committed = NEW
    trial.run(12)
    assert all(device.running == NEW for device in begun)
    assert Devices(trial.db).drifted() == []


def test_what_devices_are_to_keep_moves_none_that_has_gone_back_in_time():
    trial = Trial(devices=22, lease="2h", sites=ONE_AT_A_TIME, stages=STAGES).start()
    trial.until(State.COMPLETED)
    commands.roll_back(trial.db, trial.number, reason="too warm")
    begun = cut_off(trial)
    commands.abort(trial.db, trial.number, reason="not that warm")
    trial.run(4)  # nobody knows whether they have gone back: they are to keep the release
    assert {row["wanted"] for row in Devices(trial.db)} == {NEW}
    assert all(device.running == OLD for device in begun)
    back = trial.running(OLD)
    trial.world.partitioned = False
    trial.run(12)
    assert trial.running(OLD) == back
    assert Devices(trial.db).drifted() == []


def test_a_device_that_is_heard_to_have_accepted_after_its_lease_still_times_out():
    trial = Trial(devices=22, lease="2h", stages=STAGES).start()
    begun = cut_off(trial)
    for device in begun:
        device.dead = True
    commands.pause(trial.db, trial.number)
    trial.run(4)
    assert parts(trial, begun) == {(Outcome.OFFLINE, Motion.STILL)}
    trial.world.partitioned = False
    trial.run(1)
    assert parts(trial, begun) == {(Outcome.ACCEPTED, Motion.FORWARD)}
    trial.run(7)
    assert {outcome for outcome, _ in parts(trial, begun)} == {Outcome.TIMED_OUT}


def test_the_list_says_what_became_of_a_release_that_a_device_refused():
    trial = Trial(devices=22, stages=STAGES).start()
    begun = cut_off(trial)
    for device in begun:
        device.step = lambda now, _quality, its=device: its.end(Phase.REJECTED, now, "golden")
    trial.world.partitioned = False
    trial.until(State.ROLLED_BACK)
    told = [row for row in Devices(trial.db) if row["wanted"] == NEW]
    assert len(told) == len(begun)
    assert {(row["running"], row["recalled"]) for row in told} == {(OLD, "rolled back")}
    assert str(Devices(trial.db)).count(", rolled back") == len(told)
    commands.quarantine(trial.db, NEW, reason="too warm")
    assert {row["recalled"] for row in Devices(trial.db) if row["wanted"] == NEW} == {"withdrawn"}
