"""The hub's in-memory twin, with devices that answer at once: for tests of the runner, and of apps.

The rules are the coordinator's own, over its in-memory store; only the network, the disk and the clock are left out.
A hub can be told to let its runner die at the k-th call, before or after the call had its effect.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flwr.app import Context, Message, RecordDict

from fedfleet_coordinator import garbage, runs
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.exchanges import Exchanges
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.rows import Agent, Blob, Ref, Run
from fedfleet_coordinator.runner.inprocess import Anybody, InProcessHub, Work, refused_as_told
from fedfleet_coordinator.store.memory import MemoryStore
from fedfleet_coordinator.store.port import Tx
from fedfleet_flower import compat
from fedfleet_flower.apps import last_lines
from fedfleet_flower.contents import from_failure, from_message, from_records, read_content
from fedfleet_protocol.blocks import BlockList, blocks_of
from fedfleet_protocol.ids import AgentId, Digest, agent_id, flower_number, run_id
from fedfleet_protocol.messages import (
    BlobRef,
    Checkpoint,
    Decline,
    ExchangeView,
    Notice,
    Over,
    Reply,
    ToAgent,
    Verdict,
)
from fedfleet_protocol.records import Content

_T = TypeVar("_T")
_CALL_S = 0.1
_GRACE_S = 5.0
Client = Callable[[Message, Context], Message | bytes | tuple[str, str] | None]
"""What a device does: reply, reply with bytes of any kind, decline with a code and a text, or stay silent."""


class Killed(BaseException):
    """The runner process died."""


@dataclass
class Device:
    """An agent and its trainer."""

    agent: AgentId
    partition: int
    states: dict[str, RecordDict] = field(default_factory=dict)
    open: list[Notice] = field(default_factory=list)


class MemoryHub(InProcessHub):
    """A `Hub` with everything behind it.

    Args:
        client: called for each task, as a ClientApp is.
        agents: how many devices there are.
        at_once: how many devices finish between two looks of the runner.
        run: fields of the run, as in `rows.Run`.

    Attributes:
        calls: how many calls the runners made so far.
        die_at: the number of the call at which the runner dies. late: whether that call had its effect.
        die_when: told after each call that had its effect; the runner dies the first time it holds.
    """

    def __init__(
        self,
        client: Client,
        *,
        agents: int = 2,
        at_once: int = 2,
        config: Any = None,
        bundle: bytes = b"a bundle",
        **run: Any,
    ) -> None:
        self.client, self.at_once = client, at_once
        self.store_, self.exchanges = MemoryStore(), Exchanges(Anybody())
        self.files: dict[str, bytes] = {}
        self.now, self.calls = 0.0, 0
        self.die_at: int | None = None
        self.late = False
        self.die_when: Callable[[Run], bool] | None = None
        self.metrics: dict[tuple[int, str], dict[str, Any]] = {}
        self.log: list[str] = []
        ids = [agent_id((i * 7919 + 1).to_bytes(4, "big") * 4) for i in range(agents)]
        self.devices = {agent: Device(agent, i) for i, agent in enumerate(ids)}
        self.run = run_id(b"\7" * 16)
        self.epoch = ""
        kept = self._keep(bundle)
        with self.store_.transaction() as tx:
            tx.put(*(Agent(agent=agent, online=True) for agent in ids))
            row = Run(run=self.run, app="test/app", bundle=kept.digest, bundle_size=kept.size,
                      config=config or {}, **run)  # fmt: skip
            runs.submit(tx, row, Now(0.0, 0.0), Outbox())
        self.relaunch()

    # --- for tests ----------------------------------------------------------------------------------------------------

    def relaunch(self) -> None:
        """Start the next runner: the one before writes nothing any more."""
        self.epoch = f"epoch {self.calls} {self.epoch[-20:]}"
        self._do(lambda tx, now, out: runs.launch(tx, self.run, self.epoch, now, out))

    def show(self, count: int) -> None:
        """Let only the first `count` devices be there."""
        with self.store_.transaction() as tx:
            for i, agent in enumerate(self.devices):
                tx.put(Agent(agent=agent, online=i < count, seen_at=-1e9))

    def row(self) -> Run:
        """Return the run's row."""
        with self.store_.transaction() as tx:
            row = tx.get(Run, self.run)
        assert row is not None
        return row

    def references(self) -> set[str]:
        """Return who names blobs."""
        with self.store_.transaction() as tx:
            return {ref.holder for ref in tx.find(Ref)}

    def model(self) -> RecordDict | None:
        """Return the model the run ended with."""
        row = self.row()
        return None if row.model is None else read_content(_memory_file(self.files[row.model])).records()

    # --- the port -----------------------------------------------------------------------------------------------------

    def view(self, n: int, *, seen: int, wait_s: float) -> ExchangeView:
        """Let some devices finish, or the time pass that the runner would wait."""
        view: ExchangeView = self._call(lambda tx, now, out: self.exchanges.view(tx, self.run, n))
        if view.closed or len(view.replies) > seen:
            return view
        if not self._work():
            self.now += wait_s
            self._do(self.exchanges.tick)
        return self._do(lambda tx, now, out: self.exchanges.view(tx, self.run, n))

    def checkpoint(self, request: Checkpoint) -> tuple[Digest, ...]:
        """Commit a round; what nothing names any more is gone at once."""

        def commit(tx: Tx, now: Now, out: Outbox) -> tuple[Digest, ...]:
            need = self.exchanges.checkpoint(tx, request, now, out)
            for name in garbage.collect(tx, now, _GRACE_S):
                self.files.pop(name, None)
            return need

        return self._call(commit)

    def store(self, fd: int, blocks: BlockList) -> None:
        """Keep a blob."""
        data = os.pread(fd, blocks.size, 0)
        assert blocks_of([data]) == blocks, "a runner stores what it says"
        self._call(lambda tx, now, out: self._put(tx, data, now))

    def fetch(self, blob: BlobRef) -> int:
        """Return a file with the blob's bytes."""
        self._call(lambda tx, now, out: tx.get(Run, self.run))
        return _memory_file(self.files[blob.digest])

    def tell_metrics(self, server_round: int, kind: str, values: dict[str, Any], num_rounds: int) -> None:
        """Keep the metrics of a round; told twice, they are the same."""
        super().tell_metrics(server_round, kind, values, num_rounds)
        before = self.metrics.setdefault((server_round, kind), values)
        assert repr(before) == repr(values), f"round {server_round} has other {kind} metrics the second time"

    # --- inside -------------------------------------------------------------------------------------------------------

    def _call(self, work: Work[_T]) -> _T:
        self.calls += 1
        if self.calls == self.die_at and not self.late:
            raise Killed
        with refused_as_told():
            answer = self._do(work)
        if self.calls == self.die_at:
            raise Killed
        if self.die_when is not None and self.die_when(self.row()):
            self.die_when = None
            raise Killed
        return answer

    def _do(self, work: Work[_T]) -> _T:
        self.now += _CALL_S
        out = Outbox()
        with self.store_.transaction() as tx:
            answer = work(tx, Now(self.now, self.now), out)
        for act in out.commits:
            act()
        for agent, message in out.sends:
            if agent in self.devices:
                self._hear(self.devices[agent], message)
        return answer

    def _hear(self, device: Device, message: ToAgent) -> None:
        if isinstance(message, Notice):
            if all(message.order != known.order for known in device.open):
                device.open.append(message)
        elif isinstance(message, Over):
            device.open.clear()
        elif isinstance(message, Verdict):
            device.open = [notice for notice in device.open if notice.order != message.order]
            if message.code != "accepted":
                device.states.pop(str(message.digest), None)

    def _work(self) -> bool:
        """Let some devices do their open task; return whether any did."""
        worked = 0
        for device in reversed(self.devices.values()):
            for notice in list(device.open):
                if worked < self.at_once:
                    device.open.remove(notice)
                    worked += self._do_task(device, notice)
        return worked > 0

    def _do_task(self, device: Device, notice: Notice) -> bool:
        payload = read_content(_memory_file(self.files[notice.payload.blob.digest]))
        state = RecordDict() if notice.base == "none" else _copy(device.states[notice.base])
        node = flower_number(device.agent)
        message = compat.instruction(
            payload.records(), run=flower_number(self.run), node=node, message_id=f"m{notice.n}",
            message_type=payload.manifest.message_type, group_id=payload.manifest.group_id,
        )  # fmt: skip
        context = Context(1, node, {"partition-id": device.partition}, state, notice.run_config)
        try:
            reply = self.client(message, context)
        except Exception as error:  # what a ClientApp raises becomes an error reply
            reply = _bytes(from_failure(compat.CLIENT_APP_RAISED_EXCEPTION, last_lines(error)))
        if reply is None:
            return False
        if isinstance(reply, tuple):
            code, text = reply
            decline = Decline(run=self.run, n=notice.n, order=notice.order, code=code, text=text)
            self._do(lambda tx, now, out: self.exchanges.decline(tx, device.agent, decline, now, out))
            return True
        data = reply if isinstance(reply, bytes) else _bytes(from_message(reply))
        digest = blocks_of([data]).digest
        device.states[digest] = context.state
        self._deliver(device, notice, digest, data)
        return True

    def _deliver(self, device: Device, notice: Notice, digest: Digest, data: bytes) -> None:
        def reply(tx: Tx, now: Now, out: Outbox) -> None:
            self._put(tx, data, now)
            said = Reply(run=self.run, n=notice.n, order=notice.order, digest=digest, size=len(data))
            self.exchanges.reply(tx, device.agent, said, now, out)

        self._do(reply)

    def _keep(self, data: bytes) -> BlobRef:
        with self.store_.transaction() as tx:
            return self._put(tx, data, Now(self.now, self.now))

    def _put(self, tx: Tx, data: bytes, now: Now) -> BlobRef:
        digest = blocks_of([data]).digest
        if tx.get(Blob, digest) is None:
            tx.put(Blob(digest=digest, size=len(data), file=digest, stored_at=now.up))
        self.files[digest] = data
        return BlobRef(digest, len(data))


def _bytes(content: Content) -> bytes:
    return b"".join(content.pieces())


def _copy(state: RecordDict) -> RecordDict:
    return read_content(_memory_file(_bytes(from_records(state)))).records()


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("blob")
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return fd
