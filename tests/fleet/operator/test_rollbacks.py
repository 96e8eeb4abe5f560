"""Ways back: rollbacks, restores of the database, withdrawn releases."""

from __future__ import annotations

import json
import sqlite3

import sqlalchemy as sa

from edgeinfer.fleet import Site, Stage
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.operator import commands
from edgeinfer.fleet.operator.devices import Devices
from edgeinfer.fleet.operator.outcomes import Motion
from edgeinfer.fleet.operator.publisher import Publisher
from edgeinfer.fleet.operator.record import State
from edgeinfer.fleet.operator.restoring import recall_withdrawn
from edgeinfer.fleet.operator.simulator.faults import Quality
from edgeinfer.fleet.operator.store.inventory import remove_device
from edgeinfer.fleet.operator.store.members import load_members
from edgeinfer.fleet.operator.store.schema import audit
from tests.fleet.operator.trial import NEW, OLD, Trial


def test_after_a_restore_the_epoch_rises_and_the_fleet_converges():
    trial = Trial()
    trial.start().run(0.3)
    backup = sqlite3.connect(":memory:")
    raw = trial.db.engine.raw_connection().driver_connection
    raw.backup(backup)
    trial.run(4)
    before = {name: json.loads(doc)["signed"]["assignments"][0]["generation"]
              for name, doc in trial.world.shelf.documents.items()}  # fmt: skip
    backup.backup(raw)
    trial.oracle.forget_stages()
    trial.oracle.single = False
    assert Publisher(trial.world.shelf, lambda _: ()).notice_restore(trial.db)
    trial.until(State.COMPLETED)
    trial.run(12)
    assert trial.running(NEW) == 40
    for name, generation in before.items():
        after = json.loads(trial.world.shelf.documents[name])["signed"]["assignments"][0]["generation"]
        assert after > generation
        assert after[0] == 2


def test_a_removed_device_does_not_keep_a_rollback_waiting():
    trial = Trial(devices=22)
    trial.start().until(State.COMPLETED)
    remove_device(trial.db, "d1")
    del trial.world.devices["d1"]
    commands.roll_back(trial.db, trial.number, reason="too warm")
    trial.until(State.ROLLED_BACK)
    assert trial.running(OLD) == 21


def test_devices_that_were_away_keep_the_release_when_its_rollback_was_aborted():
    trial = Trial(devices=22, lease="2h")
    trial.start().until(State.COMPLETED)
    trial.world.partitioned = True
    commands.roll_back(trial.db, trial.number, reason="too warm")
    trial.run(1)
    commands.abort(trial.db, trial.number, reason="not that warm")
    trial.run(4)  # the documents that ask them back run out
    trial.world.partitioned = False
    trial.run(4)
    assert trial.running(NEW) == 22
    assert {row["wanted"] for row in Devices(trial.db)} == {NEW}


def test_a_rollback_that_was_asked_in_vain_and_is_aborted_leaves_the_release():
    trial = Trial(devices=22, lease="2h", sites=[Site(name=f"s{n}", max_in_flight=1) for n in range(3)])
    trial.start().until(State.COMPLETED)
    trial.world.partitioned = True
    commands.roll_back(trial.db, trial.number, reason="too warm")
    trial.run(4)  # of each site the next one is asked, since the document of the first ran out
    with trial.db.reading() as connection:
        in_vain = [m for m in load_members(connection) if m.back_epoch and m.motion is Motion.STILL]
    assert len(in_vain) >= 3
    commands.abort(trial.db, trial.number, reason="not that warm")
    trial.run(4)  # those that were asked last run out, too
    trial.world.partitioned = False
    trial.run(4)
    assert trial.running(NEW) == 22
    assert {row["wanted"] for row in Devices(trial.db)} == {NEW}


def test_a_rollback_reaches_devices_that_fail_and_have_the_release_all_the_same():
    trial = Trial(devices=22, quality=Quality(late=1.0), lease="2h", on_fail="rollback")
    trial.start().until(State.ROLLED_BACK, State.COMPLETED, State.FAILED)
    trial.run(48)
    assert trial.state is State.ROLLED_BACK
    assert trial.running(OLD) == 22


def test_a_device_that_could_not_go_back_is_told_from_those_that_did():
    trial = Trial(devices=22)
    trial.start().until(State.COMPLETED)
    stays = trial.world.devices["d1"]
    refuse, stays.step = stays.step, lambda now, quality: stays.end(Phase.REJECTED, now, "golden")
    commands.roll_back(trial.db, trial.number, reason="too warm")
    trial.until(State.ROLLED_BACK)
    assert "1 device could not go back" in trial.log[-1]["reason"]
    assert "1 could not go back" in str(trial.rollout.status())
    assert (trial.running(OLD), trial.running(NEW)) == (21, 1)
    stays.step = refuse  # an operator has put it right, and asks once more
    commands.roll_back(trial.db, trial.number, reason="repaired")
    trial.run(1).until(State.ROLLED_BACK)
    assert trial.running(OLD) == 22


def test_after_a_restore_what_went_on_since_is_asked_again_or_left_as_it_is():
    for ended in (False, True):
        trial = Trial(devices=22, lease="2h", stages=[Stage(count=20, soak="20h"), Stage(percent=100)])
        trial.start().run(4)
        if ended:
            commands.abort(trial.db, trial.number, reason="enough")
        backup = sqlite3.connect(":memory:")
        raw = trial.db.engine.raw_connection().driver_connection
        raw.backup(backup)
        commands.roll_back(trial.db, trial.number, reason="too warm")
        trial.until(State.ROLLED_BACK)
        backup.backup(raw)
        trial.oracle.forget_stages()
        trial.oracle.single = False
        Publisher(trial.world.shelf, lambda _: ()).notice_restore(trial.db)
        trial.run(48)
        # The rollout that goes on gives them the release again; one that is over wants nothing of them.
        assert trial.running(OLD if ended else NEW) == 22
        rows = list(Devices(trial.db))
        assert all(row["wanted"] == row["running"] for row in rows if row["wanted"])


def test_a_release_that_was_withdrawn_stays_so_after_a_restore():
    trial = Trial(devices=22)
    trial.start()
    backup = sqlite3.connect(":memory:")
    raw = trial.db.engine.raw_connection().driver_connection
    raw.backup(backup)
    commands.quarantine(trial.db, NEW, reason="wrong labels")
    trial.run(1)
    backup.backup(raw)
    # Signed metadata are not in the backup: they know it.
    recall_withdrawn(trial.db, [(NEW, "*"), ("f" * 64, "*")])
    recall_withdrawn(trial.db, [(NEW, "*")])
    trial.run(4)
    assert trial.state is State.ABORTED
    assert trial.running(OLD) == 22
    with trial.db.reading() as connection:
        lines = connection.execute(sa.select(audit.c.reason).where(audit.c.action == "quarantine")).all()
    assert len(lines) == 1


def test_a_restore_gives_no_device_a_withdrawn_release_that_it_has_left():
    trial = Trial(devices=22, stages=[Stage(count=20), Stage(percent=100)])
    trial.start().until(State.COMPLETED)
    backup = sqlite3.connect(":memory:")
    raw = trial.db.engine.raw_connection().driver_connection
    raw.backup(backup)
    commands.roll_back(trial.db, trial.number, reason="wrong labels")
    trial.until(State.ROLLED_BACK)
    backup.backup(raw)
    trial.oracle.withdrawn.add((NEW, "*"))  # from now on no document may name it
    recall_withdrawn(trial.db, [(NEW, "*")])
    Publisher(trial.world.shelf, lambda _: ()).notice_restore(trial.db)
    trial.run(12)
    assert trial.running(OLD) == 22
