"""The store's in-memory twin: for the simulation and for tests that ask about rules, not about databases."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

from fedfleet_coordinator.errors import StoreUnavailable
from fedfleet_coordinator.rows import KINDS, Row

R = TypeVar("R", bound=Row)
_INDEXED = ("run", "n", "digest", "holder", "agent", "state", "order")
_Undo = tuple[type[Row], tuple[Any, ...], Row | None]


class MemoryStore:
    """Rows in dictionaries, with a small index, and an undo log in place of a database's.

    Attributes:
        fail_next: the next commit fails "before" anything is durable, or "after" everything is, as a connection that
            breaks while it commits does.
    """

    def __init__(self) -> None:
        self._rows: dict[type[Row], dict[tuple[Any, ...], Row]] = {kind: {} for kind in KINDS}
        self._index: dict[type[Row], dict[str, dict[Any, dict[tuple[Any, ...], None]]]] = {
            kind: {name: {} for name in _INDEXED if name in kind.__struct_fields__} for kind in KINDS
        }
        self.fail_next: Literal["", "before", "after"] = ""
        self._writer = threading.Lock()
        self._owner = 0

    @contextlib.contextmanager
    def transaction(self) -> Iterator["MemoryTx"]:
        """Begin a transaction; an exception undoes what was written in it."""
        if self._owner == threading.get_ident():
            raise RuntimeError("a transaction of this store is open already in this thread")
        with self._writer:
            self._owner = threading.get_ident()
            tx = MemoryTx(self)
            try:
                yield tx
                self._fail("before")
            except BaseException:
                tx.undo()
                raise
            finally:
                self._owner = 0
            self._fail("after")

    def close(self) -> None:
        """Nothing to let go of."""

    def _fail(self, when: str) -> None:
        if self.fail_next == when:
            self.fail_next = ""
            raise StoreUnavailable("the store in memory was told to fail here; do it again")

    def copy(self) -> "MemoryStore":
        """Return a backup: a store with the same rows."""
        twin = MemoryStore()
        for kind, rows in self._rows.items():
            for row in rows.values():
                twin.set(kind, row.key, row)
        return twin

    def set(self, kind: type[Row], key: tuple[Any, ...], row: Row | None) -> Row | None:
        """Make `row` (or nothing) what is kept under `key`; return what was."""
        rows, index = self._rows[kind], self._index[kind]
        before = rows.pop(key, None)
        if before is not None:
            for name, values in index.items():
                values[getattr(before, name)].pop(key, None)
        if row is not None:
            rows[key] = row
            for name, values in index.items():
                values.setdefault(getattr(row, name), {})[key] = None
        return before

    def rows(self, kind: type[R], equal: dict[str, Any]) -> list[Any]:
        """Return the rows of a kind that may match: those of the most selective index."""
        index, rows = self._index[kind], self._rows[kind]
        best: list[dict[tuple[Any, ...], None]] | None = None
        fewest = len(rows)
        for name in equal.keys() & index.keys():
            value = equal[name]
            found = [index[name].get(one, {}) for one in (value if isinstance(value, tuple) else (value,))]
            count = sum(map(len, found))
            if best is None or count < fewest:
                best, fewest = found, count
        return list(rows.values()) if best is None else [rows[key] for keys in best for key in keys]


class MemoryTx:
    """A transaction over a `MemoryStore`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._log: list[_Undo] = []

    def get(self, kind: type[R], *key: Any) -> R | None:
        """Return the row with that key, or None."""
        row = self._store._rows[kind].get(key)
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
        found: list[R] = [row for row in self._store.rows(kind, equal) if _fits(row, equal, after)]
        found.sort(key=lambda row: row.key)
        for name in reversed(order):
            field = name.lstrip("-")
            found.sort(key=lambda row: getattr(row, field), reverse=name.startswith("-"))
        return found[:limit]

    def put(self, *rows: Row) -> None:
        """Insert the rows, or replace those with the same keys."""
        for row in rows:
            kind = type(row)
            self._log.append((kind, row.key, self._store.set(kind, row.key, row)))

    def delete(self, *rows: Row) -> None:
        """Remove the rows with these keys."""
        for row in rows:
            kind = type(row)
            self._log.append((kind, row.key, self._store.set(kind, row.key, None)))

    def undo(self) -> None:
        """Put everything back as it was."""
        for kind, key, before in reversed(self._log):
            self._store.set(kind, key, before)


def _fits(row: Row, equal: dict[str, Any], after: tuple[str, Any] | None) -> bool:
    for name, value in equal.items():
        found = getattr(row, name)
        if found not in value if isinstance(value, tuple) else found != value:
            return False
    return after is None or getattr(row, after[0]) > after[1]
