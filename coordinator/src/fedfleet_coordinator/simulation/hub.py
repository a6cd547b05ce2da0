"""A fleet's coordinator and its devices, for one run, in virtual time.

The rules are the coordinator's own (`exchanges`, `runs`) over its store in memory. Time is a heap of what will happen
to whom, and is set forward when the runner waits: to the next event, or to an exchange's deadline or end of grace. A
device that hears of a task needs time to download, to compute and to upload; its call is really made meanwhile, by the
pool. Whatever is ready first there, replies arrive here in the order of virtual time.

A runner that dies is not followed by another: the process is the same. So what only a second runner would read is let
go at once: a reply's bytes when the runner has opened them, the rows of a round when the round is committed.
"""

import heapq
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fedfleet_coordinator import garbage, runs
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.exchanges import Exchanges, Limits, writable
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.rows import Agent, Blob, Exchange, GridAnswer, Ref, Run, Task, Turn
from fedfleet_coordinator.runner.inprocess import Anybody, InProcessHub, Work, refused_as_told
from fedfleet_coordinator.simulation.devices import name_of, number_of, sampled
from fedfleet_coordinator.simulation.errors import room_in
from fedfleet_coordinator.simulation.fleet import Device, Fleet, Job, copy
from fedfleet_coordinator.simulation.history import History
from fedfleet_coordinator.simulation.pool import Answered, Pool
from fedfleet_coordinator.simulation.worker import Call
from fedfleet_coordinator.store.memory import MemoryStore
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.blocks import BlockList
from fedfleet_protocol.exchange import ExchangeState
from fedfleet_protocol.ids import AgentId, Digest, flower_number
from fedfleet_protocol.messages import (
    BlobRef,
    Checkpoint,
    Decline,
    ExchangeView,
    Notice,
    Open,
    Over,
    Reply,
    ToAgent,
    Verdict,
)

_T = TypeVar("_T")
_NEVER_S = 1e12
"""A lease in virtual time would find no device that lost its notice."""


class SimulatedHub(InProcessHub):
    """A `Hub` with virtual devices behind it.

    Args:
        folder: exists; blobs and states are kept there, on the file system of the pool's folder.
        bundle: a file there with the run's bundle. pool: makes the calls.
        watch: told after each thing that happened.

    Attributes:
        up_s: virtual seconds since the run began. history: what became of the tasks of closed exchanges.
    """

    def __init__(
        self, row: Run, fleet: Fleet, *, folder: Path, bundle: Path, pool: Pool, watch: Callable[[], None]
    ) -> None:
        self.run, self.epoch = row.run, "simulation"
        self.exchanges = Exchanges(Anybody(), Limits(lease_s=_NEVER_S))
        self.history, self.up_s = History(), 0.0
        self._row, self._fleet, self._pool, self._watch = row, fleet, pool, watch
        self._blobs, self._states = folder / "blobs", folder / "states"
        self._blobs.mkdir()
        self._states.mkdir()
        os.link(bundle, self.blob(row.bundle))
        self._store, self._began_wall = MemoryStore(), time.time()
        self._everybody = [name_of(i) for i in range(fleet.agents)] if fleet.cohort is None else []
        self._devices: dict[AgentId, Device] = {}
        self._events: list[tuple[float, int, Job]] = []
        self._dues: dict[int, float] = {}
        self._count = 0

        def submit(tx: Tx, now: Now, out: Outbox) -> None:
            tx.put(Blob(digest=row.bundle, size=row.bundle_size, file=row.bundle))
            runs.submit(tx, row, now, out)
            runs.launch(tx, row.run, self.epoch, now, out)

        self._do(submit)

    def blob(self, digest: Digest) -> Path:
        """Return where a blob's bytes are."""
        return self._blobs / digest

    def read(self, work: Callable[[Tx, Now], _T]) -> _T:
        """Return what a function of the store and the virtual time finds."""
        return self._do(lambda tx, now, out: work(tx, now))

    def close_books(self) -> None:
        """Let the history take in the exchanges whose rows are still there; the run is over."""

        def note(tx: Tx, now: Now, out: Outbox) -> None:
            for exchange in tx.find(Exchange, run=self.run):
                self.history.note(exchange, tx.find(Task, run=self.run, n=exchange.n))

        self._do(note)

    # --- the port -----------------------------------------------------------------------------------------------------

    def open(self, request: Open) -> ExchangeView:
        """Open an exchange; who is in it for the first time joins the fleet now."""

        def begin(tx: Tx, now: Now, out: Outbox) -> ExchangeView:
            tx.put(*(Agent(agent=agent, online=True) for agent in request.cohort if tx.get(Agent, agent) is None))
            view = runs.open_exchange(tx, request, self.exchanges, now, out)
            if not view.need:
                self._collect(tx, now, out)
            return view

        view = self._call(begin)
        if not view.need and not view.closed:
            self._note_due(request.n)
        return view

    def view(self, n: int, *, seen: int, wait_s: float) -> ExchangeView:
        """Return an exchange; whoever would wait for it waits in virtual time."""
        exchange = self._exchange(n)
        if wait_s > 0 and exchange is not None and exchange.state is ExchangeState.OPEN:
            while self._open_until(n, seen):
                if self._advance() not in (0, n):
                    break  # whoever pulls replies to several messages wants to hear of the first
        elif wait_s > 0 and exchange is not None and exchange.late == "keep":
            while self._settled(n) <= seen and (self._events or self._dues) and not self._advance():
                pass
        return self._call(lambda tx, now, out: self.exchanges.view(tx, self.run, n))

    def checkpoint(self, request: Checkpoint) -> tuple[Digest, ...]:
        """Commit a round, and let go of what came before it."""

        def commit(tx: Tx, now: Now, out: Outbox) -> tuple[Digest, ...]:
            need = self.exchanges.checkpoint(tx, request, now, out)
            if not need:
                self._collect(tx, now, out)
                self._prune(tx, request)
            return need

        return self._call(commit)

    def nodes(
        self, k: int, *, at_least: int, unlike: list[AgentId] | None, needs: int = 0
    ) -> tuple[list[AgentId], bool]:
        """Return all agents, or the sample of them that belongs to the `k`-th answer."""
        fleet, agents = self._fleet, self._everybody
        if fleet.cohort is not None:
            drawn = sampled(fleet.agents, fleet.cohort, seed=fleet.conditions.seed, k=k)
            agents = [name_of(index) for index in drawn]

        def ask(tx: Tx, now: Now, out: Outbox) -> tuple[list[AgentId], bool]:
            writable(tx, self.run, self.epoch)
            if len(agents) < at_least or agents == unlike:
                return agents, False
            return list(runs.answer(tx, self.run, self.epoch, k, "nodes", agents).value), True

        return self._call(ask)

    def store(self, fd: int, blocks: BlockList) -> None:
        """Keep a blob."""

        def keep(tx: Tx, now: Now, out: Outbox) -> None:
            if tx.get(Blob, blocks.digest) is None:
                with room_in(self._blobs.parent):
                    copy(fd, blocks.size, self.blob(blocks.digest))
                tx.put(_row(blocks.digest, blocks.size, now))

        self._call(keep)

    def fetch(self, blob: BlobRef) -> int:
        """Return a file with the blob's bytes; a reply that was fetched by all who wait for it is gone afterwards."""
        fd = os.open(self.blob(blob.digest), os.O_RDONLY | os.O_CLOEXEC)

        def let_go(tx: Tx, now: Now, out: Outbox) -> None:
            refs = tx.find(Ref, digest=blob.digest)
            replies = [ref for ref in refs if ref.holder.startswith("reply:")]
            tx.delete(*replies[:1])
            if replies and len(refs) == 1:
                self._forget(tx, blob.digest, out)

        self._do(let_go)
        return fd

    # --- time ---------------------------------------------------------------------------------------------------------

    def _open_until(self, n: int, seen: int) -> bool:
        """Whether exchange `n` is open and no more than `seen` of its tasks are settled."""
        exchange = self._exchange(n)
        return exchange is not None and exchange.state is ExchangeState.OPEN and exchange.settled <= seen

    def _settled(self, n: int) -> int:
        """Return how many tasks of exchange `n` are settled, late ones included."""
        with self._store.transaction() as tx:
            return len(self.exchanges.view(tx, self.run, n).replies)

    def _advance(self) -> int:
        """Let the next thing happen; return the exchange of which a task was settled by it, 0 if none was."""
        n = min(self._dues, key=self._dues.__getitem__, default=0)
        at = self._dues.get(n, math.inf)
        if self._events and self._events[0][0] <= at:
            self.up_s, _, job = heapq.heappop(self._events)
            n = job.notice.n if self._happen(job) else 0
            ticked = False
        else:
            self.up_s = max(self.up_s, at)
            self._do(self.exchanges.tick)
            ticked = True
        if n:
            self._note_due(n, ticked=ticked)
        self._watch()
        return n

    def _note_due(self, n: int, *, ticked: bool = False) -> None:
        """Note when time alone will change an exchange: close it, or give up the late replies that it still takes."""
        exchange = self._exchange(n)
        if exchange is None:
            at = math.inf
        elif exchange.state is ExchangeState.OPEN:
            at = min(exchange.deadline_at, math.inf if exchange.grace_at is None else exchange.grace_at)
        else:
            at = exchange.deadline_at + self._row.deadline_s
            if exchange.late == "refuse" or (ticked and at <= self.up_s):
                at = math.inf
        if at < math.inf:
            self._dues[n] = at
        else:
            self._dues.pop(n, None)

    def _exchange(self, n: int) -> Exchange | None:
        with self._store.transaction() as tx:
            return tx.get(Exchange, self.run, n)

    # --- devices ------------------------------------------------------------------------------------------------------

    def _hear(self, agent: AgentId, message: ToAgent) -> None:
        device = self._devices.setdefault(agent, Device())
        match message:
            case Notice():
                self._give_up(device)  # it asks, and is told that the task before is closed
                self._begin(agent, device, message)
            case Verdict(code="accepted"):
                self._promote(device, message)
            case Verdict():
                if device.job is not None and device.job.notice.order == message.order:
                    self._give_up(device)
            case Over():
                self._give_up(device)
                del self._devices[agent]

    def _begin(self, agent: AgentId, device: Device, notice: Notice) -> None:
        """Let a device work on a task; one that will never answer in time is not even called."""
        index, conditions = number_of(agent), self._fleet.conditions
        if conditions.drops_out(index, notice.n):
            self.history.dropped += 1
            return
        pace = conditions.pace(index)
        takes_s = pace.transfer_s(notice.payload.blob.size) + pace.compute_s
        if takes_s > notice.remaining_s and self._row.late == "refuse":
            return
        device.job = Job(index, notice)
        self._schedule(device.job, takes_s)
        call = Call(
            order=notice.order, message=self.blob(notice.payload.blob.digest), state=device.state,
            run_number=flower_number(self.run), node=flower_number(agent),
            node_config={"partition-id": index, "num-partitions": self._fleet.agents}, run_config=notice.run_config,
            seed=conditions.seed_of(index, notice.n), remaining_s=notice.remaining_s,
        )  # fmt: skip
        self._pool.submit(call, at=self.up_s + takes_s)

    def _happen(self, job: Job) -> bool:
        """Let a device have computed, or its reply arrive; return whether its task is settled now."""
        agent, notice = job.notice.agent, job.notice
        device = self._devices.get(agent)
        if device is None or device.job is not job:
            return False  # it was told that nobody waits any more
        if job.answer is not None:
            self._arrive(agent, job.answer, notice)
            return True
        answer = self._pool.wait(notice.order)
        if isinstance(answer, Answered):
            job.answer = answer
            self._schedule(job, self._fleet.conditions.pace(job.index).transfer_s(answer.size))
            return False
        decline = Decline(run=self.run, n=notice.n, order=notice.order, code="killed", text=answer.text)
        device.job = None
        self._do(lambda tx, now, out: self.exchanges.decline(tx, agent, decline, now, out))
        return True

    def _arrive(self, agent: AgentId, answer: Answered, notice: Notice) -> None:
        self._pool.serve()
        self.history.errors += answer.failed

        def reply(tx: Tx, now: Now, out: Outbox) -> None:
            answer.reply.rename(self.blob(answer.digest))
            if tx.get(Blob, answer.digest) is None:
                tx.put(_row(answer.digest, answer.size, now))
            said = Reply(run=self.run, n=notice.n, order=notice.order, digest=answer.digest, size=answer.size)
            self.exchanges.reply(tx, agent, said, now, out)

        self._do(reply)

    def _promote(self, device: Device, verdict: Verdict) -> None:
        """Let the state that an accepted reply left be the device's; an error leaves it as it was."""
        job, device.job = device.job, None
        assert job is not None  # its reply was accepted in this very transaction
        assert job.answer is not None
        if job.answer.failed:
            return
        if device.state is not None:
            device.state.unlink()
        device.state = None
        if job.answer.state is not None:
            device.state = job.answer.state.rename(self._states / str(verdict.order))

    def _give_up(self, device: Device) -> None:
        """Forget what a call returned, or would have: its reply is not wanted."""
        job, device.job = device.job, None
        if job is None:
            return
        if job.answer is None:
            self._pool.cancel(job.notice.order)
        else:
            self._pool.drop(job.answer)

    def _schedule(self, job: Job, after_s: float) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.up_s + after_s, self._count, job))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _call(self, work: Work[_T]) -> _T:
        with refused_as_told():
            return self._do(work)

    def _do(self, work: Work[_T]) -> _T:
        out = Outbox()
        with self._store.transaction() as tx:
            answer = work(tx, Now(self.up_s, self._began_wall + self.up_s), out)
        for act in out.commits:
            act()
        for agent, message in out.sends:
            self._hear(agent, message)
        return answer

    def _collect(self, tx: Tx, now: Now, out: Outbox) -> None:
        while files := garbage.collect(tx, now, 0.0):
            for name in files:
                out.after_commit((self._blobs / name).unlink)

    def _forget(self, tx: Tx, digest: Digest, out: Outbox) -> None:
        row = tx.get(Blob, digest)
        if row is not None:
            tx.delete(row)
            out.after_commit(self.blob(digest).unlink)

    def _prune(self, tx: Tx, request: Checkpoint) -> None:
        """Delete the rows of exchanges that the runner does not look at any more, and of agents that keep nothing."""
        tx.delete(*(row for row in tx.find(GridAnswer, run=self.run) if row.k < request.next_answer))
        if request.keep_below >= request.next_n:
            return  # replies to messages that were pushed are still to be pulled
        for exchange in tx.find(Exchange, run=self.run, state=ExchangeState.CLOSED):
            if exchange.n >= request.next_n:
                continue
            tasks = tx.find(Task, run=self.run, n=exchange.n)
            self.history.note(exchange, tasks)
            tx.delete(*tasks, exchange)
            for task in tasks:
                self._leave(tx, task.agent, request.next_n)

    def _leave(self, tx: Tx, agent: AgentId, next_n: int) -> None:
        """Forget a device without a state: the next time it starts as one that comes for the first time."""
        device, turn = self._devices.get(agent), tx.get(Turn, self.run, agent)
        if turn is None or turn.waiting or turn.n >= next_n:
            return
        if device is None or (device.job is None and device.state is None):
            self._devices.pop(agent, None)
            tx.delete(turn, Agent(agent=agent))


def _row(digest: Digest, size: int, now: Now) -> Blob:
    return Blob(digest=digest, size=size, file=digest, stored_at=now.up)
