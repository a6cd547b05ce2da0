"""The store over SQLAlchemy Core: SQLite in WAL mode by default, PostgreSQL by URL.

One table per row struct, made from its fields. A transaction keeps what it has read and written in memory and writes
it in bulk before a search of the same kind and at the commit, so a batch of a few hundred transitions costs a few
statements. Writers are serialised: SQLite by `BEGIN IMMEDIATE`, PostgreSQL by an advisory lock, so what is read in a
transaction cannot change before it ends. A transaction that wrote nothing costs no sync.
"""

import contextlib
import os
import stat
import types
import typing
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from fedfleet_coordinator.errors import Misconfigured, StoreUnavailable
from fedfleet_coordinator.rows import KINDS, Row

R = TypeVar("R", bound=Row)
_WRITER_LOCK = 0x66656466  # "fedf": any number that nobody else locks
_INDEXES: dict[str, tuple[tuple[str, ...], ...]] = {
    "task": (("run", "agent", "state"), ("agent", "state"), ("run", "n", "state")),
    "exchange": (("state",), ("run", "state")),
    "ref": (("holder",), ("run", "n")),
    "blob": (("stored_at",),),
    "agent": (("token",), ("state",)),
    "run": (("state",),),
}
METADATA = sa.MetaData()


def _column(name: str, kind: Any, key: tuple[str, ...]) -> sa.Column[Any]:
    options = [part for part in typing.get_args(kind) if part is not types.NoneType] or [kind]
    nullable = types.NoneType in typing.get_args(kind)
    base = options[0] if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union else kind
    base = getattr(base, "__supertype__", base)
    column: Any = sa.JSON
    if typing.get_origin(base) is typing.Literal or (isinstance(base, type) and issubclass(base, str)):
        column = sa.Text
    elif base is bytes:
        column = sa.LargeBinary
    elif base is bool:
        column = sa.Boolean
    elif base is int:
        column = sa.BigInteger
    elif base is float:
        column = sa.Double
    if column is sa.JSON:
        column = sa.Text
    return sa.Column(name, column, primary_key=name in key, nullable=nullable, autoincrement=False)


class _Shape:
    """How one kind of row lies in its table."""

    def __init__(self, kind: type[Row]) -> None:
        self.kind = kind
        hints = typing.get_type_hints(kind)
        self.names = kind.__struct_fields__
        name = kind.__name__.lower()
        self.table = sa.Table(name, METADATA, *(_column(n, hints[n], kind.KEY) for n in self.names))
        for columns in _INDEXES.get(name, ()):
            sa.Index(f"ix_{name}_{'_'.join(columns)}", *(self.table.c[c] for c in columns))
        self.key = tuple(self.table.c[n] for n in kind.KEY)
        self.as_json = frozenset(n for n in self.names if _is_json(hints[n]))
        self.hints = hints

    def values(self, row: Row) -> dict[str, Any]:
        """Return the row as values of its columns."""
        found = {}
        for name in self.names:
            value = getattr(row, name)
            if name in self.as_json:
                value = msgspec.json.encode(value).decode()
            found[name] = value.value if isinstance(value, StrEnum) else value
        return found

    def row(self, record: Any) -> Row:
        """Return the row of a record."""
        values: dict[str, Any] = {}
        for name, value in zip(self.names, record, strict=True):
            if name in self.as_json:
                value = msgspec.json.decode(value, type=self.hints[name])
            elif isinstance(self.hints[name], type) and issubclass(self.hints[name], StrEnum):
                value = self.hints[name](value)
            elif isinstance(value, memoryview):
                value = bytes(value)
            values[name] = value
        return self.kind(**values)


def _is_json(kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    return kind is Any or origin in (dict, tuple, list)


SHAPES = {kind: _Shape(kind) for kind in KINDS}


class SqlStore:
    """Rows in a database.

    Args:
        url: as SQLAlchemy spells it, e.g. `sqlite:////var/lib/fedfleet/hub.sqlite` or `postgresql+psycopg://...`.
    """

    def __init__(self, url: str) -> None:
        self._url = sa.engine.make_url(url)
        self.lite = self._url.get_backend_name() == "sqlite"
        if self.lite and self._url.database:
            path = Path(self._url.database)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                os.chmod(path, 0o600)
        arguments: dict[str, Any] = {"timeout": 10.0, "check_same_thread": False} if self.lite else {}
        try:
            self.engine = sa.create_engine(self._url, connect_args=arguments, pool_pre_ping=not self.lite)
        except (sa.exc.ArgumentError, ModuleNotFoundError) as error:
            raise Misconfigured(f"the database URL cannot be used: {error}") from error
        if self.lite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)

    def migrate(self) -> None:
        """Bring the schema to this version's.

        Raises:
            Misconfigured: a newer fedfleet wrote this database. StoreUnavailable: it cannot be reached.
        """
        from fedfleet_coordinator.store.migrations import upgrade

        with _translated():
            upgrade(self.engine)

    @contextlib.contextmanager
    def transaction(self) -> Iterator["SqlTx"]:
        """Begin a transaction; as the port says."""
        with _translated(), self.engine.connect() as connection:
            if self.lite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITER_LOCK)))
            tx = SqlTx(connection, postgres=not self.lite)
            try:
                yield tx
                tx.flush()
                connection.commit()
            except BaseException:
                connection.rollback()
                raise

    def close(self) -> None:
        """Let go of the database."""
        self.engine.dispose()


class SqlTx:
    """A transaction over a `SqlStore`."""

    def __init__(self, connection: sa.Connection, *, postgres: bool) -> None:
        self._connection = connection
        self._dialect: Any = postgresql if postgres else sqlite
        self._seen: dict[type[Row], dict[tuple[Any, ...], Row | None]] = {kind: {} for kind in KINDS}
        self._dirty: dict[type[Row], dict[tuple[Any, ...], None]] = {kind: {} for kind in KINDS}

    def get(self, kind: type[R], *key: Any) -> R | None:
        """Return the row with that key, or None."""
        seen = self._seen[kind]
        if key not in seen:
            shape = SHAPES[kind]
            found = self._connection.execute(_get_statement(kind), dict(zip(kind.KEY, key, strict=True))).first()
            seen[key] = None if found is None else shape.row(found)
        row = seen[key]
        return row if isinstance(row, kind) else None

    def find(
        self,
        kind: type[R],
        *,
        order: tuple[str, ...] = (),
        after: tuple[str, Any] | None = None,
        limit: int | None = None,
        **equal: Any,
    ) -> list[R]:
        """Return the rows whose fields equal those given, as the port says."""
        self._flush_kind(kind)
        shape, table = SHAPES[kind], SHAPES[kind].table
        query = sa.select(table)
        for name, value in equal.items():
            column = table.c[name]
            many = isinstance(value, tuple)
            query = query.where(column.in_([_plain(v) for v in value]) if many else column == _plain(value))
        if after is not None:
            query = query.where(table.c[after[0]] > after[1])
        wanted = [table.c[n.lstrip("-")].desc() if n.startswith("-") else table.c[n] for n in order]
        query = query.order_by(*wanted, *shape.key)
        found: list[R] = []
        for record in self._connection.execute(query if limit is None else query.limit(limit)):
            row = shape.row(record)
            self._seen[kind][row.key] = row
            found.append(typing.cast(R, row))
        return found

    def put(self, *rows: Row) -> None:
        """Insert the rows, or replace those with the same keys."""
        for row in rows:
            self._seen[type(row)][row.key] = row
            self._dirty[type(row)][row.key] = None

    def delete(self, *rows: Row) -> None:
        """Remove the rows with these keys."""
        for row in rows:
            self._seen[type(row)][row.key] = None
            self._dirty[type(row)][row.key] = None

    def flush(self) -> None:
        """Write everything that was put or deleted."""
        for kind in KINDS:
            self._flush_kind(kind)

    def _flush_kind(self, kind: type[Row]) -> None:
        dirty, seen, shape = self._dirty[kind], self._seen[kind], SHAPES[kind]
        if not dirty:
            return
        puts = [shape.values(row) for key in dirty if (row := seen[key]) is not None]
        gone = [dict(zip(kind.KEY, key, strict=True)) for key in dirty if seen[key] is None]
        if gone:
            self._connection.execute(_delete_statement(kind), [{f"k_{n}": v for n, v in key.items()} for key in gone])
        if puts:
            statement = self._dialect.insert(shape.table)
            changed = {n: statement.excluded[n] for n in shape.names if n not in kind.KEY}
            if changed:
                statement = statement.on_conflict_do_update(index_elements=list(kind.KEY), set_=changed)
            else:
                statement = statement.on_conflict_do_nothing()
            self._connection.execute(statement, puts)
        dirty.clear()


_gets: dict[type[Row], Any] = {}
_deletes: dict[type[Row], Any] = {}


def _get_statement(kind: type[Row]) -> Any:
    if kind not in _gets:
        shape = SHAPES[kind]
        _gets[kind] = sa.select(shape.table).where(
            *(c == sa.bindparam(n) for n, c in zip(kind.KEY, shape.key, strict=True))
        )
    return _gets[kind]


def _delete_statement(kind: type[Row]) -> Any:
    if kind not in _deletes:
        shape = SHAPES[kind]
        wanted = (c == sa.bindparam(f"k_{n}") for n, c in zip(kind.KEY, shape.key, strict=True))
        _deletes[kind] = sa.delete(shape.table).where(*wanted)
    return _deletes[kind]


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, StrEnum) else value


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN IMMEDIATE ourselves
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 10000", "cache_size = -16000"):
        connection.execute(f"PRAGMA {pragma}")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.InternalError) as error:
        raise StoreUnavailable(f"the database cannot be used now: {error.orig}") from error
