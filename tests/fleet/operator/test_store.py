"""The store, on SQLite and on PostgreSQL: reports in any order, two at once, restores, who gets in."""

from __future__ import annotations

import json
import math
import threading
import time

import attrs
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeinfer.fleet.device.histogram import Histogram
from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.operator import commands
from edgeinfer.fleet.operator.controller import Controller
from edgeinfer.fleet.operator.figures import figures_by_model
from edgeinfer.fleet.operator.member import Member
from edgeinfer.fleet.operator.outcomes import Motion, Outcome, is_eligible
from edgeinfer.fleet.operator.publisher import _CHANGED, Publisher
from edgeinfer.fleet.operator.record import State
from edgeinfer.fleet.operator.regression import Regression
from edgeinfer.fleet.operator.simulator.world import MemoryShelf
from edgeinfer.fleet.operator.stages import Stage
from edgeinfer.fleet.operator.store import rollouts as store
from edgeinfer.fleet.operator.store.database import Database, add_to, next_value, value_of
from edgeinfer.fleet.operator.store.ingest import ingest
from edgeinfer.fleet.operator.store.inventory import (
    DeviceRow,
    add_devices,
    list_devices,
    remove_device,
)
from edgeinfer.fleet.operator.store.members import add_members, change_members, load_members
from edgeinfer.fleet.operator.store.overdue import expire
from edgeinfer.fleet.operator.store.retention import Retention
from edgeinfer.fleet.operator.store.schema import audit, cells, figures, members, metadata, report_log
from edgeinfer.fleet.operator.store.steering import _ELIGIBLE
from tests.fleet.operator.store_kit import KEY, NEW, OLD, enroll, report, started


def row_of(database, device="d0"):
    with database.reading() as connection:
        return next(row for row in list_devices(connection) if row["device"] == device)


def test_migrations_make_the_tables_of_the_code(database):
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_round_of_the_publisher_does_not_look_at_all_devices(database):
    if not database.is_sqlite:
        pytest.skip("the plan of PostgreSQL depends on its statistics")
    with database.reading() as connection:
        text = str(_CHANGED.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True}))
        steps = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]
    assert steps == ["SCAN devices USING INDEX devices_changed"]  # that index holds no other devices


def test_opening_twice_at_once_migrates_once(url):
    found: list[object] = []

    def open_it():
        try:
            found.append(Database(url))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(item, Database) for item in found), found
    for item in found:
        item.close()


def test_the_clock_is_the_databases(database):
    with database.transaction() as connection:
        assert abs(database.now(connection) - time.time()) < 5


def test_counters_of_many_threads_lose_nothing(database):
    def work():
        for _ in range(20):
            database.retrying(lambda connection: next_value(connection, "n"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as connection:
        assert value_of(connection, "n") == 80


def test_the_greater_sequence_wins_and_duplicates_are_ignored(database):
    enroll(database)
    second = report(sequence=2, phase=Phase.COMMITTED, digest=NEW)
    assert ingest(database, [second]).applied == 1
    assert ingest(database, [second, report(sequence=1, digest=OLD)]).ignored == 2
    assert row_of(database)["running"] == NEW
    assert row_of(database)["flag"] == ""


def test_a_device_without_a_class_gets_the_one_that_it_found(database):
    add_devices(
        database,
        [DeviceRow(device="d0", key=KEY, incarnation=1), DeviceRow(device="d1", device_class="a", key=KEY)],
    )
    for device in ("d0", "d1"):
        ingest(database, [report(device, facts={"device_class": "orin-nano"})])
    assert row_of(database, "d0")["device_class"] == "orin-nano"
    assert row_of(database, "d1")["device_class"] == "a"


def test_a_second_report_with_one_sequence_is_from_a_clone(database):
    enroll(database)
    ingest(database, [report(sequence=2, digest=NEW)])
    ingest(database, [report(sequence=2, digest=OLD)])
    assert row_of(database)["flag"] == "clone"
    assert row_of(database)["running"] == NEW


def test_a_reflashed_device_counts_from_one_again_and_gets_a_new_document(database):
    number = started(database)
    Controller(database, Publisher(MemoryShelf(), lambda _: ())).tick()
    ingest(database, [report(sequence=7, digest=OLD)])
    shelf = MemoryShelf()
    ingest(database, [report(sequence=1, incarnation=2)])
    Controller(database, Publisher(shelf, lambda _: ())).tick()
    assert row_of(database)["flag"] == "reflashed"
    with database.reading() as connection:
        exposed = load_members(connection, members.c.rollout == number, members.c.exposures > 0)
    if "d0" in {member.device for member in exposed}:
        assert b'"incarnation":2' in shelf.documents["d0"]
    # The old life is not believed any more.
    ingest(database, [report(sequence=99, incarnation=1, digest=NEW)])
    assert row_of(database)["running"] == ""
    assert row_of(database)["flag"] == "clone"


def test_nobody_is_let_in_who_is_not_known(database):
    enroll(database, 3)
    remove_device(database, "d2")
    good = report("d1", digest=NEW)
    found = ingest(
        database,
        [
            b"",
            b"{}",
            b"\xff" * 100,
            b"[" * 100_000,
            report("stranger"),
            report("d0", key=b"x" * 32),
            report("d0").replace(b'"device":"d0"', b'"device":"d1"'),
            report("d2"),
            b" " * (1 << 20),
            good,
        ],
    )
    assert found.applied == 1
    assert sorted(refusal.index for refusal in found.refused) == list(range(9))
    assert all(refusal.reason for refusal in found.refused)
    assert row_of(database, "d1")["running"] == NEW


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_anything_may_be_sent(data):
    database = _shared()
    assert ingest(database, [data, report(sequence=1)]).applied <= 1


_SHARED: list[Database] = []


def _shared() -> Database:
    if not _SHARED:
        _SHARED.append(Database("sqlite://"))
        enroll(_SHARED[0])
    return _SHARED[0]


def test_a_device_that_knows_more_than_the_database_raises_the_epoch(database):
    number = started(database)
    shelf = MemoryShelf()
    controller = Controller(database, Publisher(shelf, lambda _: ()))
    controller.tick()
    device = sorted(shelf.documents)[0]
    ingest(database, [report(device, generation=(1, 9), phase=Phase.COMMITTED, digest=NEW)])
    controller.tick()
    assert b'"generation":[2,1]' in shelf.documents[device]
    with database.reading() as connection:
        (member,) = load_members(connection, members.c.rollout == number, members.c.device == device)
    assert member.forward == (2, 1)
    ingest(database, [report(device, 2, generation=(2, 1), phase=Phase.COMMITTED, digest=NEW)])
    with database.reading() as connection:
        (member,) = load_members(connection, members.c.rollout == number, members.c.device == device)
    assert (member.outcome, member.motion) == (Outcome.SUCCESS, Motion.STILL)


def test_an_impossible_generation_is_not_believed(database):
    enroll(database)
    ingest(database, [report(generation=(10**9, 1))])
    assert row_of(database)["flag"] == "impossible generation"
    with database.reading() as connection:
        assert value_of(connection, "epoch") == 0


def test_sql_and_python_agree_on_who_is_eligible():
    database = Database("sqlite://")
    every = [
        Member(
            rollout=1,
            device=f"{outcome.value}/{motion.value}",
            stage=0,
            rank=0,
            outcome=outcome,
            motion=motion,
        )
        for outcome in Outcome
        for motion in Motion
    ]
    with database.transaction() as connection:
        add_members(connection, every)
        found = {member.device for member in load_members(connection, _ELIGIBLE)}
    assert found == {m.device for m in every if is_eligible(m.outcome, m.motion)}


def test_members_and_cells_change_together(database):
    member = Member(rollout=1, device="d0", stage=0, rank=0)
    with database.transaction() as connection:
        add_members(connection, [member])
        change_members(connection, [(member, attrs.evolve(member, outcome=Outcome.SUCCESS))])
        found = {row.outcome: row.devices for row in connection.execute(sa.select(cells))}
    assert found == {"WAITING": 0, "SUCCESS": 1}


def test_a_shadow_that_disagrees_stops_the_rollout(database):
    number = started(
        database,
        stages=[Stage(count=20, shadow=True, soak="1h"), Stage(percent=100)],
        more=[Regression("agreement", margin=0.02)],
    )
    shelf = MemoryShelf()
    controller = Controller(database, Publisher(shelf, lambda _: ()))
    controller.tick()
    documents = {name: json.loads(data)["signed"]["assignments"][0] for name, data in shelf.documents.items()}
    assert {document["stage"] for document in documents.values()} == {"shadow"}
    found = {}
    for disagreeing in (False, True):  # first what the release before brought, which says nothing of this one
        ingest(
            database,
            [
                report(name, 1 + disagreeing, phase=Phase.COMMITTED, generation=document["generation"],
                       digest=NEW if disagreeing else OLD, metrics={"agreement": 0.9 + 0.001 * n})
                for n, (name, document) in enumerate(documents.items())
            ],
        )  # fmt: skip
        controller.tick()
        found[disagreeing] = commands.get(database, number).state
    assert found[True] is State.FAILED
    with database.reading() as connection:
        assert "Regression(agreement) failed" in store.audit_of(connection, number)[-1]["reason"]


def test_old_lines_go_once_a_day_and_young_ones_stay(database):
    day = 86_400
    with database.transaction() as connection:
        now = database.now(connection)
        connection.execute(sa.insert(report_log), [{"at": now - days * day} for days in (0, 29, 31, 900)])
        connection.execute(
            sa.insert(audit),
            [{"at": now - days * day, "actor": "x", "action": "y", "reason": ""} for days in (0, 700, 800)],
        )
    retention = Retention(database)
    assert (retention.step(), retention.step()) == (3, 0)
    with database.reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(report_log)).scalar_one() == 2
        assert connection.execute(sa.select(sa.func.count()).select_from(audit)).scalar_one() == 2


def test_a_failed_transaction_leaves_nothing(database):
    def work(connection):
        add_to(connection, cells, {(1, 0, "", "", "SUCCESS", "STILL"): {"devices": 1}})
        raise RuntimeError

    with pytest.raises(RuntimeError):
        database.retrying(work)
    with database.reading() as connection:
        assert connection.execute(sa.select(cells)).all() == []


def test_figures_are_read_as_agents_report_them():
    latency = Histogram([10.0] * 99 + [50.0] * 10)
    found = figures_by_model(
        "",
        {
            "defects.latency_ms": latency,
            "defects.requests": 200.0,
            "defects.errors": 0.02,
            "counter.requests": 0.0,
            "counter.errors": 0.0,
            "temperature_c": 61.0,
            "generation": 7.0,
        },
    )
    assert found["defects"]["latency_p99"] == pytest.approx(50, rel=0.02)
    assert found["defects"]["latency_p50"] == pytest.approx(10, rel=0.02)
    assert found["defects"]["errors"] == 0.02
    assert "counter" not in found  # of no requests nothing is known
    assert found[""] == {"temperature_c": 61.0}
    assert figures_by_model("m", {"latency_p99_ms": 5.0, "power_w": math.inf})["m"]["latency_p99"] == 5.0


def test_what_a_device_says_of_itself_counts_for_the_models_that_it_runs(database):
    started(database)
    ingest(database, [report(sequence=1, phase=Phase.COMMITTED, digest=OLD)])
    metrics = {"m.latency_ms": Histogram([10.0]), "temperature_c": 60.0}
    ingest(database, [report(sequence=2, model="", metrics=metrics)])
    # What was measured of a candidate is no figure of what is loaded.
    ingest(database, [report(sequence=3, phase=Phase.STAGED, digest=OLD, metrics={"latency_p99_ms": 99.0})])
    with database.reading() as connection:
        found = {row.metric: (row.release, row.value) for row in connection.execute(sa.select(figures))}
    assert found["temperature_c"] == (OLD, 60.0)
    assert found["latency_p99"] == (OLD, pytest.approx(10.0, rel=0.02))


def test_a_device_that_says_anything_is_not_silent(database):
    number = started(database, stages=[Stage(count=20, timeout="1h"), Stage(percent=100)])
    Controller(database, Publisher(MemoryShelf(), lambda _: ())).tick()
    with database.reading() as connection:
        device = load_members(connection, members.c.rollout == number, members.c.exposures > 0)[0].device
    ingest(database, [report(device, 1, generation=(1, 1), phase=Phase.DOWNLOADING)])
    with database.transaction() as connection:
        connection.execute(sa.update(members).values(heard_at=1))
    ingest(database, [report(device, 2, model="")])
    with database.transaction() as connection:
        record = store.load(connection, number)
        expire(connection, record, database.now(connection))
        (member,) = load_members(connection, members.c.rollout == number, members.c.device == device)
    assert member.outcome is Outcome.ACCEPTED
