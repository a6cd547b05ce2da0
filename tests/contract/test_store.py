"""What a store promises, over its in-memory twin, SQLite and PostgreSQL."""

import math
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from fedfleet_coordinator.errors import Misconfigured, StoreUnavailable
from fedfleet_coordinator.rows import KINDS, Agent, Blob, Exchange, GridAnswer, LogLine, Metrics, Ref, Run, Task, UpTime
from fedfleet_coordinator.store.memory import MemoryStore
from fedfleet_coordinator.store.port import Store, Tx
from fedfleet_coordinator.store.sql import SqlStore
from fedfleet_coordinator.store.tables import METADATA
from fedfleet_protocol.exchange import TaskState
from fedfleet_protocol.ids import AgentId, Digest, RunId

RUN = RunId("r-" + "0" * 26)


def _postgres_programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[str]:
    """A private PostgreSQL on a Unix socket; yields the start of its URLs' query."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed: apt-get install postgresql")
    as_user: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="fedfleet-pg-"))
    if os.geteuid() == 0:  # the server refuses to run as root
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            folder.rmdir()
            pytest.skip("there is no user postgres to run the server as: apt-get install postgresql")
        os.chown(folder, account.pw_uid, account.pw_gid)
        as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    def run(*command: str | Path) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **as_user)

    data = folder / "data"
    run(programs / "initdb", "-D", data, "-A", "trust", "-U", "hub", "--no-sync")
    options = f"-c listen_addresses='' -k {folder}"
    control = (programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log")
    run(*control, "-o", options, "start")
    try:
        yield f"host={folder}"
    finally:
        run(*control, "-m", "immediate", "stop")
        shutil.rmtree(folder)


def postgres_url(query: str) -> str:
    """Return the URL of a fresh database."""
    name = f"test{time.monotonic_ns()}"
    admin = sa.create_engine(f"postgresql+psycopg://hub@/postgres?{query}", isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    admin.dispose()
    return f"postgresql://hub@/{name}?{query}"


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgres", marks=pytest.mark.integration)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store
    if request.param == "memory":
        made = MemoryStore()
    else:
        url = f"sqlite:///{tmp_path / 'hub.sqlite'}"
        if request.param == "postgres":
            url = postgres_url(request.getfixturevalue("postgres_server"))
        made = SqlStore(url)
        made.migrate()
    yield made
    made.close()


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[SqlStore]:
    made = SqlStore(f"sqlite:///{tmp_path / 'hub.sqlite'}")
    made.migrate()
    yield made
    made.close()


def task(n: int, agent: str, **rest: Any) -> Task:
    return Task(run=RUN, n=n, agent=AgentId(agent), **rest)


def test_what_is_committed_is_there_afterwards(store: Store) -> None:
    row = task(1, "a", state=TaskState.ACCEPTED, reply=Digest("d"), published_wall=1.25)
    with store.transaction() as tx:
        tx.put(row)
    with store.transaction() as tx:
        assert tx.get(Task, RUN, 1, "a") == row
        assert tx.get(Task, RUN, 1, "b") is None


def test_every_kind_of_row_comes_back_as_it_was_put(store: Store) -> None:
    text = {
        "run": RUN,
        "agent": "a",
        "digest": "d",
        "holder": "h",
        "kind": "k",
        "source": "s",
        "line": "l",
        "hashed": "x",
    }
    numbers = {"n": 1, "k": 2, "seq": 3, "server_round": 4, "size": 2**40}
    filled = {**text, **numbers, "value": None, "name": "hub"}
    rows = [kind(**{f.name: filled[f.name] for f in msgspec.structs.fields(kind) if f.required}) for kind in KINDS]
    with store.transaction() as tx:
        tx.put(*rows)
    with store.transaction() as tx:
        assert [tx.get(type(row), *row.key) for row in rows] == rows
        assert [tx.find(type(row)) for row in rows] == [[row] for row in rows]


def test_structured_fields_come_back_with_their_types(store: Store) -> None:
    run = Run(
        run=RUN, config={"lr": 0.1, "rounds": 3, "on": True, "name": "ü"}, selector={"site": "a"}, gate={"x": [1, None]}
    )
    agent = Agent(agent=AgentId("a"), serials=("1", "2"), labels={"site": "b"}, public_key=b"\0\xff", online=True)
    blob = Blob(digest=Digest("d"), size=3, inline=b"\0\1\xff")
    with store.transaction() as tx:
        tx.put(run, agent, blob, GridAnswer(run=RUN, k=1, kind="nodes", value=["a", 2, 1.5, None]))
    with store.transaction() as tx:
        assert tx.get(Run, RUN) == run
        assert tx.get(Agent, "a") == agent
        assert tx.get(Blob, "d") == blob
        answer = tx.get(GridAnswer, RUN, 1)
        assert answer is not None and answer.value == ["a", 2, 1.5, None]


def test_a_number_that_is_none_does_not_spoil_its_row(store: Store) -> None:
    # A diverging loss is NaN, and a researcher's config may be: JSON would make null of it, and the row unreadable.
    with store.transaction() as tx:
        tx.put(Run(run=RUN, config={"lr": math.nan, "clip": math.inf}))
        tx.put(Metrics(run=RUN, server_round=1, kind="train", values={"loss": math.nan, "raw": b"\xff"}))
    with store.transaction() as tx:
        run, metrics = tx.get(Run, RUN), tx.get(Metrics, RUN, 1, "train")
    assert run is not None and math.isnan(float(run.config["lr"])) and run.config["clip"] == math.inf
    assert metrics is not None and math.isnan(metrics.values["loss"]) and metrics.values["raw"] == b"\xff"


def test_text_that_no_database_takes_is_kept_in_a_readable_form(store: Store) -> None:
    with store.transaction() as tx:
        tx.put(LogLine(run=RUN, seq=1, source="a", line="a\0b \udcff ü"))
    with store.transaction() as tx:
        line = tx.get(LogLine, RUN, 1)
    assert line is not None and line.line.startswith("a") and line.line.endswith(" ü")


def test_an_exception_undoes_everything(store: Store) -> None:
    with store.transaction() as tx:
        tx.put(task(1, "a"), task(1, "b"))

    def spoil(tx: Tx) -> None:
        tx.put(task(1, "a", attempt=7), task(1, "c"))
        tx.delete(task(1, "b"))
        assert [row.agent for row in tx.find(Task)] == ["a", "c"]
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"), store.transaction() as tx:
        spoil(tx)
    with store.transaction() as tx:
        assert tx.find(Task) == [task(1, "a"), task(1, "b")]


def test_a_transaction_sees_its_own_writes(store: Store) -> None:
    with store.transaction() as tx:
        tx.put(task(1, "a"))
        assert tx.get(Task, RUN, 1, "a") == task(1, "a")
        tx.put(task(1, "a", attempt=2))
        assert tx.find(Task, run=RUN) == [task(1, "a", attempt=2)]
        tx.delete(task(1, "a"))
        assert tx.get(Task, RUN, 1, "a") is None
        assert tx.find(Task) == []
        tx.put(task(1, "a", attempt=3))
    with store.transaction() as tx:
        assert tx.find(Task) == [task(1, "a", attempt=3)]


def test_deleting_what_is_not_there_is_no_error(store: Store) -> None:
    with store.transaction() as tx:
        tx.delete(task(9, "z"))
    with store.transaction() as tx:
        assert tx.get(Task, *task(9, "z").key) is None


def test_find_filters_by_values_and_by_one_of_several(store: Store) -> None:
    rows = [
        task(1, "a", state=TaskState.ACCEPTED),
        task(1, "b", state=TaskState.DECLINED, reply=Digest("d")),
        task(2, "a", state=TaskState.PUBLISHED),
    ]
    with store.transaction() as tx:
        tx.put(*rows)
    with store.transaction() as tx:
        assert tx.find(Task, n=1) == rows[:2]
        assert tx.find(Task, n=1, agent="b") == rows[1:2]
        assert tx.find(Task, state=(TaskState.ACCEPTED, TaskState.PUBLISHED)) == [rows[0], rows[2]]
        assert tx.find(Task, state=()) == []
        assert tx.find(Task, reply=None) == [rows[0], rows[2]]
        assert tx.find(Task, reply=("d", None)) == rows
        assert tx.find(Task, agent="nobody") == []


def test_find_orders_by_key_unless_told_otherwise(store: Store) -> None:
    rows = [
        task(n, agent, attempt=attempt) for n, agent, attempt in ((2, "b", 1), (1, "c", 2), (1, "B", 1), (10, "a", 2))
    ]
    with store.transaction() as tx:
        tx.put(*rows)
    with store.transaction() as tx:
        assert [(t.n, t.agent) for t in tx.find(Task)] == [(1, "B"), (1, "c"), (2, "b"), (10, "a")]
        assert [t.agent for t in tx.find(Task, order=("agent",))] == ["B", "a", "b", "c"]
        assert [t.agent for t in tx.find(Task, order=("-attempt", "n"))] == ["c", "a", "B", "b"]
        assert [t.agent for t in tx.find(Task, order=("attempt",))] == ["B", "b", "c", "a"]


def test_find_goes_on_after_a_value_and_stops_at_a_limit(store: Store) -> None:
    with store.transaction() as tx:
        tx.put(*(LogLine(run=RUN, seq=i, source="s", line=str(i)) for i in range(20)))
    with store.transaction() as tx:
        assert [line.seq for line in tx.find(LogLine, run=RUN, after=("seq", 4), limit=3)] == [5, 6, 7]
        assert [line.seq for line in tx.find(LogLine, run=RUN, order=("-seq",), limit=1)] == [19]


def test_find_takes_more_values_than_a_statement_does(store: Store) -> None:
    digests = tuple(f"{i:06}" for i in range(1200))
    with store.transaction() as tx:
        tx.put(*(Ref(digest=Digest(d), holder="h", n=i % 7) for i, d in enumerate(digests)))
    with store.transaction() as tx:
        assert [ref.digest for ref in tx.find(Ref, digest=digests[::-1])] == list(digests)
        assert [ref.n for ref in tx.find(Ref, digest=digests, order=("-n",), limit=2)] == [6, 6]


def test_writers_wait_for_each_other(store: Store) -> None:
    def count() -> None:
        for _ in range(25):
            with store.transaction() as tx:
                before = tx.get(UpTime, "hub") or UpTime()
                time.sleep(0.0005)  # the other one must not read in between
                tx.put(UpTime(uptime_s=before.uptime_s + 1))

    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.transaction() as tx:
        assert tx.get(UpTime, "hub") == UpTime(uptime_s=50)


def test_a_transaction_inside_another_is_an_error_at_once(store: Store) -> None:
    with store.transaction() as tx:
        with pytest.raises(RuntimeError, match="open already"), store.transaction():
            pass
        tx.put(UpTime(uptime_s=1))
    with store.transaction() as tx:
        assert tx.get(UpTime, "hub") == UpTime(uptime_s=1)


def test_a_database_that_another_process_holds_is_said_after_a_while(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(store, SqlStore):
        pytest.skip("the twin in memory belongs to one process")
    monkeypatch.setattr("fedfleet_coordinator.store.sql._WAIT_S", 0.2)
    other = SqlStore(store.engine.url.render_as_string(hide_password=False))
    with store.transaction() as tx:
        tx.put(UpTime(uptime_s=1))
        with pytest.raises(StoreUnavailable, match="see that only one coordinator uses it"), other.transaction():
            pass
    with other.transaction() as tx:
        assert tx.get(UpTime, "hub") == UpTime(uptime_s=1)
    other.close()


def test_a_thousand_rows_in_and_out_take_a_moment(store: Store) -> None:
    begun = time.process_time()
    with store.transaction() as tx:
        for i in range(1000):
            tx.put(task(1, f"a{i:04}"))
    with store.transaction() as tx:
        assert all(tx.get(Task, RUN, 1, f"a{i:04}") for i in range(1000))
    assert time.process_time() - begun < 0.6


# --- the twin in memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("when", "there"), [("before", False), ("after", True)])
def test_the_twin_fails_at_a_commit_when_told_to(when: Any, there: bool) -> None:
    store = MemoryStore()
    store.fail_next = when
    with pytest.raises(StoreUnavailable), store.transaction() as tx:
        tx.put(UpTime(uptime_s=1))
    with store.transaction() as tx:
        assert (tx.get(UpTime, "hub") is not None) is there


def test_a_copy_of_the_twin_is_a_backup() -> None:
    store = MemoryStore()
    with store.transaction() as tx:
        tx.put(task(1, "a"))
    backup = store.copy()
    with store.transaction() as tx:
        tx.delete(task(1, "a"))
    with backup.transaction() as tx:
        assert tx.find(Task, agent="a") == [task(1, "a")]


# --- databases -------------------------------------------------------------------------------------------------------


def differences(store: SqlStore) -> list[Any]:
    with store.engine.connect() as connection:
        return list(compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), METADATA))


def test_migrations_make_the_tables_that_the_rows_need(lite: SqlStore) -> None:
    assert differences(lite) == []


@pytest.mark.integration
def test_migrations_make_the_same_tables_in_postgresql(postgres_server: str) -> None:
    store = SqlStore(postgres_url(postgres_server))
    store.migrate()
    assert differences(store) == []
    store.close()


def test_migrating_again_changes_nothing(lite: SqlStore) -> None:
    with lite.transaction() as tx:
        tx.put(task(1, "a"))
    lite.migrate()
    with lite.transaction() as tx:
        assert tx.find(Task) == [task(1, "a")]


def test_a_migration_that_is_cut_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 'hub.sqlite'}")
    with monkeypatch.context() as patch:
        patch.setattr("alembic.op.create_index", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.migrate()
    store.migrate()
    assert differences(store) == []
    store.close()


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_database_of_a_newer_version_is_refused_in_words(lite: SqlStore) -> None:
    with lite.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Misconfigured, match="a newer version wrote it; install that version"):
        lite.migrate()


def test_the_file_is_for_its_owner_only(lite: SqlStore, tmp_path: Path) -> None:
    with lite.transaction() as tx:
        tx.put(task(1, "a"))
        assert {entry.stat().st_mode & 0o777 for entry in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("url", ["nonsense", "mysql://x/y", "sqlite://"])
def test_a_url_that_cannot_be_used_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(Misconfigured, match="postgresql://<user>@<host>/<database>"):
        SqlStore(url)


def test_a_password_is_in_no_message() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        store = SqlStore(f"postgresql://hub:secret@127.0.0.1:{nobody.getsockname()[1]}/x")
        with pytest.raises(StoreUnavailable, match="cannot be used now") as caught, store.transaction():
            pass
    assert "secret" not in str(caught.value)
    store.close()


def test_a_full_disk_is_said_and_costs_nothing_that_was_there(lite: SqlStore) -> None:
    with lite.transaction() as tx:
        tx.put(task(1, "a"))
    with lite.transaction() as tx:  # stands for a full disk: SQLite says the same
        pages = tx._connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        tx._connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreUnavailable, match="full; free some space"), lite.transaction() as tx:
        tx.put(*(Blob(digest=Digest(f"{i}"), size=1, inline=bytes(60_000)) for i in range(10)))
    with lite.transaction() as tx:
        assert tx.find(Task) == [task(1, "a")] and tx.find(Blob) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", place], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here: run as root, with CAP_SYS_ADMIN")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.integration
def test_a_disk_that_is_really_full_is_said_and_the_store_goes_on_when_there_is_room(small_disk: Path) -> None:
    store = SqlStore(f"sqlite:///{small_disk / 'hub.sqlite'}")
    store.migrate()
    with store.transaction() as tx:
        tx.put(task(1, "a"))
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space"):
        ballast.write_bytes(bytes(4 << 20))
    with pytest.raises(StoreUnavailable, match="free some space"), store.transaction() as tx:
        tx.put(*(Blob(digest=Digest(f"{i}"), size=1, inline=bytes(60_000)) for i in range(10)))
    ballast.unlink()
    with store.transaction() as tx:
        assert tx.find(Task) == [task(1, "a")] and tx.find(Blob) == []
        tx.put(task(1, "b"))
    store.close()


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "hub.sqlite"
    path.write_bytes(b"no database at all " * 1000)
    store = SqlStore(f"sqlite:///{path}")
    with pytest.raises(StoreUnavailable, match="restore it from a backup"):
        store.migrate()
    store.close()


@pytest.mark.integration
def test_a_server_that_went_is_unavailable_and_then_back(postgres_server: str) -> None:
    store = SqlStore(postgres_url(postgres_server))
    store.migrate()

    def write_and_lose_the_server() -> None:
        with store.transaction() as tx:
            tx.put(UpTime(uptime_s=1))
            tx._connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(StoreUnavailable):
        write_and_lose_the_server()
    with store.transaction() as tx:
        assert tx.get(UpTime, "hub") is None
    store.close()


_WRITER = """
import sys
from fedfleet_coordinator.rows import Exchange, LogLine
from fedfleet_coordinator.store.sql import SqlStore
store = SqlStore(sys.argv[1])
n = 0
while True:
    n += 1
    with store.transaction() as tx:
        lines = (LogLine(run="r", seq=n * 10 + i, source="s", line="x" * 500) for i in range(10))
        tx.put(Exchange(run="r", n=n), *lines)
    print(n, flush=True)
"""


@pytest.mark.integration
@pytest.mark.parametrize("after_s", [0.02, 0.11, 0.3])
def test_a_writer_that_is_killed_keeps_what_it_committed(lite: SqlStore, tmp_path: Path, after_s: float) -> None:
    command = [sys.executable, "-c", _WRITER, f"sqlite:///{tmp_path / 'hub.sqlite'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = [child.stdout.readline()]
        time.sleep(after_s)
        child.send_signal(signal.SIGKILL)
        said += child.stdout.readlines()
    promised = max(int(line) for line in said if line.endswith("\n"))
    with lite.transaction() as tx:
        kept, lines = tx.find(Exchange), tx.find(LogLine)
    assert [row.n for row in kept] == list(range(1, len(kept) + 1))
    assert promised <= len(kept) <= promised + 1
    assert len(lines) == 10 * len(kept)
