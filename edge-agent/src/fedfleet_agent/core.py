"""The agent's half of the exchange contract, without I/O: `handle(event, now) -> instructions`. The rules first.

- The journal holds at most one task, and per run the newest accepted app state and the one before.
- Notices are hints. One is acted upon directly only if the journal is empty, its number is above the last settled one
  and its base is the newest state; any other is only a reason to ask. Only an answer to the agent's own question may
  roll it back, and only if nothing was settled since the question was put.
- The work starts from the state that the order names. What it leaves behind is tentative until the reply is accepted.
  Reply, tentative state and ledger are journalled at once.
- The task leaves the journal only on a verdict that quotes its order, and its digest if it quotes one.
- A `need` is no verdict: upload and reply again.
- TRAINING lives in memory: after a crash the task is ASSIGNED, and starts again from the same state.
- Seconds are counted from their arrival by a monotonic clock. A deadline that passes here is a reason to ask.
- While the agent keeps states of runs it asks once an hour: the hint that a run is over may have been lost.

Instructions are carried out in order; a `Save` is durable before the next one begins.
"""

import random
from collections.abc import Iterable

import msgspec

from fedfleet_agent.instructions import (
    Announce,
    Answered,
    AnyEvent,
    AskFailed,
    Cancel,
    Connected,
    Entry,
    Failed,
    Fetch,
    Fetched,
    Forget,
    Instruction,
    Judge,
    Judged,
    Lineage,
    Question,
    Save,
    Say,
    Tick,
    Train,
    Upload,
    Uploaded,
    UploadFailed,
    Worked,
)
from fedfleet_agent.transitions import Action, Event, Facts, Rule, decide
from fedfleet_protocol.ids import Digest, Order, RunId
from fedfleet_protocol.messages import Answer, Ask, Decline, Held, Need, Notice, Over, Verdict
from fedfleet_protocol.reasons import DECLINE
from fedfleet_protocol.task import Stage

__all__ = [
    "Announce",
    "Answered",
    "AnyEvent",
    "AskFailed",
    "Cancel",
    "Connected",
    "Core",
    "Entry",
    "Failed",
    "Fetch",
    "Fetched",
    "Forget",
    "Instruction",
    "Judge",
    "Judged",
    "Lineage",
    "Question",
    "Save",
    "Say",
    "Tick",
    "Train",
    "Upload",
    "UploadFailed",
    "Uploaded",
    "Worked",
]
"""The words of the machine are told with it: `core.Save` where a `Core` said so."""

_RETRY_S = (2.0, 60.0)
_DEADLINE_ASK_S = 10.0
_KEPT_ASK_S = 3600.0


class Core:
    """The state machine of one agent.

    Args:
        entry, lineages: what the journal holds.
        ask: the agent's question without contents; its id is in it.
        rng: for the jitter of repetitions.
    """

    def __init__(self, ask: Ask, rng: random.Random, entry: Entry | None = None, lineages: Iterable[Lineage] = ()):
        self._ask = ask
        self._rng = rng
        self.entry = entry
        self.lineages = {lineage.run: lineage for lineage in lineages}
        self._training = False
        self._asking = False
        self._ask_again = False
        self._changed = False
        self._other = False
        self._tries = 0
        self._retry_at: float | None = None
        self._deadline_at: float | None = None
        self._kept_at: float | None = None
        self._done: list[Instruction] = []

    @property
    def stage(self) -> Stage:
        """Where the task at hand is."""
        if self.entry is None:
            return Stage.IDLE
        if self.entry.reply is not None:
            return Stage.READY
        return Stage.TRAINING if self._training else Stage.ASSIGNED

    @property
    def wake_at(self) -> float | None:
        """When the next `Tick` is due, by the clock of `now`."""
        times = [at for at in (self._retry_at, self._deadline_at, self._kept_at) if at is not None]
        return min(times) if times else None

    def start(self, now: float) -> list[Instruction]:
        """Return what a process that has just read its journal does first."""
        self._done = []
        if self.entry is not None:
            self._deadline_at = now + self.entry.notice.remaining_s
            if self.stage is Stage.ASSIGNED:
                self._done.append(Judge(self.entry))
        return self._done

    def handle(self, event: AnyEvent, now: float) -> list[Instruction]:
        """Take an event; return what is to be done, in order."""
        self._done = []
        match event:
            case Notice():
                self._on_task(Event.NOTICE, event, now)
            case Need():
                self._on_need(event, now)
            case Verdict():
                self._on_verdict(event, now)
            case Over():
                self._forget(event.run)
            case Connected():
                self._apply(decide(self.stage, Event.CONNECTED, Facts()), None, now)
                self._question()
            case Answered():
                self._on_answer(event.answer, now)
            case AskFailed():
                self._asking = False
                self._retry_later(now)
            case Tick():
                self._on_tick(now)
            case UploadFailed():
                if self.entry is not None and self.entry.order == event.order:
                    self._retry_later(now)
            case _:
                self._on_work(event, now)
        if not self.lineages:
            self._kept_at = None
        elif self._kept_at is None:
            self._kept_at = now + _KEPT_ASK_S * (0.75 + 0.5 * self._rng.random())
        return self._done

    # --- events ------------------------------------------------------------------------------------------------------

    def _on_task(self, kind: Event, notice: Notice, now: float) -> None:
        lineage = self._lineage(notice.run)
        facts = Facts(
            same=self.entry is not None and self.entry.order == notice.order,
            next=notice.n > lineage.last and notice.base == lineage.newest,
            held=lineage.holds(notice.base),
        )
        rule = decide(self.stage, kind, facts)
        if rule is None:
            self._other = True
        self._apply(rule, notice, now)

    def _on_need(self, need: Need, now: float) -> None:
        rule = decide(self.stage, Event.NEED, self._quotes(need.order, need.digest))
        if rule is not None and self.entry is not None:
            self._retry_at = None
            self._done.append(Upload(self.entry, need.upload))

    def _on_verdict(self, verdict: Verdict, now: float) -> None:
        rule = decide(self.stage, Event(verdict.code), self._quotes(verdict.order, verdict.digest))
        self._apply(rule, None, now)

    def _on_answer(self, answer: Answer, now: float) -> None:
        self._asking = False
        self._tries = 0
        changed, self._changed = self._changed, False
        for verdict in answer.verdicts:
            self._on_verdict(verdict, now)
        for run in answer.over:
            self._forget(run)
        if changed or self._ask_again:
            self._ask_again = False
            self._question()
            return
        for notice in answer.open:
            self._on_task(Event.OPEN, notice, now)
        self._changed = False

    def _on_work(self, event: AnyEvent, now: float) -> None:
        match event:
            case Judged():
                kind = Event.INELIGIBLE if event.code else Event.ELIGIBLE
            case Fetched():
                kind = Event.FETCHED
            case Worked():
                kind = Event.RESULT
            case Failed():
                kind = Event.FAILED
            case Uploaded():
                kind = Event.UPLOADED
            case _:
                raise TypeError(f"no event: {event!r}")
        facts = self._quotes(event.order, getattr(event, "digest", None))
        rule = decide(self.stage, kind, facts)
        if rule is None:
            return
        if isinstance(event, Worked):
            self._finish(event, now)
        else:
            self._apply(rule, event, now)

    def _on_tick(self, now: float) -> None:
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
            self._question()
            if self.stage is Stage.READY:
                self._retry_later(now)
        if self._deadline_at is not None and now >= self._deadline_at:
            self._deadline_at = now + _DEADLINE_ASK_S
            self._question()
        if self._kept_at is not None and now >= self._kept_at:
            self._kept_at = None
            self._question()

    # --- actions -----------------------------------------------------------------------------------------------------

    def _apply(self, rule: Rule | None, cause: AnyEvent | None, now: float) -> None:
        if rule is None:
            return
        match rule.action:
            case Action.ASSIGN if isinstance(cause, Notice):
                self._assign(cause, now)
            case Action.ADOPT | Action.ANNOUNCE if isinstance(cause, Notice):
                self._adopt(cause, now, announce=rule.action is Action.ANNOUNCE)
            case Action.STATE_LOST if isinstance(cause, Notice):
                self._say_decline(cause, "state_lost", DECLINE["state_lost"])
            case Action.ASK:
                self._other = self.entry is not None
                self._question()
            case Action.FETCH if self.entry is not None:
                self._done.append(Fetch(self.entry))
            case Action.TRAIN if self.entry is not None:
                self._training = True
                state = self._lineage(self.entry.notice.run).state_after(self.entry.notice.base)
                self._done.append(Train(self.entry, state))
            case Action.DECLINE if isinstance(cause, Judged | Failed) and self.entry is not None:
                notice = self.entry.notice
                self._settle(None)
                self._say_decline(notice, cause.code, cause.text)
            case Action.REPLY if self.entry is not None:
                self._done.append(Announce(self.entry))
                self._retry_later(now)
            case Action.PROMOTE | Action.DISCARD | Action.DROP:
                self._close(rule.action)

    def _assign(self, notice: Notice, now: float) -> None:
        self.entry = Entry(notice)
        self._training = False
        self._changed = True
        self._tries = 0
        self._retry_at = None
        self._deadline_at = now + notice.remaining_s
        self._done += [Save(self.entry), Judge(self.entry)]

    def _adopt(self, notice: Notice, now: float, *, announce: bool) -> None:
        """Take over the newer attempt and grants; work that is under way goes on."""
        assert self.entry is not None
        self._deadline_at = now + notice.remaining_s
        held = self.entry.notice
        if notice.bundle.blob == held.bundle.blob:
            bundle = notice.bundle
        else:
            bundle = held.bundle  # the order does not name the code: what was vouched for stays what runs
        adopted = msgspec.structs.replace(
            notice, bundle=bundle, run_config=held.run_config, publisher=held.publisher, signature=held.signature
        )
        self.entry = msgspec.structs.replace(self.entry, notice=adopted)
        self._done.append(Save(self.entry))
        if announce:
            self._done.append(Announce(self.entry))
            self._retry_later(now)

    def _finish(self, worked: Worked, now: float) -> None:
        assert self.entry is not None
        self.entry = msgspec.structs.replace(self.entry, reply=worked.reply, state=worked.state)
        self._training = False
        self._tries = 0
        self._done += [Save(self.entry), Announce(self.entry)]
        self._retry_later(now)

    def _close(self, action: Action) -> None:
        """Let the task go as a verdict says: its state promoted or discarded."""
        entry = self.entry
        assert entry is not None
        lineage = self._lineage(entry.notice.run)
        if action is not Action.DROP:
            lineage = msgspec.structs.replace(lineage, last=max(lineage.last, entry.notice.n))
        if action is Action.PROMOTE and entry.reply is not None:
            before = tuple(kept for kept in lineage.kept if kept[0] == entry.notice.base)
            lineage = msgspec.structs.replace(lineage, kept=((entry.reply.digest, entry.state), *before)[:2])
        else:
            self._done.append(Cancel(entry.order))
        self._settle(lineage)

    def _settle(self, lineage: Lineage | None) -> None:
        if lineage is not None:
            self.lineages[lineage.run] = lineage
        self._let_go()
        self._done.append(Save(None, lineage))
        if self._other:
            self._other = False
            self._question()

    def _let_go(self) -> None:
        self.entry = None
        self._training = False
        self._changed = True
        self._tries = 0
        self._retry_at = self._deadline_at = None

    def _forget(self, run: RunId) -> None:
        if self.entry is not None and self.entry.notice.run == run:
            self._done.append(Cancel(self.entry.order))
            self._let_go()
        elif run not in self.lineages:
            return
        self.lineages.pop(run, None)
        self._done.append(Forget(run, self.entry))
        if self.entry is None and self._other:
            self._other = False
            self._question()

    # --- saying ------------------------------------------------------------------------------------------------------

    def _question(self) -> None:
        """Ask, unless a question is out already: then once more when its answer is here."""
        if self._asking:
            self._ask_again = True
            return
        self._asking = True
        self._ask_again = False
        self._changed = False
        held: tuple[Held, ...] = ()
        if self.entry is not None:
            notice, reply = self.entry.notice, self.entry.reply
            held = (Held(notice.run, notice.n, notice.order, reply.digest if reply else None),)
        self._done.append(Question(msgspec.structs.replace(self._ask, held=held, runs=tuple(sorted(self.lineages)))))

    def _say_decline(self, notice: Notice, code: str, text: str) -> None:
        self._done.append(Say(Decline(run=notice.run, n=notice.n, order=notice.order, code=code, text=text)))

    def _retry_later(self, now: float) -> None:
        """Exponential back-off with full jitter: a fleet that lost its hub must not come back in one instant."""
        first, most = _RETRY_S
        ceiling = min(most, first * 2**self._tries)
        self._tries += 1
        self._retry_at = now + ceiling / 2 + self._rng.random() * ceiling / 2

    def _quotes(self, order: Order, digest: Digest | None) -> Facts:
        if self.entry is None or self.entry.order != order:
            return Facts()
        reply = self.entry.reply.digest if self.entry.reply else None
        same = digest is None or digest == reply
        return Facts(order=True, same=same, digest=same and digest is not None)

    def _lineage(self, run: RunId) -> Lineage:
        return self.lineages.get(run) or Lineage(run)
