"""A coordinator whose database came back from a backup, while the world went on."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedfleet_coordinator import restored, runs
from fedfleet_coordinator.broker import BrokerFiles
from fedfleet_coordinator.capabilities import Capabilities
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.errors import StaleEpoch
from fedfleet_coordinator.exchanges import Exchanges, writable
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.pki import Pki
from fedfleet_coordinator.rows import Agent, Blob, Exchange, Position, Ref, Run, Task, Token
from fedfleet_coordinator.store.port import Tx
from fedfleet_coordinator.store.sql import SqlStore
from fedfleet_protocol.blocks import blocks_of
from fedfleet_protocol.exchange import TaskState
from fedfleet_protocol.ids import agent_id, run_id
from fedfleet_protocol.messages import BlobRef, Notice, Open, Reply

pytestmark = pytest.mark.integration
RUN, AGENTS, NOW = run_id(bytes(16)), [agent_id(bytes([i]) * 16) for i in (1, 2)], Now(1.0, 1.0)


def ref_of(data: bytes) -> BlobRef:
    return BlobRef(blocks_of([data]).digest, len(data))


class Hub:
    """A database with a run whose first exchange is open, and one of its two replies accepted."""

    def __init__(self, path: Path) -> None:
        self.path, self.store, self.machine = path, SqlStore(f"sqlite:///{path}"), Exchanges(Capabilities(bytes(32)))
        self.store.migrate()
        self.out, self.files = Outbox(), {"bundle", "payload", "reply 0", "checkpoint"}

    def begin(self) -> None:
        with self.store.transaction() as tx:
            for name in sorted(self.files):
                tx.put(Blob(digest=ref_of(name.encode()).digest, size=len(name), file=name))
            tx.put(*(Agent(agent=agent, serials=(f"{i + 10:x}",)) for i, agent in enumerate(AGENTS)))
            tx.put(Token(hashed="h", uses_left=5, expires_wall=1e12))
            runs.submit(tx, Run(run=RUN, bundle=ref_of(b"bundle").digest, deadline_s=60.0), NOW, self.out)
            runs.launch(tx, RUN, "old", NOW, self.out)
            cohort = dict.fromkeys(AGENTS, ref_of(b"payload"))
            tx.put(Ref(digest=ref_of(b"payload").digest, holder=f"upload:{RUN}", run=RUN))
            self.machine.open(tx, Open(run=RUN, epoch="old", n=1, cohort=cohort, deadline_s=600.0), NOW, self.out)
            self.reply(tx, 0)

    def reply(self, tx: Tx, index: int) -> None:
        task = tx.get(Task, RUN, 1, AGENTS[index])
        assert task is not None
        blob = ref_of(f"reply {index}".encode())
        said = Reply(run=RUN, n=1, order=task.order, digest=blob.digest, size=blob.size)
        self.machine.reply(tx, AGENTS[index], said, NOW, self.out)

    def recover(self, *revoked: str) -> None:
        with self.store.transaction() as tx:
            restored.recover(tx, lambda blob: blob.file in self.files, revoked, self.machine, NOW, self.out)

    def run(self) -> Run:
        with self.store.transaction() as tx:
            row = tx.get(Run, RUN)
        assert row is not None
        return row


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub made of a backup that SQLite's own backup took while the first one had its database open."""
    first = Hub(tmp_path / "first.sqlite")
    first.begin()
    with (
        contextlib.closing(sqlite3.connect(first.path)) as source,
        contextlib.closing(sqlite3.connect(tmp_path / "second.sqlite")) as target,
    ):
        source.backup(target)
    with first.store.transaction() as tx:  # what the backup does not know of
        first.reply(tx, 1)
    first.store.close()
    second = Hub(tmp_path / "second.sqlite")
    yield second
    second.store.close()


def test_run_goes_on_under_a_new_epoch_only(hub: Hub) -> None:
    hub.recover()
    with hub.store.transaction() as tx:
        with pytest.raises(StaleEpoch):
            writable(tx, RUN, "old")
        launched = runs.launch(tx, RUN, "new", NOW, hub.out)
        exchange = tx.get(Exchange, RUN, 1)
    assert launched is not None and exchange is not None and (exchange.settled, exchange.accepted) == (1, 1)


def test_accepted_reply_whose_blob_is_gone_is_asked_for_again(hub: Hub) -> None:
    hub.files.discard("reply 0")
    hub.recover()
    hub.recover()
    with hub.store.transaction() as tx:
        task, exchange = tx.get(Task, RUN, 1, AGENTS[0]), tx.get(Exchange, RUN, 1)
        assert task is not None and exchange is not None and task.state is TaskState.PUBLISHED
        assert (exchange.settled, exchange.accepted) == (0, 0)
        assert tx.find(Ref, holder=f"reply:{RUN}:1:{AGENTS[0]}") == []
        hub.machine.recover(tx, NOW)
        hub.machine.tick(tx, Now(62.0, 1.0), hub.out)
        for index in (0, 1):
            data = f"reply {index}".encode()
            tx.put(Blob(digest=ref_of(data).digest, size=len(data), file="again"))
            hub.reply(tx, index)
        exchange = tx.get(Exchange, RUN, 1)
    assert exchange is not None and (exchange.reason, exchange.accepted) == ("all", 2)
    assert any(isinstance(message, Notice) for _, message in hub.out.sends)


def test_reply_of_a_closed_exchange_that_is_gone_ends_the_run_with_its_reason(hub: Hub) -> None:
    with hub.store.transaction() as tx:
        hub.machine.tick(tx, Now(1000.0, 1.0), hub.out)
    hub.files.discard("reply 0")
    hub.recover()
    run = hub.run()
    assert (run.state, run.reason) == ("failed", "lost") and f"the reply of agent {AGENTS[0]} to exchange 1" in run.text


@pytest.mark.parametrize(
    ("gone", "what"), [("bundle", "the bundle"), ("payload", "a payload of exchange 1"), ("checkpoint", "a checkpoint")]
)
def test_run_without_what_it_needs_ends_with_its_reason(hub: Hub, gone: str, what: str) -> None:
    with hub.store.transaction() as tx:
        digest = ref_of(b"checkpoint").digest
        tx.put(
            Position(run=RUN, blobs={"arrays": [digest, 10]}), Ref(digest=digest, holder=f"checkpoint:{RUN}", run=RUN)
        )
    hub.files.discard(gone)
    hub.recover()
    run = hub.run()
    assert (run.state, run.reason) == ("failed", "lost") and run.text.endswith(what)


def test_who_was_revoked_since_is_revoked_and_no_token_can_be_used(hub: Hub) -> None:
    hub.recover("a", "ff")
    with hub.store.transaction() as tx:
        states = [row.state for row in tx.find(Agent)]
        task = tx.get(Task, RUN, 1, AGENTS[1])
        assert tx.find(Token) == []
    assert states == ["revoked", "active"] and task is not None and task.state is TaskState.PUBLISHED


def test_list_of_revocations_forgets_nobody_whom_the_store_does_not_know(tmp_path: Path) -> None:
    pki = Pki.create(tmp_path / "pki", now_wall=1e9)
    files = BrokerFiles(tmp_path / "broker", agents_host="127.0.0.1", agents_port=1, service_port=2)
    files.write(pki, ["localhost"], [(AGENTS[0], ("a1",)), (AGENTS[1], ("b2",))], 1e9)
    files.write_revoked(pki, [(AGENTS[0], ("a1", "a2"))], 1e9)
    assert files.revoked_serials() == {"a1", "a2", "b2"}
    rules = (tmp_path / "broker" / "agents.acl").read_text()
    assert f"user {AGENTS[0]}\ntopic deny #" in rules and f"user {AGENTS[1]}\ntopic deny #" in rules
