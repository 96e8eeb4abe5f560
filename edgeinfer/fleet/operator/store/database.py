"""`Database`: connections, transactions and the clock, alike on SQLite and PostgreSQL."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import StaticPool

from edgeinfer.errors import FleetError
from edgeinfer.fleet.operator.store import schema
from edgeinfer.fleet.operator.store.migrate import migrate

__all__ = [
    "CHUNK",
    "Database",
    "add_to",
    "chunks",
    "dumps",
    "execute_many",
    "next_value",
    "one_of",
    "raise_value",
    "upsert",
    "value_of",
    "values_of",
]

T = TypeVar("T")
CHUNK = 500  # rows a statement: below SQLite's limit of variables
_ATTEMPTS = 5
_BUSY_S = 30


@final
class Database:
    """One database.

    Args:
        url: A path of an SQLite file, or a URL of SQLAlchemy such as `postgresql+psycopg://host/fleet`.
        clock: What time it is (seconds since 1970). None: the database's own clock, so that all controllers
            and servers have one.
    """

    def __init__(self, url: str, *, clock: Callable[[], int] | None = None) -> None:
        self.url = sa.make_url(url if "://" in url else f"sqlite:///{Path(url).absolute()}")
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if not self.is_sqlite and self.url.get_backend_name() != "postgresql":
            raise FleetError(
                "That database is not supported.",
                expected="a path (SQLite) or postgresql+psycopg://…",
                found=self.url.render_as_string(),
            )
        in_memory = self.is_sqlite and self.url.database in (None, "", ":memory:")
        pool: dict[str, Any] = (
            {"poolclass": StaticPool} if in_memory else {"pool_pre_ping": not self.is_sqlite}
        )
        try:
            self.engine = sa.create_engine(self.url, **pool)
            if self.is_sqlite:
                _prepare_sqlite(self.engine)
            migrate(self.engine)
        except (OperationalError, ModuleNotFoundError) as error:
            raise FleetError(
                "The fleet's database cannot be opened.", where=self.url.render_as_string(), found=str(error)
            ) from error
        self._clock = clock

    def now(self, connection: sa.Connection) -> int:
        """Return the time by the database's clock, in seconds since 1970."""
        if self._clock is not None:
            return self._clock()
        text = "strftime('%s', 'now')" if self.is_sqlite else "floor(extract(epoch from clock_timestamp()))"
        return int(connection.execute(sa.text(f"SELECT {text}")).scalar_one())

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Write: all of it or nothing."""
        with self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Read, without keeping writers waiting."""
        with self.engine.connect().execution_options(reading=True) as connection:
            yield connection

    def retrying(self, work: Callable[[sa.Connection], T]) -> T:
        """Do work in a transaction, and again where another one was in the way."""
        for attempt in range(_ATTEMPTS):
            try:
                with self.transaction() as connection:
                    return work(connection)
            except DBAPIError as error:
                if attempt == _ATTEMPTS - 1 or not _passing(error):
                    raise
                time.sleep(0.05 * 2**attempt)
        raise AssertionError("unreachable")

    def locked(self, statement: sa.Select[Any]) -> sa.Select[Any]:
        """Lock the rows that a statement selects until the transaction ends; SQLite has one writer anyway."""
        return statement if self.is_sqlite else statement.with_for_update()

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _prepare_sqlite(engine: sa.Engine) -> None:
    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # SQLAlchemy begins, not the driver
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={_BUSY_S * 1000}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A writer that begins by reading would find at its first write that it may not.
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _passing(error: DBAPIError) -> bool:
    """Whether the same may succeed when tried again: a deadlock, a conflict, a locked file."""
    state = getattr(error.orig, "sqlstate", None)
    return state in ("40001", "40P01") or "locked" in str(error.orig)


def one_of(column: sa.ColumnElement[Any], values: Iterable[str]) -> sa.ColumnElement[bool]:
    """Return the condition that a column has one of a few words that are known beforehand, such as states.

    They stand in the statement's text. SQLAlchemy writes the text of its own `in_` again at each execution,
    which costs as much as the rest.
    """
    return sa.or_(*(column == sa.literal_column(f"'{value}'") for value in values))


@functools.cache
def upsert(dialect: str, table: sa.Table, columns: tuple[str, ...], *, add: bool = False) -> Any:
    """Return the statement that inserts rows, or changes those that are there.

    Args:
        dialect: `sqlite` or `postgresql`.
        table: The table.
        columns: What is changed in a row that is there; none leaves it as it is.
        add: Add to them, rather than replace them.
    """
    insert = (sqlite.insert if dialect == "sqlite" else postgresql.insert)(table)
    if not columns:
        return insert.on_conflict_do_nothing()
    keys = [column.name for column in table.primary_key.columns]
    changed = {
        name: table.c[name] + insert.excluded[name] if add else insert.excluded[name] for name in columns
    }
    return insert.on_conflict_do_update(index_elements=keys, set_=changed)


def execute_many(connection: sa.Connection, statement: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Execute a statement for each of many rows, which all have the same columns.

    The driver gets the values as they are: SQLAlchemy would look at each of them, which takes as long as the
    database takes to write it.
    """
    names = tuple(rows[0])
    text, order = _compiled(connection.dialect, statement, names)
    if order is None:
        connection.exec_driver_sql(text, rows)
    else:
        connection.exec_driver_sql(text, [tuple([row[name] for name in order]) for row in rows])


@functools.lru_cache(maxsize=256)
def _compiled(
    dialect: sa.Dialect, statement: Any, names: tuple[str, ...]
) -> tuple[str, Sequence[str] | None]:
    """Return the text of a statement, and the order of its parameters where they have no names."""
    compiled = statement.compile(dialect=dialect, column_keys=list(names))
    return str(compiled), compiled.positiontup


def add_to(
    connection: sa.Connection, table: sa.Table, rows: Mapping[tuple[Any, ...], Mapping[str, float]]
) -> None:
    """Add to counters, row by row; rows that are not there yet begin at zero.

    Args:
        connection: Within a transaction.
        table: The counters.
        rows: Values of the primary key -> what is added to which columns. All name the same columns.
    """
    if not rows:
        return
    keys = [column.name for column in table.primary_key.columns]
    # In one order everywhere, so that two transactions do not wait for each other.
    values = [{**dict(zip(keys, key, strict=True)), **rows[key]} for key in sorted(rows)]
    columns = tuple(next(iter(rows.values())))
    execute_many(connection, upsert(connection.dialect.name, table, columns, add=True), values)


_VALUE = sa.select(schema.meta.c.value).where(schema.meta.c.name == sa.bindparam("its_name"))

_VALUES = sa.select(schema.meta.c.name, schema.meta.c.value).where(
    sa.or_(*(schema.meta.c.name == sa.bindparam(name) for name in ("first", "second")))
)


@functools.cache
def _raised(dialect: str) -> Any:
    return upsert(dialect, schema.meta, ("value",), add=True).returning(schema.meta.c.value)


def next_value(connection: sa.Connection, name: str, step: int = 1) -> int:
    """Raise a counter of the fleet and return it."""
    raised = connection.execute(_raised(connection.dialect.name), {"name": name, "value": step})
    return int(raised.scalar_one())


def value_of(connection: sa.Connection, name: str) -> int:
    """Return a counter of the fleet; 0 where it was never raised."""
    return int(connection.execute(_VALUE, {"its_name": name}).scalar() or 0)


def values_of(connection: sa.Connection, first: str, second: str) -> tuple[int, int]:
    """Return two counters of the fleet; see `value_of`."""
    found = dict(connection.execute(_VALUES, {"first": first, "second": second}).all())
    return found.get(first, 0), found.get(second, 0)


def raise_value(connection: sa.Connection, name: str, least: int) -> int:
    """Raise a counter of the fleet to at least a value, and return it."""
    now = value_of(connection, name)
    return next_value(connection, name, least - now) if least > now else now


def chunks(items: Iterable[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    """Yield the items in lists of at most `size`."""
    part: list[T] = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def dumps(value: object) -> str:
    """Return JSON in one form."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
