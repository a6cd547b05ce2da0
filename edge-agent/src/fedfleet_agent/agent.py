"""Carries out what the task machine says, and tells it what happened. Everything here runs in the loop's thread.

What waits, disk and network, is an errand; its end comes back through the loop. A notice is acknowledged to the broker
when what follows from it is journalled.
"""

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from fedfleet_agent import core, supervisor
from fedfleet_agent.blobs import BlobFolder
from fedfleet_agent.carriage import Carriage, Mover
from fedfleet_agent.config import Config
from fedfleet_agent.eligibility import Eligible, Ineligible
from fedfleet_agent.errands import Errands
from fedfleet_agent.errors import AgentError, DiskFull, HubRefused
from fedfleet_agent.journal import Journal, LedgerLine
from fedfleet_agent.lease import LeaseKeeper
from fedfleet_agent.output import Forwarder
from fedfleet_agent.training import Trainers, Training
from fedfleet_protocol.errors import ProtocolError
from fedfleet_protocol.ids import AgentId, Digest, Order, RunId
from fedfleet_protocol.messages import INLINE_BYTES, Answer, Ask, Decline, FromAgent, Notice, Reply, ToAgent
from fedfleet_protocol.reasons import DECLINE
from fedfleet_protocol.task import Stage
from fedfleet_protocol.trust import check_bundle

_log = logging.getLogger(__name__)
_ENDS_WORK = frozenset({"paused", "battery", "mains", "window"})
"""Reasons that end what is being trained already; load and memory are the training's own doing."""
_RECENT_RUNS = 4


class Surroundings(Protocol):
    """What the agent acts upon; its composition root makes it."""

    @property
    def config(self) -> Config:
        """The configuration in force."""
        ...

    def say(self, message: FromAgent) -> bool:
        """Send a message over the control link; return False if it could not be sent. From any thread."""
        ...

    def ask(self, question: Ask) -> Answer:
        """Return the coordinator's answer; waits. Raises `AgentError` or `ProtocolError` if there is none."""
        ...

    def transfer(self) -> Mover:
        """Return what moves blobs with the certificate in force. From any thread."""
        ...

    def judge(self) -> Eligible | Ineligible:
        """Return whether the device may train now."""
        ...


class Agent:
    """One device's part in the exchange contract.

    Args:
        agent: its id.
        post: has something called in the loop's thread; from any thread.
        clock: seconds, monotonic, the loop's.

    Attributes:
        trouble: what keeps it from its work, for a person; empty if nothing does.
    """

    def __init__(
        self,
        *,
        agent: AgentId,
        around: Surroundings,
        journal: Journal,
        blobs: BlobFolder,
        trainers: Trainers,
        post: Callable[[Callable[[], None]], None],
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.trouble = ""
        self._id, self._around, self._journal, self._blobs = agent, around, journal, blobs
        self._post, self._clock, self._rng = post, clock, rng
        self._errands = Errands()
        self._lease = LeaseKeeper(around.say)
        self._output = Forwarder(around.say, clock)
        self._carriage = Carriage(
            around.transfer,
            blobs,
            self._errands,
            rng,
            happened=self._hear_of,
            ask=lambda: post(self.connected),
            moved=lambda _: self._lease.moved(),
        )
        self._training = Training(
            agent=agent,
            trainers=trainers,
            blobs=blobs,
            config=lambda: around.config,
            errands=self._errands,
            post=post,
            clock=clock,
            rng=rng,
            happened=self.happened,
            printed=self._printed,
            moved=self._lease.moved,
        )
        self._events: deque[core.AnyEvent] = deque()
        self._busy = False
        self._deadline = 0.0
        self._ledger: list[LedgerLine] = []
        self._recent: dict[RunId, tuple[Digest, Digest]] = {}
        self._saved: core.Entry | None = None
        self._core = self._from_journal()

    # --- what the loop calls -----------------------------------------------------------------------------------------

    @property
    def entry(self) -> core.Entry | None:
        """The task at hand."""
        return self._core.entry

    @property
    def stage(self) -> Stage:
        """Where the task at hand is."""
        return self._core.stage

    def start(self) -> None:
        """Go on where the journal says."""
        self._sweep()
        if self._core.entry is not None:
            self._hold(self._core.entry.notice)
        self._carry_out(self._core.start(self._clock()))
        self._drain()

    def hear(self, message: ToAgent, ack: Callable[[], None]) -> None:
        """Take a message from the control link; `ack` is called when what follows from it is journalled."""
        self.happened(message)
        ack()

    def connected(self) -> None:
        """The control link is up, or there is another reason to ask the coordinator."""
        self.happened(core.Connected())

    def happened(self, event: core.AnyEvent) -> None:
        """Tell the task machine, and carry out what it says."""
        self._events.append(event)
        self._drain()

    def unfit(self, why: Ineligible) -> None:
        """Give back what is not done yet, if the owner's reason is one that ends work."""
        entry = self._core.entry
        if why.code in _ENDS_WORK and entry is not None and entry.reply is None:
            self._stop(entry.order)
            self.happened(core.Failed(entry.order, why.code, why.text))

    def look(self) -> float | None:
        """Do what time demands; return in how many seconds to look again at the latest."""
        waits = [self._training.look()]
        at = self._core.wake_at
        if at is not None and self._clock() >= at:
            self.happened(core.Tick())
            at = self._core.wake_at
        if at is not None:
            waits.append(at - self._clock())
        return min((wait for wait in waits if wait is not None), default=None)

    def close(self) -> None:
        """End what is under way; the journal keeps the task."""
        if self._core.entry is not None:
            self._stop(self._core.entry.order)
        self._lease.close()
        self._errands.close(timeout_s=5.0)

    # --- instructions ------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Take events one after the other; one that an instruction causes at once waits for those before it."""
        if self._busy:
            return
        self._busy = True
        try:
            while self._events:
                self._carry_out(self._core.handle(self._events.popleft(), self._clock()))
        finally:
            self._busy = False

    def _carry_out(self, instructions: list[core.Instruction]) -> None:
        for instruction in instructions:
            try:
                self._do(instruction)
            except DiskFull as error:
                if isinstance(instruction, core.Save) and instruction.entry and not instruction.entry.reply:
                    self._give_back(instruction.entry.notice, error)
                    return
                raise

    def _do(self, instruction: core.Instruction) -> None:
        match instruction:
            case core.Save(entry, lineage):
                self._save(entry, lineage)
            case core.Forget(run, entry):
                self._forget(run, entry)
            case core.Question(ask):
                self._errands.send("ask", lambda: self._ask(ask))
            case core.Judge(entry):
                verdict = self._around.judge()
                why = (verdict.code, verdict.text) if isinstance(verdict, Ineligible) else ("", "")
                self.happened(core.Judged(entry.order, *why))
            case core.Fetch(entry):
                self._fetch(entry.notice)
            case core.Train(entry, state):
                self._train(entry, state)
            case core.Cancel(order):
                self._stop(order)
            case core.Announce(entry):
                self._announce(entry)
            case core.Upload(entry, grant):
                notice = entry.notice
                self._carriage.upload(entry, grant, lost=lambda text: self._post(lambda: self._lost(notice, text)))
            case core.Say(message):
                self._decline(message)
            case _:
                raise TypeError(f"no instruction: {instruction!r}")

    def _save(self, entry: core.Entry | None, lineage: core.Lineage | None) -> None:
        lines = _lines(self._saved, entry, lineage)
        self._journal.save(entry, lineage, [*self._ledger, *lines])
        for line in lines:
            _log.info("%s: %s", line.what, line.text, extra={"run": line.run, "n": line.n})
        self._saved = entry
        self._ledger.clear()
        if entry is None:
            self._let_go()
        else:
            self._hold(entry.notice)

    def _forget(self, run: RunId, entry: core.Entry | None) -> None:
        self._journal.forget(run, entry)
        self._saved = entry
        self._training.over(run)
        self._recent.pop(run, None)
        if entry is None:
            self._let_go()

    def _hold(self, notice: Notice) -> None:
        """Count the notice's seconds from now, and use its grants where older ones were refused."""
        self._deadline = self._clock() + notice.remaining_s
        self._training.extend(notice.order, self._deadline)
        self._lease.hold(notice)
        self._carriage.renewed(notice)

    def _let_go(self) -> None:
        self._lease.drop()
        self._sweep()

    def _ask(self, question: Ask) -> None:
        event: core.AnyEvent
        try:
            event, trouble = core.Answered(self._around.ask(question)), ""
        except (AgentError, ProtocolError) as error:
            event, trouble = core.AskFailed(), str(error)
            _log.log(logging.WARNING if isinstance(error, HubRefused) else logging.INFO, "no answer: %s", error)

        def heard() -> None:
            self.trouble = trouble
            self.happened(event)

        self._post(heard)

    def _fetch(self, notice: Notice) -> None:
        bundle = notice.bundle.blob.digest
        try:
            name = check_bundle(bundle, notice.signature, notice.publisher, self._around.config.trusted)
        except ProtocolError as error:
            self.happened(core.Failed(notice.order, "untrusted", str(error)))
            return
        self._ledger.append(_line("trusted", notice, f"bundle {bundle[:12]} carries the signature of {name!r}"))
        self._recent.pop(notice.run, None)
        self._recent[notice.run] = (bundle, notice.payload.blob.digest)
        while len(self._recent) > _RECENT_RUNS:
            del self._recent[next(iter(self._recent))]
        self._carriage.fetch(notice, self._around.config)

    def _train(self, entry: core.Entry, state: Digest | None) -> None:
        if state is not None and not self._blobs.has(state):
            self.happened(core.Failed(entry.order, "state_lost", DECLINE["state_lost"]))
            return
        self._training.begin(entry, state, until=self._deadline)

    def _announce(self, entry: core.Entry) -> None:
        notice, reply = entry.notice, entry.reply
        assert reply is not None
        try:
            inline = self._blobs.path(reply.digest).read_bytes() if reply.size <= INLINE_BYTES else None
        except OSError as error:
            self._lost(notice, f"its reply cannot be read any more: {error.strerror}")
            return
        run, n, attempt = notice.run, notice.n, notice.attempt
        self._around.say(
            Reply(
                run=run, n=n, order=notice.order, digest=reply.digest, size=reply.size, attempt=attempt, inline=inline
            )
        )

    def _stop(self, order: Order) -> None:
        self._carriage.cancel(order)
        self._training.cancel(order)

    def _decline(self, message: Decline) -> None:
        _log.info("declined: %s", message.text, extra={"run": message.run, "n": message.n, "code": message.code})
        line = LedgerLine(time.time(), "declined", message.run, message.n, f"{message.code}: {message.text}")
        try:
            self._journal.save(self._saved, None, [line])
        except DiskFull as error:
            _log.error("%s", error)  # the hub is told all the same
        self._around.say(message)

    # --- when the disk fails -----------------------------------------------------------------------------------------

    def _give_back(self, notice: Notice, error: DiskFull) -> None:
        """Go on as the journal says. A task that never got into it is declined, so that nobody waits for it."""
        self.trouble = str(error)
        self._core = self._from_journal()
        kept = self._core.entry
        if kept is None or kept.order != notice.order:
            self._decline(Decline(run=notice.run, n=notice.n, order=notice.order, code="disk", text=str(error)))

    def _from_journal(self) -> core.Core:
        held = self._journal.load()
        self._saved = held.entry
        return core.Core(Ask(agent=self._id), self._rng, held.entry, held.lineages)

    def _lost(self, notice: Notice, text: str) -> None:
        """A finished reply is gone from the disk: say so; the verdict that comes back ends the task."""
        self._decline(Decline(run=notice.run, n=notice.n, order=notice.order, code="disk", text=text))

    def _sweep(self) -> None:
        """Remove files that nothing needs; only without a task, for its errands may be writing some."""
        if self._core.entry is None:
            recent = {digest for pair in self._recent.values() for digest in pair}
            self._blobs.sweep(self._journal.load().named | recent)

    # --- what comes back ---------------------------------------------------------------------------------------------

    def _hear_of(self, event: core.AnyEvent) -> None:
        """Take an event from another thread."""
        self._post(lambda: self.happened(event))

    def _printed(self, output: supervisor.Output) -> None:
        entry, config = self._core.entry, self._around.config
        if entry is not None and config.egress.logs:
            rate = config.limits.log_lines_per_s
            self._output.forward(output.run, entry.notice.n, output.lines, output.dropped, lines_per_s=rate)


def _lines(before: core.Entry | None, after: core.Entry | None, lineage: core.Lineage | None) -> list[LedgerLine]:
    """Return what the owner's ledger says of a change of the journal."""
    if after is not None and after.reply is not None and (before is None or before.reply is None):
        return [_line("ready", after.notice, f"reply {after.reply.digest[:12]} of {after.reply.size} bytes may leave")]
    if after is None and before is not None and lineage is not None:
        taken = before.reply is not None and lineage.newest == before.reply.digest
        return [_line("accepted" if taken else "discarded", before.notice, "the coordinator has decided")]
    return []


def _line(what: str, notice: Notice, text: str) -> LedgerLine:
    return LedgerLine(time.time(), what, notice.run, notice.n, text)
