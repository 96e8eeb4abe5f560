"""Databases of both kinds."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from edgeinfer.fleet.operator.store.database import Database
from edgeinfer.fleet.operator.store.schema import metadata
from tests.fleet.operator.postgres import server


@pytest.fixture(scope="session")
def postgres():
    yield from server()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """The URL of an empty database."""
    if request.param == "sqlite":
        return str(tmp_path / "fleet.db")
    found = request.getfixturevalue("postgres")
    engine = sa.create_engine(found)
    with engine.begin() as connection:
        metadata.drop_all(connection)
        connection.execute(sa.text("DROP TABLE IF EXISTS alembic_version"))
    engine.dispose()
    return found


@pytest.fixture
def database(url):
    found = Database(url)
    yield found
    found.close()
