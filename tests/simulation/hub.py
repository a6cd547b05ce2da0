"""The coordinator of the simulation: the real transitions over the in-memory store, a lossy link, and its crashes."""

import contextlib
import random
from collections.abc import Callable
from typing import TypeVar

from fedfleet_coordinator import garbage, runs
from fedfleet_coordinator.capabilities import Capabilities
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.exchanges import Exchanges, Limits
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.rows import Agent, Blob, Run
from fedfleet_coordinator.store.memory import MemoryStore
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol import messages
from fedfleet_protocol.blocks import blocks_of
from fedfleet_protocol.ids import AgentId, Digest, RunId
from fedfleet_protocol.messages import Answer, Ask, Decline, Progress, Reply
from tests.simulation.device import Device
from tests.simulation.faults import Faults
from tests.simulation.timeline import Timeline
from tests.simulation.watch import Watch

T = TypeVar("T")


class HubDown(Exception):
    """Nobody answers."""


class _RolledBack(Exception):
    """A transaction that is undone."""


class Hub:
    """One coordinator and its network. `store` survives a crash, the rest does not."""

    def __init__(self, timeline: Timeline, rng: random.Random, faults: Faults) -> None:
        self._timeline, self._rng, self._faults = timeline, rng, faults
        self.store = MemoryStore()
        self.watch = Watch()
        self.devices: dict[AgentId, Device] = {}
        self.down = False
        self.calm = True
        self.on_restart: list[Callable[[], None]] = []
        self._capabilities = Capabilities(bytes(32))
        self._up_before, self._up_since = 0.0, 0.0
        self._start()

    def now(self) -> Now:
        """The hub's own time: it stands still while the hub is down."""
        return Now(self._up_before + self._timeline.now - self._up_since, self._timeline.now)

    def do(self, work: Callable[[Tx, Now, Outbox], T]) -> T:
        """Run a transition: a crash may come before the commit, or between the commit and what follows.

        Raises:
            HubDown: it was down, or crashed; whether the transition is in the store is not known.
        """
        if self.down:
            raise HubDown
        crash = (
            "" if self.calm or self._rng.random() >= self._faults.crash_hub else self._rng.choice(("before", "after"))
        )
        if crash == "before":
            self.crash()
            raise HubDown
        if not self.calm and self._rng.random() < self._faults.roll_back:
            with contextlib.suppress(_RolledBack), self.store.transaction() as tx:
                work(tx, self.now(), Outbox())
                raise _RolledBack  # another transition of the batch raised: this one runs again, by itself
        out = Outbox()
        with self.store.transaction() as tx:
            result = work(tx, self.now(), out)
        for act in out.commits:
            act()
        with self.store.transaction() as tx:
            self.watch.look(tx)
        if crash == "after":
            self.crash()
            raise HubDown
        for agent, message in out.sends:
            self._down_link(agent, message)
        return result

    def crash(self) -> None:
        """Lose all that is in memory; come back in a while."""
        self._up_before = self.now().up
        self.down = True
        self._timeline.after(self._rng.uniform(0.1, 60.0), self._start)

    def sweep(self) -> None:
        """Collect garbage."""
        self.try_to(lambda tx, now, out: garbage.collect(tx, now, 0.0))

    def try_to(self, work: Callable[[Tx, Now, Outbox], object]) -> None:
        """Run a transition that nobody waits for."""
        try:
            self.do(work)
        except HubDown:
            pass

    # --- what devices ask of it ---------------------------------------------------------------------------------------

    def say(self, agent: AgentId, message: messages.FromAgent) -> None:
        """Carry a message up, perhaps."""
        data = messages.encode(message)
        for delay in self._copies():
            self._timeline.after(delay, lambda: self._hear(agent, data))

    def ask(self, agent: AgentId, ask: Ask, answered: Callable[[Answer | None], None]) -> None:
        """Answer a question, unless the request or the answer is lost."""

        def arrive() -> None:
            answer = None
            if not self._cut():
                try:
                    answer = self.do(lambda tx, now, out: self._exchanges.ask(tx, agent, ask, now, out))
                except HubDown:
                    pass
            lost = self._cut()
            self._timeline.after(self._delay(), lambda: answered(None if lost else answer))

        self._timeline.after(self._delay(), arrive)

    def fetch(self, agent: AgentId, digest: Digest, done: Callable[[bytes | None], None]) -> None:
        """Bring a payload down, unless it is cut off."""

        def arrive() -> None:
            data = None
            if not self.down and not self._cut():
                with self.store.transaction() as tx:
                    blob = tx.get(Blob, digest)
                    data = self.watch.files[digest] if blob is not None else None
            done(data)

        self._timeline.after(self._delay(), arrive)

    def upload(self, agent: AgentId, data: bytes, done: Callable[[bool], None]) -> None:
        """Take a reply's blob, unless it is cut off."""

        def arrive() -> None:
            complete = False
            if not self._cut():
                try:
                    self.do(lambda tx, now, out: self._uploaded(tx, agent, data, now, out))
                    complete = not self._cut()
                except HubDown:
                    pass
            done(complete)

        self._timeline.after(self._delay(), arrive)

    def _uploaded(self, tx: Tx, agent: AgentId, data: bytes, now: Now, out: Outbox) -> None:
        digest = self.put_blob(tx, data, now)
        self._exchanges.uploaded(tx, agent, digest, now, out)

    def put_blob(self, tx: Tx, data: bytes, now: Now) -> Digest:
        """Put bytes into the store as a stored file (whose bytes are kept aside)."""
        digest = blocks_of([data]).digest
        self.watch.files[digest] = data
        if tx.get(Blob, digest) is None:
            tx.put(Blob(digest=digest, size=len(data), file=f"{digest}.x", stored_at=now.up))
        return digest

    def enrol(self, agent: AgentId) -> None:
        """Make an agent known."""
        self.do(lambda tx, now, out: tx.put(Agent(agent=agent, online=True)))

    @property
    def exchanges(self) -> Exchanges:
        """The machine of the process that runs now."""
        return self._exchanges

    # --- inside ------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.down = False
        self._up_since = self._timeline.now
        self._exchanges = Exchanges(self._capabilities, Limits(lease_s=60.0))
        with self.store.transaction() as tx:
            self._exchanges.recover(tx, self.now())
        for act in self.on_restart:
            act()
        self._tick(self._exchanges)

    def _tick(self, exchanges: Exchanges) -> None:
        if exchanges is self._exchanges and not self.down:
            self.try_to(exchanges.tick)
            self._timeline.after(5.0, lambda: self._tick(exchanges))

    def _hear(self, agent: AgentId, data: bytes) -> None:
        message, machine = messages.decode(data), self._exchanges
        match message:
            case Reply():
                self.try_to(lambda tx, now, out: machine.reply(tx, agent, message, now, out))
            case Decline():
                self.try_to(lambda tx, now, out: machine.decline(tx, agent, message, now, out))
            case Progress():
                self.try_to(lambda tx, now, out: machine.progress(tx, agent, message, now, out))

    def _down_link(self, agent: AgentId, message: messages.ToAgent) -> None:
        data, kind = messages.encode(message), type(message)
        for delay in self._copies():
            self._timeline.after(delay, lambda: self.devices[agent].hear(messages.decode_as(kind, data)))

    def _copies(self) -> list[float]:
        if not self.calm and self._rng.random() < self._faults.loss:
            return []
        twice = not self.calm and self._rng.random() < self._faults.repeat
        return [self._delay() for _ in range(2 if twice else 1)]

    def _delay(self) -> float:
        return 0.01 if self.calm else self._rng.uniform(0.0, self._faults.delay)

    def _cut(self) -> bool:
        return not self.calm and self._rng.random() < self._faults.cut / 2


def live(hub: Hub, run: RunId) -> bool:
    """Whether a run can still change."""
    with hub.store.transaction() as tx:
        row = tx.get(Run, run)
        return row is not None and row.live


__all__ = ["Hub", "HubDown", "live", "runs"]
