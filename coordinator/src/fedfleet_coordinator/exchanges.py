"""The life of exchanges and their tasks, at the coordinator. The rules first; the table is in `transitions`.

- A reply is accepted when its blob is durable and then its row is committed, in one transaction with the guard inside.
- An order names what is to be done, by whom and from which state; what quotes another order changes nothing.
- While the exchange is open the first verified reply to the order is accepted, whatever its attempt. Attempts are
  labels. `superseded` means that another digest was accepted.
- The tasks of one agent in one run are published one at a time, by exchange number: the base of the next is the last
  accepted reply.
- A missing blob is answered with `need`, which is not a verdict.
- An exchange closes when all its tasks are settled, when its quorum is reached and the grace time is over, at its
  deadline, or when its run ends. The close fixes the accepted set. Nothing is accepted after it, except where the
  exchange keeps late updates: there a task stays answerable until the same agent's next task is published, at most
  for the run's deadline once more.
- Time is the hub's durable up-time, which stands still for a settle time after each start: in it nothing closes
  because of the time. Leases live in memory: a missed one only makes the notice go out again.

Everything here reads and writes rows through a transaction and says what is to be sent; it neither waits nor sends.
"""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import msgspec

from fedfleet_coordinator import fleet
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.errors import BadRequest, NotAllowed, RunIsOver, StaleEpoch
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.rows import Agent, Blob, Exchange, Position, Ref, Run, Task, Turn
from fedfleet_coordinator.store.port import Tx
from fedfleet_coordinator.transitions import Action, Event, Facts, Rule, decide
from fedfleet_protocol.blocks import blocks_of
from fedfleet_protocol.exchange import ExchangeState, TaskState, order_of
from fedfleet_protocol.ids import AgentId, Digest, Order, RunId, parse_agent_id
from fedfleet_protocol.messages import (
    Answer,
    Ask,
    BlobRef,
    Checkpoint,
    Decline,
    ExchangeView,
    Grant,
    Held,
    Need,
    Notice,
    Open,
    Progress,
    Reply,
    ReplyRef,
    Verdict,
)
from fedfleet_protocol.reasons import CLOSE, DECLINE

MAX_DEADLINE_S = 90 * 24 * 3600.0


class Granter(Protocol):
    """Makes capabilities."""

    def grant(self, *, method: str, blob: BlobRef, agent: AgentId, run: RunId, n: int, expires_wall: float) -> str:
        """Return the proof that `agent` may GET or PUT this blob until then."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What the coordinator's operator sets.

    Attributes:
        lease_s: an agent shows progress within this time, or its notice is sent again.
        max_reply_bytes: a larger reply is declined in the agent's place.
        capability_s: how long a capability holds; a new one is had by asking.
    """

    lease_s: float = 60.0
    max_reply_bytes: int = 2 << 30
    capability_s: float = 3600.0


class Exchanges:
    """The transitions of exchanges and tasks over a store; all but the leases is in the store."""

    def __init__(self, granter: Granter, limits: Limits = Limits()) -> None:
        self._granter = granter
        self._limits = limits
        self._leases: dict[tuple[RunId, int, AgentId], float] = {}
        self._kept: dict[tuple[RunId, int], float] = {}
        self._awaited: dict[AgentId, Reply] = {}

    # --- what a runner asks ------------------------------------------------------------------------------------------

    def open(self, tx: Tx, request: Open, now: Now, out: Outbox) -> ExchangeView:
        """Open exchange `request.n`, or return it if it was opened with the same request before.

        A view with `need` names payloads to be stored first; nothing was changed then. A view whose `closed` is
        "nondeterministic" means that the number was opened with another request: the caller ends the run.

        Raises:
            StaleEpoch: another runner has taken over. RunIsOver: there is nothing to open any more.
            BadRequest: the number is not the next one. NotAllowed: the run does not select an agent of the cohort.
        """
        run = writable(tx, request.run, request.epoch)
        digest = _request_digest(request)
        exchange = tx.get(Exchange, run.run, request.n)
        if exchange is not None:
            return self.view(tx, run.run, request.n) if exchange.request == digest else _differs(request)
        if not request.deadline_s > 0 or not request.grace_s >= 0:  # neither is true of NaN
            raise BadRequest(f"a deadline of {request.deadline_s} s and a grace of {request.grace_s} s")
        if request.n != run.exchanges + 1:
            raise BadRequest(f"exchange {request.n} of run {run.run}: the next one is {run.exchanges + 1}")
        for agent in request.cohort:
            _check_selected(tx, run, parse_agent_id(agent))
        payloads = {blob.digest for blob in request.cohort.values()}
        need = tuple(sorted(digest for digest in payloads if tx.get(Blob, digest) is None))
        if need:
            return ExchangeView(run=run.run, n=request.n, need=need)
        exchange = Exchange(
            run=run.run, n=request.n, request=digest, label=request.label,
            deadline_at=now.up + min(request.deadline_s, MAX_DEADLINE_S),
            quorum=request.quorum, grace_s=request.grace_s, late=request.late, expected=len(request.cohort),
            opened_wall=now.wall,
        )  # fmt: skip
        tx.put(msgspec.structs.replace(run, exchanges=request.n, barren=0), exchange)
        tx.put(*(Ref(digest=blob, holder=_payload_holder(exchange), run=run.run, n=exchange.n) for blob in payloads))
        for agent in sorted(request.cohort):
            self._add(tx, exchange, agent, request.cohort[agent], now, out)
        self._close_if_due(tx, run.run, request.n, now, out)
        out.changed(run.run)
        return self.view(tx, run.run, request.n)

    def view(self, tx: Tx, run: RunId, n: int) -> ExchangeView:
        """Return an exchange as its runner sees it: settled tasks in the order of agent ids.

        Where late replies are kept, those that will not come any more are among them, as late ones.

        Raises:
            BadRequest: there is no such exchange.
        """
        exchange = tx.get(Exchange, run, n)
        if exchange is None:
            raise BadRequest(f"run {run} has no exchange {n}")
        missed = (TaskState.MISSED,) if exchange.late == "keep" else ()
        states = (TaskState.ACCEPTED, TaskState.DECLINED, *missed)
        replies = tuple(
            ReplyRef(
                task.agent,
                BlobRef(task.reply, task.reply_size) if task.reply is not None else None,
                task.code,
                task.text,
                task.late or task.state is TaskState.MISSED,
            )
            for task in tx.find(Task, run=run, n=n, state=states)
        )
        return ExchangeView(run=run, n=n, closed=exchange.reason, expected=exchange.expected, replies=replies)

    def checkpoint(self, tx: Tx, request: Checkpoint, now: Now, out: Outbox) -> tuple[Digest, ...]:
        """Commit a round: a new runner goes on from here. Replies that the checkpoint covers lose their claim to stay.

        Returns:
            Blobs that must be stored first; nothing was changed then.

        Raises:
            StaleEpoch, RunIsOver: as `open`.
        """
        run = writable(tx, request.run, request.epoch)
        need = tuple(sorted(b.digest for b in request.blobs.values() if tx.get(Blob, b.digest) is None))
        if need:
            return need
        if not 1 <= request.next_n <= run.exchanges + 1:
            raise BadRequest(f"a checkpoint before exchange {request.next_n}; the next one is {run.exchanges + 1}")
        holder = f"checkpoint:{run.run}"
        wanted = {blob.digest for blob in request.blobs.values()}
        held = {ref.digest for ref in tx.find(Ref, holder=holder)}
        tx.put(*(Ref(digest=digest, holder=holder, run=run.run) for digest in wanted - held))
        tx.delete(*(Ref(digest=digest, holder=holder, run=run.run) for digest in held - wanted))
        before = tx.get(Position, run.run)
        first = max(request.keep_below, before.next_n if before else 1)
        for n in range(first, request.next_n):
            covered = [ref for ref in tx.find(Ref, run=run.run, n=n) if ref.holder.startswith("reply:")]
            tx.delete(*covered)
        blobs = {name: [blob.digest, blob.size] for name, blob in request.blobs.items()}
        tx.put(
            Position(run=run.run, next_n=request.next_n, next_answer=request.next_answer,
                     keep_below=request.keep_below, server_round=request.server_round, blobs=blobs),
            msgspec.structs.replace(run, server_round=request.server_round, barren=0),
        )  # fmt: skip
        out.changed(run.run)
        return ()

    # --- what an agent says ------------------------------------------------------------------------------------------

    def reply(self, tx: Tx, agent: AgentId, reply: Reply, now: Now, out: Outbox) -> None:
        """Accept a reply, or say what became of the order it quotes."""
        task = self._quoted(tx, agent, reply.run, reply.n, reply.order)
        if task is None:
            out.send(agent, _unknown(reply.order, reply.digest))
            return
        code = self._unfit(reply)
        facts = self._facts(tx, task)
        rule = decide(task.state, Event.REPLY, _with_reply(facts, task, reply, tx.get(Blob, reply.digest), code))
        self._on_reply(tx, rule, task, reply, code, now, out)

    def wants(self, agent: AgentId, digest: Digest) -> bool:
        """Whether this may be the reply that the agent announced last; which one that is was known before a restart."""
        reply = self._awaited.get(agent)
        return reply is None or reply.digest == digest

    def uploaded(self, tx: Tx, agent: AgentId, digest: Digest, now: Now, out: Outbox) -> None:
        """Settle the reply that waited for this blob, in the transaction that names the blob.

        Which reply waits is known in memory only. Where it is not, the agent announces it again, as it does anyway.
        """
        reply = self._awaited.get(agent)
        if reply is not None and reply.digest == digest:
            out.after_commit(partial(self._awaited.pop, agent, None))
            self.reply(tx, agent, reply, now, out)

    def decline(self, tx: Tx, agent: AgentId, decline: Decline, now: Now, out: Outbox) -> None:
        """Settle a task that its agent will not do."""
        task = self._quoted(tx, agent, decline.run, decline.n, decline.order)
        if task is None:
            return
        rule = decide(task.state, Event.DECLINE, self._facts(tx, task))
        if rule.action is Action.DECLINE:
            self._settle(tx, task, rule.next, now, out, code=decline.code[:40], text=decline.text[:500])

    def progress(self, tx: Tx, agent: AgentId, progress: Progress, now: Now, out: Outbox) -> None:
        """Renew the lease of a task, or tell its agent that the work is in vain."""
        task = self._quoted(tx, agent, progress.run, progress.n, progress.order)
        if task is None:
            out.send(agent, _unknown(progress.order, None))
            return
        rule = decide(task.state, Event.PROGRESS, self._facts(tx, task))
        if rule.action is Action.RENEW:
            self._leases[task.key] = now.up + self._limits.lease_s
        elif rule.action is Action.CLOSED:
            out.send(agent, _closed(task))

    def ask(self, tx: Tx, agent: AgentId, ask: Ask, now: Now, out: Outbox) -> Answer:
        """Return a verdict for each order held that is settled, the agent's open tasks, and which runs are over."""
        verdicts = [v for v in (self._verdict(tx, agent, held) for held in ask.held) if v is not None]
        over = []
        for run_id in dict.fromkeys((*ask.runs, *(held.run for held in ask.held))):
            run = tx.get(Run, run_id)
            if run is None or not run.live:
                over.append(run_id)
        notices = []
        for task in tx.find(Task, agent=agent, state=TaskState.PUBLISHED):
            if self._facts(tx, task).answerable:
                self._leases[task.key] = now.up + self._limits.lease_s
                notices.append(self._notice(tx, task, now))
        notices.sort(key=lambda notice: (-notice.priority, notice.run, notice.n))
        return Answer(verdicts=tuple(verdicts), open=tuple(notices), over=tuple(over))

    def awaits(self, tx: Tx, run: RunId, n: int, agent: AgentId) -> bool:
        """Whether a reply of this agent would still be accepted: who else uploads one only takes room."""
        task = tx.get(Task, run, n, agent)
        return task is not None and task.state is TaskState.PUBLISHED and self._facts(tx, task).answerable

    # --- what time and people do -------------------------------------------------------------------------------------

    def tick(self, tx: Tx, now: Now, out: Outbox) -> None:
        """Close what is due and send notices whose lease was missed."""
        for exchange in tx.find(Exchange, state=ExchangeState.OPEN):
            self._close_if_due(tx, exchange.run, exchange.n, now, out)
        for kept in [kept for kept, at in self._kept.items() if at <= now.up and not now.settling]:
            out.after_commit(partial(self._kept.pop, kept, None))
            self._give_up_late(tx, *kept, now, out)
        for key in [key for key, at in self._leases.items() if at <= now.up]:
            task = tx.get(Task, *key)
            if task is None or task.state is not TaskState.PUBLISHED or not self._facts(tx, task).answerable:
                del self._leases[key]
                continue
            rule = decide(task.state, Event.LEASE, self._facts(tx, task))
            if rule.action is Action.REPEAT:
                task = msgspec.structs.replace(task, attempt=task.attempt + 1)
                tx.put(task)
                self._say(tx, task, now, out)

    def recover(self, tx: Tx, now: Now) -> None:
        """Give every published task a fresh lease: what was in memory went with the process before this one."""
        for exchange in tx.find(Exchange, state=ExchangeState.OPEN):
            for task in tx.find(Task, run=exchange.run, n=exchange.n, state=TaskState.PUBLISHED):
                self._leases[task.key] = now.up + self._limits.lease_s
        for run in tx.find(Run, state="running", late="keep"):
            for exchange in tx.find(Exchange, run=run.run, state=ExchangeState.CLOSED):
                self._kept[exchange.key] = exchange.deadline_at + run.deadline_s

    def cancel(self, tx: Tx, run: RunId, now: Now, out: Outbox) -> None:
        """Close the open exchanges of a run that ends."""
        for exchange in tx.find(Exchange, run=run, state=ExchangeState.OPEN):
            self._close(tx, exchange, "cancelled", now, out)

    def suspend(self, tx: Tx, run: RunId, now: Now, out: Outbox) -> None:
        """Close the open exchanges of a run that goes on later, with the replies that are accepted by now."""
        for exchange in tx.find(Exchange, run=run, state=ExchangeState.OPEN):
            self._close(tx, exchange, "suspended", now, out)

    def withdraw(self, tx: Tx, agent: AgentId, now: Now, out: Outbox) -> None:
        """Settle the open tasks of an agent that is revoked."""
        for state in (TaskState.WAITING, TaskState.PUBLISHED):
            for found in tx.find(Task, agent=agent, state=state):
                task = tx.get(Task, *found.key)  # as the ones before left it
                if task is None or task.state.terminal or not self._facts(tx, task).answerable:
                    continue
                self._settle(tx, task, TaskState.DECLINED, now, out, code="revoked", text=f"agent {agent} was revoked")

    # --- inside ------------------------------------------------------------------------------------------------------

    def _add(self, tx: Tx, exchange: Exchange, agent: AgentId, payload: BlobRef, now: Now, out: Outbox) -> None:
        task = Task(run=exchange.run, n=exchange.n, agent=agent, payload=payload.digest, payload_size=payload.size)
        turn = tx.get(Turn, exchange.run, agent) or Turn(run=exchange.run, agent=agent)
        tx.put(task, msgspec.structs.replace(turn, waiting=turn.waiting + 1))
        enrolled = tx.get(Agent, agent)
        if enrolled is None or enrolled.state != "active":
            self._settle(tx, task, TaskState.DECLINED, now, out, code="revoked", text=DECLINE["revoked"])
            return
        self._take_turn(tx, exchange.run, agent, now, out, only=None if turn.waiting else task)

    def _take_turn(
        self, tx: Tx, run: RunId, agent: AgentId, now: Now, out: Outbox, *, only: Task | None = None
    ) -> None:
        """Publish the agent's next task in the run if its earlier ones are settled or their exchanges closed.

        Args:
            only: the one task that waits, if that is known: the search for it would write what is put so far to the
                store, for each agent of a large cohort.
        """
        turn = tx.get(Turn, run, agent)
        if turn is None or not turn.waiting:
            return
        current = tx.get(Task, run, turn.n, agent) if turn.n else None
        if current is not None and not current.state.terminal:
            exchange = tx.get(Exchange, run, turn.n)
            if exchange is not None and exchange.state is ExchangeState.OPEN:
                return
        first = (
            tx.find(Task, run=run, agent=agent, state=TaskState.WAITING, limit=1, order=("n",))
            if only is None
            else [only]
        )
        for task in first:
            rule = decide(task.state, Event.TURN, Facts(answerable=True))
            order = order_of(run=run, n=task.n, agent=agent, payload=task.payload, base=turn.base)
            published = msgspec.structs.replace(
                task, state=rule.next, base=turn.base, order=order, attempt=1, published_wall=now.wall
            )
            tx.put(published, msgspec.structs.replace(turn, n=task.n, waiting=turn.waiting - 1))
            self._say(tx, published, now, out)
            if current is not None and not current.state.terminal:
                passed = decide(current.state, Event.PASSED, Facts(answerable=False))
                tx.put(msgspec.structs.replace(current, state=passed.next, code="closed", settled_wall=now.wall))

    def _say(self, tx: Tx, task: Task, now: Now, out: Outbox) -> None:
        self._leases[task.key] = now.up + self._limits.lease_s
        out.send(task.agent, self._notice(tx, task, now))

    def _notice(self, tx: Tx, task: Task, now: Now) -> Notice:
        run, exchange = tx.get(Run, task.run), tx.get(Exchange, task.run, task.n)
        assert run is not None and exchange is not None  # a task row is written with both
        return Notice(
            run=task.run, n=task.n, agent=task.agent, order=task.order, base=task.base,
            payload=self._grant(tx, "GET", BlobRef(task.payload, task.payload_size), task, now),
            bundle=self._grant(tx, "GET", BlobRef(run.bundle, run.bundle_size), task, now, inline=False),
            run_config=run.config, attempt=task.attempt, remaining_s=max(0.0, exchange.deadline_at - now.up),
            lease_s=self._limits.lease_s, priority=run.priority, publisher=run.publisher, signature=run.signature,
        )  # fmt: skip

    def _grant(self, tx: Tx, method: str, blob: BlobRef, task: Task, now: Now, *, inline: bool = True) -> Grant:
        row = tx.get(Blob, blob.digest) if method == "GET" else None
        if row is not None and row.inline is not None and inline:
            return Grant(blob, inline=row.inline)
        expires = now.wall + self._limits.capability_s
        proof = self._granter.grant(
            method=method, blob=blob, agent=task.agent, run=task.run, n=task.n, expires_wall=expires
        )
        path = f"/v1/{'blobs' if method == 'GET' else 'uploads'}/{blob.digest}"
        return Grant(blob, path, proof, blocks=b"" if row is None else row.blocks)

    def _quoted(self, tx: Tx, agent: AgentId, run: RunId, n: int, order: str) -> Task | None:
        task = tx.get(Task, run, n, agent)
        return task if task is not None and order and task.order == order else None

    def _facts(self, tx: Tx, task: Task) -> Facts:
        run, exchange = tx.get(Run, task.run), tx.get(Exchange, task.run, task.n)
        if run is None or exchange is None or not run.live:
            return Facts(answerable=False)
        late = exchange.late == "keep"
        if exchange.state is ExchangeState.OPEN:
            return Facts(answerable=True, late=late)
        turn = tx.get(Turn, task.run, task.agent)
        return Facts(answerable=late and turn is not None and turn.n == task.n, late=late)

    def _unfit(self, reply: Reply) -> str:
        if reply.size > self._limits.max_reply_bytes:
            return "too_large"
        inline = reply.inline
        if inline is not None and (len(inline) != reply.size or blocks_of([inline]).digest != reply.digest):
            return "digest"
        return ""

    def _on_reply(self, tx: Tx, rule: Rule, task: Task, reply: Reply, code: str, now: Now, out: Outbox) -> None:
        agent = task.agent
        match rule.action:
            case Action.ACCEPT:
                _keep_inline(tx, reply, now)
                self._settle(tx, task, rule.next, now, out, reply=reply)
                out.send(agent, Verdict(order=task.order, digest=reply.digest, code="accepted"))
            case Action.NEED:
                upload = self._grant(tx, "PUT", BlobRef(reply.digest, reply.size), task, now)
                out.send(agent, Need(order=task.order, digest=reply.digest, upload=upload))
                self._leases[task.key] = now.up + self._limits.lease_s
                self._awaited[agent] = reply
            case Action.REFUSE:
                self._settle(tx, task, rule.next, now, out, code=code, text=DECLINE[code])
                out.send(agent, Verdict(order=task.order, code="closed", text=DECLINE[code]))
            case Action.CONFIRM:
                out.send(agent, Verdict(order=task.order, digest=reply.digest, code="accepted"))
            case Action.SUPERSEDE:
                out.send(agent, Verdict(order=task.order, digest=reply.digest, code="superseded", text=_SUPERSEDED))
            case _:
                out.send(agent, _closed(task))

    def _settle(
        self,
        tx: Tx,
        task: Task,
        state: TaskState,
        now: Now,
        out: Outbox,
        *,
        reply: Reply | None = None,
        code: str = "",
        text: str = "",
    ) -> None:
        """Make a task terminal, count it, and let the agent's next task and the close of the exchange follow."""
        exchange = tx.get(Exchange, task.run, task.n)
        turn = tx.get(Turn, task.run, task.agent)
        assert exchange is not None and turn is not None  # written with the task
        late = exchange.state is ExchangeState.CLOSED
        was_waiting = task.state is TaskState.WAITING
        task = msgspec.structs.replace(task, state=state, code=code, text=text, late=late, settled_wall=now.wall)
        if was_waiting:
            turn = msgspec.structs.replace(turn, waiting=turn.waiting - 1)
        if reply is not None:
            task = msgspec.structs.replace(task, reply=reply.digest, reply_size=reply.size)
            turn = msgspec.structs.replace(turn, base=reply.digest)
            holder = f"reply:{task.run}:{task.n}:{task.agent}"
            tx.put(Ref(digest=reply.digest, holder=holder, run=task.run, n=task.n))
        tx.put(task, turn)
        if not late:
            tx.put(
                msgspec.structs.replace(
                    exchange, settled=exchange.settled + 1, accepted=exchange.accepted + (reply is not None)
                )
            )
        self._leases.pop(task.key, None)
        self._close_if_due(tx, task.run, task.n, now, out)
        self._take_turn(tx, task.run, task.agent, now, out)
        out.changed(task.run)

    def _close_if_due(self, tx: Tx, run: RunId, n: int, now: Now, out: Outbox) -> None:
        exchange = tx.get(Exchange, run, n)
        if exchange is None or exchange.state is ExchangeState.CLOSED:
            return
        if exchange.settled >= exchange.expected:
            self._close(tx, exchange, "all", now, out)
        elif now.up >= exchange.deadline_at and not now.settling:
            self._close(tx, exchange, "deadline", now, out)
        elif 0 < exchange.quorum <= exchange.accepted:
            if exchange.grace_at is None:
                exchange = msgspec.structs.replace(exchange, grace_at=now.up + exchange.grace_s)
                tx.put(exchange)
            if exchange.grace_at is not None and now.up >= exchange.grace_at and not now.settling:
                self._close(tx, exchange, "quorum", now, out)

    def _close(self, tx: Tx, exchange: Exchange, reason: str, now: Now, out: Outbox) -> None:
        """Fix the accepted set and the reason; tell the runner, then the agents that are still at work."""
        tx.put(msgspec.structs.replace(exchange, state=ExchangeState.CLOSED, reason=reason, closed_wall=now.wall))
        out.changed(exchange.run)
        ends_all = reason in ("cancelled", "suspended")
        keep = exchange.late == "keep" and not ends_all
        unsettled = tx.find(Task, run=exchange.run, n=exchange.n, state=(TaskState.PUBLISHED, TaskState.WAITING))
        for task in unsettled:
            rule = decide(task.state, Event.CLOSE, Facts(answerable=False, late=keep))
            self._leases.pop(task.key, None)
            if rule.action is Action.KEEP:
                continue
            if task.state is TaskState.WAITING:
                turn = tx.get(Turn, task.run, task.agent)
                assert turn is not None  # written with the task
                tx.put(msgspec.structs.replace(turn, waiting=turn.waiting - 1))
            missed = msgspec.structs.replace(
                task, state=rule.next, code=reason, text=CLOSE[reason], settled_wall=now.wall
            )
            tx.put(missed)
            if task.order:
                out.send(task.agent, _closed(missed))
        run = tx.get(Run, exchange.run)
        if keep and run is not None:
            self._kept[exchange.key] = exchange.deadline_at + run.deadline_s
        else:
            tx.delete(*tx.find(Ref, holder=_payload_holder(exchange)))
        if not ends_all:
            for task in unsettled:
                self._take_turn(tx, task.run, task.agent, now, out)

    def _give_up_late(self, tx: Tx, run_id: RunId, n: int, now: Now, out: Outbox) -> None:
        """Wait no longer for late replies to an exchange: whoever pulls them is told that they will not come."""
        run, exchange = tx.get(Run, run_id), tx.get(Exchange, run_id, n)
        if run is None or exchange is None or not run.live:
            return
        for task in tx.find(Task, run=run_id, n=n, state=TaskState.PUBLISHED):
            rule = decide(task.state, Event.PASSED, Facts(answerable=False))
            missed = msgspec.structs.replace(
                task, state=rule.next, code="deadline", text=CLOSE["deadline"], settled_wall=now.wall
            )
            tx.put(missed)
            out.send(task.agent, _closed(missed))
        tx.delete(*tx.find(Ref, holder=_payload_holder(exchange)))
        out.changed(run_id)

    def _verdict(self, tx: Tx, agent: AgentId, held: Held) -> Verdict | None:
        """Return what became of an order that the agent holds, or None while it is open."""
        task = self._quoted(tx, agent, held.run, held.n, held.order)
        if task is None:
            return _unknown(held.order, held.digest)
        if task.state is TaskState.ACCEPTED:
            if held.digest is None or held.digest == task.reply:
                # A question may have been put before the reply was ready and arrive after it was accepted: the verdict
                # names what was accepted, and whoever holds that reply knows that it is meant (ADR 2).
                return Verdict(order=held.order, digest=task.reply, code="accepted")
            return Verdict(order=held.order, digest=held.digest, code="superseded", text=_SUPERSEDED)
        return None if self._facts(tx, task).answerable and not task.state.terminal else _closed(task)


def writable(tx: Tx, run_id: RunId, epoch: str) -> Run:
    """Return the run for a write by the runner that holds `epoch`.

    Raises:
        StaleEpoch: another runner has taken over. RunIsOver: the run has ended. BadRequest: there is no such run.
    """
    run = tx.get(Run, run_id)
    if run is None:
        raise BadRequest(f"there is no run {run_id}")
    if not epoch or run.epoch != epoch:
        raise StaleEpoch(f"run {run_id} has another runner by now; this one writes nothing any more")
    if not run.live:
        raise RunIsOver(f"run {run_id} has ended: {run.reason or run.state}")
    return run


def _check_selected(tx: Tx, run: Run, agent: AgentId) -> None:
    """Hold an agent against the run's selector: a runner is not trusted to name only agents it was told of.

    Raises:
        NotAllowed: the run does not select this agent. One that is not enrolled (any more) declines by itself.
    """
    enrolled = tx.get(Agent, agent)
    if enrolled is not None and not fleet.matches(enrolled, run.selector):
        wanted = ", ".join(f"{key}={value}" for key, value in sorted(run.selector.items()))
        raise NotAllowed(f"agent {agent} is not one of run {run.run}: it selects {wanted}")


_SUPERSEDED = "another reply to the same order had been accepted before"


def _with_reply(facts: Facts, task: Task, reply: Reply, blob: Blob | None, code: str) -> Facts:
    """Return `facts` with what the reply itself adds."""
    present = (blob is not None and blob.size == reply.size) or (reply.inline is not None and not code)
    return Facts(facts.answerable, blob=present, fits=not code, same=task.reply == reply.digest, late=facts.late)


def _keep_inline(tx: Tx, reply: Reply, now: Now) -> None:
    """Put an inline reply's bytes into the store: durable with the transaction that accepts it."""
    if reply.inline is not None and tx.get(Blob, reply.digest) is None:
        tx.put(Blob(digest=reply.digest, size=len(reply.inline), inline=reply.inline, stored_at=now.up))


def _payload_holder(exchange: Exchange) -> str:
    return f"payload:{exchange.run}:{exchange.n}"


def _request_digest(request: Open) -> Digest:
    parts = [f"{request.n} {request.label} {request.late}"]
    parts += [f"{agent} {request.cohort[agent].digest}" for agent in sorted(request.cohort)]
    return Digest(hashlib.sha256("\n".join(parts).encode()).hexdigest())


def _differs(request: Open) -> ExchangeView:
    return ExchangeView(run=request.run, n=request.n, closed="nondeterministic")


def _unknown(order: str, digest: Digest | None) -> Verdict:
    return Verdict(order=Order(order), digest=digest, code="unknown", text="the coordinator knows no such order")


def _closed(task: Task) -> Verdict:
    text = task.text or (f"the exchange closed: {CLOSE[task.code]}" if task.code in CLOSE else "the exchange is closed")
    return Verdict(order=task.order, code="closed", text=text)
