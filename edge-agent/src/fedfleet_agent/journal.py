"""What must outlive a crash: the task at hand, what is kept of each run, and the owner's ledger. SQLite, in one file.

A change is one transaction and durable when the call returns (write-ahead log, fsync at every commit). Files that a row
names are made durable before the row; files that no row names are garbage. A reserve of disk space is given back to
the file system when the disk is full, so that a task can still be settled on a full disk.

The ledger says what concerns the owner: whose code was let in, which tasks were declined, which replies were let out
and what became of them. Each line carries the digest of the line before, so a line that was changed or taken out from
among those that are read is seen. Lines cut off at the end are not: nobody else holds the newest digest.
"""

import hashlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from fedfleet_agent.core import Entry, Lineage
from fedfleet_agent.errors import DiskFull, JournalError
from fedfleet_protocol.ids import Digest, RunId

SCHEMA: Final = 1
RESERVE_BYTES: Final = 2 << 20
_GENESIS: Final = hashlib.sha256(b"fedfleet ledger 1\n").hexdigest()
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS task (one INTEGER PRIMARY KEY CHECK (one = 1), entry BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS lineage (run TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ledger (seq INTEGER PRIMARY KEY, line BLOB NOT NULL, chain TEXT NOT NULL);
"""

_Change = tuple[str, tuple[bytes | str, ...]]
"""A statement and its values."""


class LedgerLine(msgspec.Struct, frozen=True):
    """Something that concerns the device's owner.

    Attributes:
        at: seconds since the epoch.
        what: "trusted", the task's code may run here; "declined"; "ready", the egress policy lets the reply out;
            "accepted", the coordinator took it; "discarded", it did not.
        run, n: of which task.
        text: what happened, for a person.
    """

    at: float
    what: str
    run: RunId
    n: int
    text: str


class Contents(msgspec.Struct, frozen=True):
    """What a journal holds."""

    entry: Entry | None = None
    lineages: tuple[Lineage, ...] = ()

    @property
    def named(self) -> frozenset[Digest]:
        """The digests of all files that must stay: payload, bundle, reply and states."""
        digests = {state for lineage in self.lineages for _, state in lineage.kept if state}
        if self.entry is not None:
            digests |= {self.entry.notice.payload.blob.digest, self.entry.notice.bundle.blob.digest}
            digests |= {self.entry.reply.digest} if self.entry.reply else set()
            digests |= {self.entry.state} if self.entry.state else set()
        return frozenset(digests)


class Journal(Protocol):
    """Where the agent writes down what it must not forget."""

    def load(self) -> Contents:
        """Return what was saved last.

        Raises:
            JournalError: it cannot be read.
        """
        ...

    def save(self, entry: Entry | None, lineage: Lineage | None = None, ledger: Sequence[LedgerLine] = ()) -> None:
        """Make the task at hand `entry`, replace the lineage of its run, add to the ledger: all durably, or nothing.

        Raises:
            DiskFull: there is no room; nothing was changed.
            JournalError: it cannot be written; nothing was changed.
        """
        ...

    def forget(self, run: RunId, entry: Entry | None) -> None:
        """Make the task at hand `entry` and remove the lineage of `run`: durably, or nothing. Raises as `save`."""
        ...

    def ledger(self, newest: int = 100) -> list[LedgerLine]:
        """Return the newest lines of the ledger, oldest first.

        Raises:
            JournalError: a line was changed or taken out.
        """
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class SqliteJournal:
    """A journal in a file of its own.

    Args:
        file: is made if there is none, readable for its owner only: grants in it are secrets.
        reserve: a file of `RESERVE_BYTES` that is given up when the disk is full.

    Raises:
        JournalError: the file is no journal of ours, or was written by a newer fedfleet.
    """

    def __init__(self, file: Path, reserve: Path | None = None) -> None:
        self.file = file
        self._reserve = reserve
        self._chain = _GENESIS
        try:
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(file, isolation_level=None, check_same_thread=True)
        except (OSError, sqlite3.Error) as error:
            raise JournalError(f"the journal {file} cannot be opened: {error}") from error
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise
        self._replenish()

    def load(self) -> Contents:
        """See `Journal`."""
        try:
            row = self._db.execute("SELECT entry FROM task").fetchone()
            rows = self._db.execute("SELECT value FROM lineage ORDER BY run").fetchall()
            entry = msgspec.msgpack.decode(row[0], type=Entry) if row else None
            return Contents(entry, tuple(msgspec.msgpack.decode(value, type=Lineage) for (value,) in rows))
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise self._damaged(error) from error

    def save(self, entry: Entry | None, lineage: Lineage | None = None, ledger: Sequence[LedgerLine] = ()) -> None:
        """See `Journal`."""
        changes = [self._task(entry)]
        if lineage is not None:
            changes.append(
                ("INSERT OR REPLACE INTO lineage VALUES (?, ?)", (lineage.run, msgspec.msgpack.encode(lineage)))
            )
        settles = entry is None or entry.reply is not None
        self._commit(changes, ledger, last_room=settles)

    def forget(self, run: RunId, entry: Entry | None) -> None:
        """See `Journal`."""
        self._commit([self._task(entry), ("DELETE FROM lineage WHERE run = ?", (run,))], (), last_room=True)

    def ledger(self, newest: int = 100) -> list[LedgerLine]:
        """See `Journal`."""
        try:
            rows = self._db.execute(
                "SELECT seq, line, chain FROM ledger ORDER BY seq DESC LIMIT ?", (newest + 1,)
            ).fetchall()
            rows.reverse()
            return _checked(rows)[-newest:]
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise self._damaged(error) from error

    def close(self) -> None:
        """See `Journal`."""
        self._db.close()

    def _prepare(self) -> None:
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA cache_size = -256")
            self._db.execute("PRAGMA wal_autocheckpoint = 64")
            self._db.execute("PRAGMA journal_size_limit = 524288")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA:
                raise JournalError(
                    f"the journal {self.file} has schema {version}, this fedfleet-agent knows {SCHEMA}: update it"
                )
            if version < SCHEMA:
                self._db.executescript(f"BEGIN;{_TABLES}PRAGMA user_version = {SCHEMA};COMMIT;")
            row = self._db.execute("SELECT chain FROM ledger ORDER BY seq DESC LIMIT 1").fetchone()
            self._chain = row[0] if row else _GENESIS
        except sqlite3.Error as error:
            raise self._trouble(error) from error

    def _task(self, entry: Entry | None) -> _Change:
        if entry is None:
            return "DELETE FROM task", ()
        return "INSERT OR REPLACE INTO task VALUES (1, ?)", (msgspec.msgpack.encode(entry),)

    def _commit(self, changes: list[_Change], ledger: Sequence[LedgerLine], *, last_room: bool) -> None:
        """Do it all or nothing; what brings a task to its end may use the last room there is, what begins one not."""
        chain = self._chain
        for line in ledger:
            encoded = msgspec.msgpack.encode(line)
            chain = _next(chain, encoded)
            changes.append(("INSERT INTO ledger (line, chain) VALUES (?, ?)", (encoded, chain)))
        try:
            self._attempt(changes)
        except DiskFull:
            if not last_room or not self._give_up_reserve():
                raise
            self._attempt(changes)
        self._chain = chain
        self._replenish()

    def _attempt(self, changes: list[_Change]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for statement, values in changes:
                self._db.execute(statement, values)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise self._trouble(error) from error

    def _replenish(self) -> None:
        """Set space aside (again), if there is any; a device that has none works on without."""
        if self._reserve is None or self._reserve.exists():
            return
        try:
            with self._reserve.open("wb") as stream:
                os.posix_fallocate(stream.fileno(), 0, RESERVE_BYTES)
        except OSError:
            self._reserve.unlink(missing_ok=True)

    def _give_up_reserve(self) -> bool:
        if self._reserve is None or not self._reserve.exists():
            return False
        self._reserve.unlink()
        return True

    def _trouble(self, error: sqlite3.Error) -> JournalError:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return DiskFull(f"no room left for the journal {self.file}; free some space on its disk")
        if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return self._damaged(error)
        return JournalError(f"the journal {self.file} cannot be written: {error}")

    def _damaged(self, error: Exception) -> JournalError:
        return JournalError(
            f"the journal {self.file} is damaged ({error}); move it away and start again: the hub gives the open tasks "
            "anew, and a task whose app state was lost is declined"
        )


def _next(chain: str, line: bytes) -> str:
    return hashlib.sha256(chain.encode() + line).hexdigest()


def _checked(rows: list[tuple[int, bytes, str]]) -> list[LedgerLine]:
    """Return the lines of consecutive rows of the ledger, the digests followed from the first to the last."""
    chain, expected = (_GENESIS, 1) if not rows or rows[0][0] == 1 else ("", rows[0][0])
    lines = []
    for seq, encoded, digest in rows:
        if seq != expected or (chain and _next(chain, encoded) != digest):
            raise JournalError(f"line {expected} of the ledger was changed or taken out")
        chain, expected = digest, seq + 1
        lines.append(msgspec.msgpack.decode(encoded, type=LedgerLine))
    return lines
