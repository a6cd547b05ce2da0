"""A device of the simulation: the real task machine, a journal that survives, and memory that does not."""

import random
from collections.abc import Callable
from typing import Protocol

from fedfleet_agent import core
from fedfleet_protocol import messages
from fedfleet_protocol.blocks import blocks_of
from fedfleet_protocol.ids import AgentId, Digest, RunId
from fedfleet_protocol.messages import Ask, BlobRef, Reply
from tests.simulation.faults import Faults
from tests.simulation.timeline import Timeline
from tests.simulation.work import state_after, train

INLINE = 200
"""Replies of more bytes than this are uploaded; the simulation's are small so that it is quick."""


class Crash(Exception):
    """The process dies here."""


class Uplink(Protocol):
    """How a device reaches the hub."""

    def say(self, agent: AgentId, message: messages.FromAgent) -> None: ...
    def ask(self, agent: AgentId, ask: Ask, answered: Callable[[messages.Answer | None], None]) -> None: ...
    def fetch(self, agent: AgentId, digest: Digest, done: Callable[[bytes | None], None]) -> None: ...
    def upload(self, agent: AgentId, data: bytes, done: Callable[[bool], None]) -> None: ...


class Device:
    """One agent. What is in `entry`, `lineages` and `files` survives a crash; the rest does not."""

    def __init__(self, agent: AgentId, hub: Uplink, timeline: Timeline, rng: random.Random, faults: Faults) -> None:
        self.agent, self._hub, self._timeline, self._rng, self._faults = agent, hub, timeline, rng, faults
        self.entry: core.Entry | None = None
        self.lineages: dict[RunId, core.Lineage] = {}
        self.files: dict[Digest, bytes] = {}
        self.online = True
        self.calm = False
        self.told: dict[tuple[RunId, int], Digest] = {}
        self._life = 0
        self._machine: core.Core | None = None
        self.start()

    @property
    def idle(self) -> bool:
        """Whether nothing is left of any run."""
        return self.entry is None and not self.lineages and not self.files

    def start(self) -> None:
        """Start the process: the machine from the journal, then connect."""
        self._life += 1
        rng = random.Random(self._rng.random())
        self._machine = core.Core(Ask(agent=self.agent), rng, self.entry, self.lineages.values())
        self._sweep()
        self._carry_out(self._machine.start(self._timeline.now))
        self._plan_tick()
        if self.online:
            self._happen(core.Connected())

    def crash(self) -> None:
        """Lose all that is in memory; come back in a while."""
        self._machine = None
        self._life += 1
        self._timeline.after(self._rng.uniform(0.1, 20.0), self.start)

    def cut(self, seconds: float) -> None:
        """Unplug the cable for a while."""
        self.online = False

        def heal() -> None:
            self.online = True
            self._happen(core.Connected())

        self._timeline.after(seconds, heal)

    def hear(self, message: messages.ToAgent) -> None:
        """Take a message from the control link."""
        if self.online:
            self._happen(message)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _happen(self, event: core.AnyEvent) -> None:
        if self._machine is None:
            return
        if isinstance(event, messages.Verdict) and event.code != "accepted":
            assert event.text, f"refused without a reason: {event}"
        self._carry_out(self._machine.handle(event, self._timeline.now))
        self._plan_tick()

    def _plan_tick(self) -> None:
        if self._machine is not None and (at := self._machine.wake_at) is not None:
            self._later(max(0.0, at - self._timeline.now), lambda: self._happen(core.Tick()))

    def _later(self, delay: float, act: Callable[[], None]) -> None:
        """Plan something that only this life of the process will see."""
        life = self._life
        self._timeline.after(delay, lambda: act() if life == self._life else None)

    def _carry_out(self, instructions: list[core.Instruction]) -> None:
        for instruction in instructions:
            if not self.calm and self._rng.random() < self._faults.crash_agent:
                self.crash()
                return
            self._carry_out_one(instruction)
            if self._machine is None:
                return

    def _carry_out_one(self, instruction: core.Instruction) -> None:
        match instruction:
            case core.Save(entry, lineage):
                self._note_promotion(entry, lineage)
                self.entry = entry
                if lineage is not None:
                    self.lineages[lineage.run] = lineage
                self._sweep()
            case core.Forget(run, entry):
                self.entry = entry
                self.lineages.pop(run, None)
                self._sweep()
            case core.Question(ask):
                self._ask(ask)
            case core.Judge(entry):
                self._judge(entry)
            case core.Fetch(entry):
                self._fetch(entry)
            case core.Train(entry, state):
                self._train(entry, state)
            case core.Announce(entry):
                self._announce(entry)
            case core.Upload(entry, grant):
                self._upload(entry, grant)
            case core.Say(message):
                self._say(message)

    def _note_promotion(self, entry: core.Entry | None, lineage: core.Lineage | None) -> None:
        before = self.entry
        if entry is None and lineage is not None and before is not None and before.reply is not None:
            if lineage.newest == before.reply.digest:
                self.told[before.notice.run, before.notice.n] = before.reply.digest

    def _sweep(self) -> None:
        """Remove files that the journal does not name."""
        named = {state for lineage in self.lineages.values() for _, state in lineage.kept}
        if self.entry is not None:
            named.add(self.entry.state)
            named.add(self.entry.reply.digest if self.entry.reply else None)
        self.files = {digest: data for digest, data in self.files.items() if digest in named}

    def _ask(self, ask: Ask) -> None:
        def answered(answer: messages.Answer | None) -> None:
            self._happen(core.AskFailed() if answer is None else core.Answered(answer))

        life = self._life
        if not self.online:
            self._later(5.0, lambda: answered(None))
            return
        self._hub.ask(self.agent, ask, lambda answer: answered(answer) if life == self._life else None)

    def _judge(self, entry: core.Entry) -> None:
        refuses = not self.calm and self._rng.random() < self._faults.decline
        verdict = core.Judged(entry.order, *(("battery", "battery 11% < 20%") if refuses else ("", "")))
        self._later(0.01, lambda: self._happen(verdict))

    def _fetch(self, entry: core.Entry) -> None:
        grant, life = entry.notice.payload, self._life
        if grant.inline is not None:
            self._later(0.01, lambda: self._happen(core.Fetched(entry.order)))
            return

        def done(data: bytes | None) -> None:
            if life != self._life or self._machine is None or self._machine.entry is None:
                return
            if self._machine.entry.order != entry.order:
                return
            if data is None:
                self._later(self._rng.uniform(1, 5), lambda: self._fetch(entry))
            else:
                self._happen(core.Fetched(entry.order))

        self._hub.fetch(self.agent, grant.blob.digest, done)

    def _train(self, entry: core.Entry, state: Digest | None) -> None:
        began = b"" if state is None else self.files[state]
        noise = self._rng.getrandbits(32) if self._faults.noisy else 0
        reply = train(entry.notice.payload.blob.digest, began, noise, agent=self.agent, n=entry.notice.n)
        left = state_after(began, entry.notice.payload.blob.digest)

        def done() -> None:
            if self._machine is None or self._machine.entry is None or self._machine.entry.order != entry.order:
                return
            reply_blob, state_blob = blocks_of([reply]), blocks_of([left])
            self.files |= {reply_blob.digest: reply, state_blob.digest: left}
            self._happen(core.Worked(entry.order, BlobRef(reply_blob.digest, len(reply)), state_blob.digest))

        self._later(self._rng.uniform(0.5, 10.0), done)

    def _announce(self, entry: core.Entry) -> None:
        assert entry.reply is not None
        data, notice = self.files[entry.reply.digest], entry.notice
        inline = data if len(data) <= INLINE else None
        self._say(
            Reply(run=notice.run, n=notice.n, order=entry.order, digest=entry.reply.digest, size=entry.reply.size,
                  attempt=notice.attempt, inline=inline)
        )  # fmt: skip

    def _upload(self, entry: core.Entry, grant: messages.Grant) -> None:
        assert entry.reply is not None
        digest, life = entry.reply.digest, self._life

        def done(complete: bool) -> None:
            if life == self._life:
                self._happen(core.Uploaded(entry.order, digest) if complete else core.UploadFailed(entry.order))

        if self.online and digest in self.files:
            self._hub.upload(self.agent, self.files[digest], done)
        else:
            self._later(3.0, lambda: done(False))

    def _say(self, message: messages.FromAgent) -> None:
        if self.online:
            self._hub.say(self.agent, message)
