"""What a journal promises, over the file and over its in-memory twin."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedfleet_agent.core import Entry, Lineage
from fedfleet_agent.errors import DiskFull, JournalError
from fedfleet_agent.journal import Contents, Journal, LedgerLine, SqliteJournal
from fedfleet_agent.testing import MemoryJournal
from fedfleet_protocol.ids import NO_BASE, AgentId, Digest, Order, RunId
from fedfleet_protocol.messages import BlobRef, Grant, Notice

RUN, OTHER = RunId("r-" + "0" * 26), RunId("r-" + "1" * 26)
STATE, REPLY = Digest("5" * 64), Digest("6" * 64)
NOTICE = Notice(
    run=RUN,
    n=3,
    agent=AgentId("a-" + "0" * 26),
    order=Order("a" * 64),
    base=NO_BASE,
    payload=Grant(BlobRef(Digest("1" * 64), 5), inline=b"\x00\xff"),
    bundle=Grant(BlobRef(Digest("2" * 64), 9), path="/b", capability="secret"),
    run_config={"lr": 0.1, "rounds": 3, "name": "x", "on": True},
    remaining_s=9.5,
)
ENTRY = Entry(NOTICE)
READY = Entry(NOTICE, BlobRef(REPLY, 7), STATE)
LINEAGE = Lineage(RUN, 3, ((REPLY, STATE), (NO_BASE, None)))


def line(text: str) -> LedgerLine:
    return LedgerLine(1.5, "ready", RUN, 3, text)


Reopen = Callable[[], Journal]


@pytest.fixture(params=["sqlite", "memory"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reopen]:
    """Return what opens the same journal again and again, as one life of the agent after the other does."""
    memory = MemoryJournal()
    opened: list[Journal] = []

    def again() -> Journal:
        for journal in opened:
            journal.close()
        opened.append(memory if request.param == "memory" else SqliteJournal(tmp_path / "j.sqlite", tmp_path / "rest"))
        return opened[-1]

    yield again
    for journal in opened:
        journal.close()


def test_a_new_journal_is_empty(reopen: Reopen) -> None:
    assert reopen().load() == Contents()
    assert reopen().ledger() == []


def test_what_was_saved_is_there_in_the_next_life(reopen: Reopen) -> None:
    reopen().save(ENTRY)
    assert reopen().load() == Contents(ENTRY)
    reopen().save(READY, LINEAGE)
    assert reopen().load() == Contents(READY, (LINEAGE,))


def test_settling_replaces_the_task_and_its_lineage_and_leaves_other_runs_alone(reopen: Reopen) -> None:
    journal = reopen()
    journal.save(ENTRY, Lineage(OTHER, 9))
    journal.save(None, Lineage(RUN, 2))
    journal.save(None, LINEAGE)
    assert reopen().load() == Contents(None, (LINEAGE, Lineage(OTHER, 9)))


def test_forgetting_a_run_keeps_the_others_and_the_task_that_is_named(reopen: Reopen) -> None:
    journal = reopen()
    journal.save(ENTRY, LINEAGE)
    journal.save(ENTRY, Lineage(OTHER, 9))
    journal.forget(OTHER, ENTRY)
    assert reopen().load() == Contents(ENTRY, (LINEAGE,))
    journal = reopen()
    journal.forget(RUN, None)
    journal.forget(RUN, None)
    assert reopen().load() == Contents()


def test_the_ledger_grows_with_the_task(reopen: Reopen) -> None:
    journal = reopen()
    journal.save(READY, None, [line("one"), line("two")])
    journal.save(None, LINEAGE, [line("three")])
    assert [kept.text for kept in reopen().ledger()] == ["one", "two", "three"]
    assert [kept.text for kept in reopen().ledger(newest=2)] == ["two", "three"]


def test_what_a_row_names_must_stay(reopen: Reopen) -> None:
    reopen().save(READY, Lineage(RUN, 2, ((Digest("7" * 64), Digest("8" * 64)), (NO_BASE, None))))
    names = {"1" * 64, "2" * 64, "5" * 64, "6" * 64, "8" * 64}
    assert reopen().load().named == names


# --- the file alone -------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def full(journal: SqliteJournal) -> None:
    """Let the journal's disk be full: SQLite then says what it says on a real one."""
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_is_said_and_changes_nothing(file: Path) -> None:
    journal = SqliteJournal(file)
    journal.save(ENTRY)
    full(journal)
    big = Entry(Notice(run=RUN, payload=Grant(BlobRef(Digest("1" * 64), 1), inline=bytes(200_000))))
    with pytest.raises(DiskFull, match="free some space"):
        journal.save(big, LINEAGE, [line("never")])
    assert journal.load() == Contents(ENTRY)
    assert journal.ledger() == []
    journal.close()


def test_the_reserve_lets_a_task_be_settled_on_a_full_disk(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = file.with_name("reserve")
    journal = SqliteJournal(file, reserve)
    assert reserve.stat().st_blocks * 512 >= 2 << 20
    journal.save(ENTRY)
    attempt = journal._attempt

    def on_a_full_disk(changes: list[tuple[str, tuple[bytes | str, ...]]]) -> None:
        if reserve.exists():
            raise DiskFull("full")
        attempt(changes)

    monkeypatch.setattr(journal, "_attempt", on_a_full_disk)
    with pytest.raises(DiskFull):
        journal.save(ENTRY)  # a task that begins must not take the room that one needs to end
    monkeypatch.setattr(journal, "_replenish", lambda: None)
    journal.save(None, LINEAGE)
    journal.close()
    again = SqliteJournal(file, reserve)
    assert again.load() == Contents(None, (LINEAGE,))
    assert reserve.exists()
    again.close()


def test_only_its_owner_can_read_the_file(file: Path) -> None:
    SqliteJournal(file).close()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_no_journal_is_refused_with_a_remedy(file: Path) -> None:
    file.write_bytes(b"this is not a database, and longer than a header is" * 100)
    with pytest.raises(JournalError, match="move it away"):
        SqliteJournal(file)


def test_a_journal_of_a_newer_agent_is_left_alone(file: Path) -> None:
    SqliteJournal(file).close()
    db = sqlite3.connect(file)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(JournalError, match=r"schema 99.*update it"):
        SqliteJournal(file)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE ledger SET line = (SELECT line FROM ledger WHERE seq = 1) WHERE seq = 2",
        "DELETE FROM ledger WHERE seq = 2",
    ],
)
def test_a_ledger_that_was_tampered_with_is_seen(file: Path, damage: str) -> None:
    journal = SqliteJournal(file)
    journal.save(None, None, [line("one"), line("two"), line("three")])
    journal._db.execute(damage)
    with pytest.raises(JournalError, match="line 2 of the ledger was changed or taken out"):
        journal.ledger()
    journal.close()


KILLED = """
import sys
from pathlib import Path
from fedfleet_agent.core import Lineage
from fedfleet_agent.journal import LedgerLine, SqliteJournal
from fedfleet_protocol.ids import RunId
journal = SqliteJournal(Path(sys.argv[1]))
start = max((lineage.last for lineage in journal.load().lineages), default=0)
for n in range(start + 1, 100_000):
    journal.save(None, Lineage(RunId("r-x"), n), [LedgerLine(0.0, "left", RunId("r-x"), n, str(n))])
    print(n, flush=True)
"""


@pytest.mark.integration
def test_what_was_said_to_be_saved_survives_a_kill(file: Path) -> None:
    said = 0
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(file)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(20):
            said = int(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        said = max(
            [said, *(int(text) for text in child.stdout.read().splitlines(keepends=True) if text.endswith("\n"))]
        )
        child.wait()
        child.stdout.close()
        journal = SqliteJournal(file)
        (lineage,) = journal.load().lineages
        assert lineage.last in (said, said + 1)
        assert [kept.n for kept in journal.ledger(1000)] == list(range(1, lineage.last + 1))
        journal.close()
