"""The store over SQLAlchemy Core: SQLite in WAL mode by default, PostgreSQL by URL.

A transaction keeps what it has read and written in memory and writes
it in bulk before a search of the same kind and at the commit, so a batch of a few hundred transitions costs a few
statements. Writers are serialised: SQLite by `BEGIN IMMEDIATE`, PostgreSQL by an advisory lock, so what is read in a
transaction cannot change before it ends. A transaction that wrote nothing costs no sync.
"""

import contextlib
import stat
import threading
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from fedfleet_coordinator.errors import Misconfigured, StoreUnavailable
from fedfleet_coordinator.rows import KINDS, Blob, Row
from fedfleet_coordinator.store.tables import SHAPES, Shape

R = TypeVar("R", bound=Row)
_WRITER_LOCK = 0x66656466  # "fedf": any number that nobody else locks
_WAIT_S = 10.0
_MAX_VALUES = 500
"""Databases bound the parameters of a statement: a longer tuple to look for is split."""


class SqlStore:
    """Rows in a database.

    Args:
        url: as SQLAlchemy spells it, e.g. `sqlite:////var/lib/fedfleet/hub.sqlite` or `postgresql+psycopg://...`.
    """

    def __init__(self, url: str) -> None:
        self._url = _parsed(url)
        self.lite = self._url.get_backend_name() == "sqlite"
        self.name = self._url.render_as_string(hide_password=True)
        self._here = threading.local()
        if self.lite:
            self._make_file(Path(str(self._url.database)))
        # PostgreSQL waits for locks as long as it takes unless told not to; so does connecting to a host that is gone.
        arguments: dict[str, Any] = (
            {"timeout": _WAIT_S, "check_same_thread": False} if self.lite else {"connect_timeout": round(_WAIT_S)}
        )
        try:
            self.engine = sa.create_engine(self._url, connect_args=arguments, pool_pre_ping=not self.lite)
        except ModuleNotFoundError as error:
            raise Misconfigured(
                f"the driver of {self.name} is missing: pip install 'fedfleet-coordinator[postgres]'"
            ) from error
        if self.lite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)

    def migrate(self) -> None:
        """Bring the schema to this version's.

        Raises:
            Misconfigured: a newer fedfleet wrote this database. StoreUnavailable: it cannot be reached.
        """
        from fedfleet_coordinator.store.migrations import upgrade

        with self._connection() as connection:
            upgrade(connection, self.name)

    @contextlib.contextmanager
    def transaction(self) -> Iterator["SqlTx"]:
        """Begin a transaction; as the port says.

        Raises:
            StoreUnavailable: nothing was changed, unless the connection broke in the middle of the commit: then do
                the same again, transitions bear it.
            RuntimeError: this thread has a transaction open already; it would wait for itself.
        """
        with self._connection() as connection:
            tx = SqlTx(connection, postgres=not self.lite)
            yield tx
            tx.flush()

    def close(self) -> None:
        """Let go of the database."""
        self.engine.dispose()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sa.Connection]:
        """Begin as the only writer; commit at the end, roll back after an exception."""
        if getattr(self._here, "busy", False):
            raise RuntimeError("a transaction of this store is open already in this thread")
        self._here.busy = True
        try:
            with self._translated(), self.engine.connect() as connection:
                try:
                    self._begin(connection)
                    yield connection
                    connection.commit()
                except BaseException:
                    connection.rollback()
                    raise
        finally:
            self._here.busy = False

    def _begin(self, connection: sa.Connection) -> None:
        if self.lite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            return
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(_WAIT_S * 1000)}")
        connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITER_LOCK)))

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.IntegrityError, sa.exc.ProgrammingError, sa.exc.DataError):
            raise  # a bug of ours, and no weather
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            raise StoreUnavailable(f"the database {self.name} cannot be used now: {_why(error)}") from error

    def _make_file(self, path: Path) -> None:
        """Make the file, for its owner only; SQLite gives its companions (-wal, -shm) the same mode."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                path.chmod(0o600)
        except OSError as error:
            raise StoreUnavailable(
                f"the database {path} cannot be made: {error.strerror}; see that its folder is writable and has room"
            ) from error


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
            found = self._connection.execute(_get_statement(kind), shape.key(key)).first()
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
        for name, value in equal.items():
            if isinstance(value, tuple) and len(value) > _MAX_VALUES:
                return self._find_in_parts(kind, name, order=order, after=after, limit=limit, **equal)
        query = sa.select(table).where(*(_equals(shape, name, value) for name, value in equal.items()))
        if after is not None:
            query = query.where(table.c[after[0]] > shape.column(*after))
        wanted = [table.c[n.lstrip("-")].desc() if n.startswith("-") else table.c[n] for n in order]
        query = query.order_by(*wanted, *shape.primary)
        found: list[R] = []
        for record in self._connection.execute(query if limit is None else query.limit(limit)):
            row = shape.row(record)
            if kind is not Blob:  # blobs carry up to 64 KiB each: a search through all must not keep them all
                self._seen[kind][row.key] = row
            found.append(typing.cast(R, row))
        return found

    def _find_in_parts(self, kind: type[R], name: str, *, limit: int | None, **rest: Any) -> list[R]:
        values, order = tuple(dict.fromkeys(rest.pop(name))), rest["order"]
        found: list[R] = []
        for start in range(0, len(values), _MAX_VALUES):
            found += self.find(kind, limit=limit, **{name: values[start : start + _MAX_VALUES]}, **rest)
        found.sort(key=lambda row: row.key)
        for field in reversed(order):
            found.sort(key=lambda row: getattr(row, field.lstrip("-")), reverse=field.startswith("-"))
        return found[:limit]

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
        puts = [shape.columns(row) for key in dirty if (row := seen[key]) is not None]
        gone = [shape.key(key) for key in dirty if seen[key] is None]
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
            *(c == sa.bindparam(n) for n, c in zip(kind.KEY, shape.primary, strict=True))
        )
    return _gets[kind]


def _delete_statement(kind: type[Row]) -> Any:
    if kind not in _deletes:
        shape = SHAPES[kind]
        wanted = (c == sa.bindparam(f"k_{n}") for n, c in zip(kind.KEY, shape.primary, strict=True))
        _deletes[kind] = sa.delete(shape.table).where(*wanted)
    return _deletes[kind]


def _equals(shape: Shape, name: str, value: Any) -> sa.ColumnElement[bool]:
    column: sa.ColumnElement[Any] = shape.table.c[name]
    if not isinstance(value, tuple):
        return column.is_(None) if value is None else column == shape.column(name, value)
    some = column.in_([shape.column(name, one) for one in value if one is not None])
    return sa.or_(some, column.is_(None)) if None in value else some


def _parsed(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise Misconfigured(
            "the database URL cannot be read; write sqlite:////<path of a file> or postgresql://<user>@<host>/<database>"
        ) from error
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed
    raise Misconfigured(
        f"the database URL begins with {parsed.drivername!r}; use sqlite:////<path of a file> or "
        "postgresql://<user>@<host>/<database>"
    )


def _why(error: Exception) -> str:
    """Return what the driver says, and what to do."""
    text = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
    if "locked" in text or "lock timeout" in text:
        return f"{text}; another process has held it for {_WAIT_S:g} s: see that only one coordinator uses it"
    if "full" in text or "No space" in text:
        return f"{text}; free some space on its disk, the coordinator goes on by itself"
    if "malformed" in text or "not a database" in text:
        return f"{text}; the file is damaged: restore it from a backup"
    return f"{text}; see that the database runs and that the coordinator may write to it"


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN IMMEDIATE ourselves
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        f"busy_timeout = {round(_WAIT_S * 1000)}",
        "cache_size = -16000",
    ):
        connection.execute(f"PRAGMA {pragma}")
