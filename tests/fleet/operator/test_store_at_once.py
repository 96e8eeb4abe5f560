"""Several controllers, servers and threads on one database."""

from __future__ import annotations

import threading

import attrs
import sqlalchemy as sa

from edgeinfer.fleet.device.phases import Phase
from edgeinfer.fleet.operator import commands
from edgeinfer.fleet.operator.controller import Controller
from edgeinfer.fleet.operator.publisher import Publisher
from edgeinfer.fleet.operator.record import State
from edgeinfer.fleet.operator.simulator.world import MemoryShelf
from edgeinfer.fleet.operator.stages import Stage
from edgeinfer.fleet.operator.store import rollouts as store
from edgeinfer.fleet.operator.store.database import Database
from edgeinfer.fleet.operator.store.ingest import ingest
from edgeinfer.fleet.operator.store.members import load_members
from edgeinfer.fleet.operator.store.schema import audit, cells, members
from tests.fleet.operator.store_kit import NEW, report, started


def test_two_controllers_at_once_do_nothing_twice(url):
    databases = [Database(url), Database(url)]
    number = started(databases[0], devices=60, stages=[Stage(count=30), Stage(percent=100)])
    shelf = MemoryShelf()
    errors = []

    def work(database):
        try:
            controller = Controller(database, Publisher(shelf, lambda _: ()))
            for _ in range(5):
                controller.tick()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(database,)) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with databases[0].reading() as connection:
        found = load_members(connection, members.c.rollout == number)
        exposures = connection.execute(sa.select(audit.c.reason).where(audit.c.action == "expose")).all()
    assert sum(member.exposures for member in found) == 30 == len(shelf.documents)
    assert len(exposures) == 1
    for database in databases:
        database.close()


def test_an_action_on_an_old_version_does_nothing(database):
    number = started(database)
    with database.transaction() as connection:
        record = store.load(connection, number)
    commands.pause(database, number)
    with database.transaction() as connection:
        assert not store.apply(connection, record, (), 0)
        assert not store.save(connection, record, attrs.evolve(record, state=State.ABORTED))
    assert commands.get(database, number).state is State.PAUSED


def test_reports_and_controllers_at_once_keep_the_tallies(url):
    databases = [Database(url) for _ in range(3)]
    number = started(databases[0], devices=60, stages=[Stage(count=30), Stage(percent=100)])
    shelf = MemoryShelf()
    errors = []
    stop = threading.Event()

    def control():
        try:
            while not stop.is_set():
                Controller(databases[0], Publisher(shelf, lambda _: ())).tick()
        except Exception as error:
            errors.append(error)

    def tell(database, offset):
        try:
            for sequence, phase in enumerate((Phase.ACCEPTED, Phase.SOAKING, Phase.COMMITTED), 1):
                ingest(database, [report(f"d{n}", sequence, phase=phase, generation=(1, 1), digest=NEW)
                                  for n in range(offset, 60, 2)])  # fmt: skip
        except Exception as error:
            errors.append(error)

    controller = threading.Thread(target=control)
    tellers = [threading.Thread(target=tell, args=(databases[n + 1], n)) for n in range(2)]
    controller.start()
    for thread in tellers:
        thread.start()
    for thread in tellers:
        thread.join()
    stop.set()
    controller.join()
    assert not errors
    with databases[0].reading() as connection:
        keys = [members.c[name] for name in ("rollout", "stage", "device_class", "site", "outcome", "motion")]
        counted = {
            tuple(row[:-1]): row[-1]
            for row in connection.execute(sa.select(*keys, sa.func.count()).group_by(*keys))
        }
        kept = {
            tuple(row[:-1]): row[-1]
            for row in connection.execute(sa.select(cells).where(cells.c.devices != 0))
        }
        assert counted == kept
        assert store.load(connection, number) is not None
    for database in databases:
        database.close()
