"""Exchanges as the Grid uses them: messages to agents go out, the replies of a closed exchange come in.

A cohort has one message per agent. Several messages to one agent in one call become several exchanges, one after the
other in number; the coordinator gives an agent its tasks in that order.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from flwr.app import Message

from fedfleet_coordinator.errors import Fenced, HubRefused, Nondeterministic
from fedfleet_coordinator.rows import Run
from fedfleet_coordinator.runner import gate, replies
from fedfleet_coordinator.runner.hub import Hub
from fedfleet_coordinator.runner.payloads import Packer, Payload
from fedfleet_coordinator.runner.replies import Arrival, Task
from fedfleet_coordinator.runner.scratch import Scratch
from fedfleet_flower import compat
from fedfleet_protocol.ids import AgentId, Digest
from fedfleet_protocol.messages import ExchangeView, Open, ReplyRef

_POLL_S = 20.0
_log = logging.getLogger("fedfleet")


@dataclass(slots=True)
class Batch:
    """One exchange: its tasks, and what each reply is held against."""

    n: int
    tasks: dict[AgentId, Task] = field(default_factory=dict)
    against: dict[AgentId, gate.Sent] = field(default_factory=dict)
    payloads: dict[AgentId, Payload] = field(default_factory=dict)
    view: ExchangeView | None = None


@dataclass(slots=True)
class Tally:
    """How many messages of each category were answered, and how many were not.

    Attributes:
        why: the first failure of each category, in words.
    """

    results: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    def count(self, task: Task, arrival: Arrival | None) -> None:
        """Count one task whose exchange is closed."""
        category = task.message_type.partition(".")[0]
        if arrival is not None and arrival.error is None:
            self.results[category] = self.results.get(category, 0) + 1
            return
        self.failures[category] = self.failures.get(category, 0) + 1
        text = f"agent {task.agent} did not reply in time" if arrival is None else arrival.error_text
        self.why.setdefault(category, text)

    def nothing(self) -> str:
        """Return why the run has no results, or an empty text if it has some or never asked for any.

        A run that trains is judged by its training: apps without an evaluation are common, and fail it every round.
        """
        asked = "train" if {"train"} & {*self.results, *self.failures} else next(iter(self.failures), "")
        if not self.failures.get(asked) or self.results.get(asked):
            return ""
        if asked != "train" and any(self.results.values()):
            return ""
        return f"all {self.failures[asked]} replies to {asked} messages were failures; the first: {self.why[asked]}"


class Sender:
    """Opens exchanges for the app's messages and collects what comes back.

    Attributes:
        next_n: the number of the next exchange. strangers: messages sent to nodes there are not.
        agents: node ids, as far as the app was told of them.
        weighted_by: the weight's key of the strategy that is at work; None outside of one.
        round_label: what exchanges are labelled with beside the message type.
    """

    def __init__(self, hub: Hub, run: Run, scratch: Scratch, settings: gate.Settings) -> None:
        self._hub, self._run, self._scratch, self._settings = hub, run, scratch, settings
        self.next_n = 1
        self.strangers = 0
        self.agents: dict[int, AgentId] = {}
        self.weighted_by: str | None = None
        self.round_label = ""
        self.tally = Tally()

    def send(
        self, messages: Iterable[Message], *, deadline_s: float, quorum: bool
    ) -> tuple[list[Batch], list[tuple[Arrival, gate.Sent]], list[str]]:
        """Open exchanges for the messages.

        Args:
            deadline_s: for each of them; the run's own deadline bounds it.
            quorum: whether the run's quorum is enough to close them.

        Returns:
            The exchanges, errors for nodes that no answer ever named, and the messages' ids in the order given.
        """
        batches: list[Batch] = []
        unknown: list[tuple[Arrival, gate.Sent]] = []
        ids: list[str] = []
        packer, against = Packer(self._scratch), dict[Digest, gate.Sent]()
        for message in messages:
            if not message.has_content():
                raise ValueError("a message without content cannot be sent to a node")
            node, agent = message.metadata.dst_node_id, self.agents.get(message.metadata.dst_node_id)
            if agent is None:
                unknown.append((self._to_nobody(message), gate.Sent()))
                ids.append(unknown[-1][0].task.message_id)
                continue
            batch = next((batch for batch in batches if agent not in batch.tasks), None)
            if batch is None:
                batch = Batch(self.next_n + len(batches))
                batches.append(batch)
            payload = packer.payload(message)
            if payload.blob.digest not in against:
                against[payload.blob.digest] = gate.sent(
                    payload.stored.records(), message.metadata.message_type, self._settings, self.weighted_by
                )
            compat.name_message(message, f"{batch.n}.{node}")
            ids.append(message.metadata.message_id)
            batch.tasks[agent] = _task(self._run, batch.n, agent, message)
            batch.against[agent] = against[payload.blob.digest]
            batch.payloads[agent] = payload
        for batch in batches:
            self._open(batch, min(deadline_s, self._run.deadline_s), quorum)
        return batches, unknown, ids

    def collect(self, batch: Batch) -> list[tuple[Arrival, gate.Sent]]:
        """Return the replies of an exchange once it is closed, in the order of agent ids, judged by the gate."""
        arrivals: dict[AgentId, Arrival] = {}
        while True:
            view = batch.view or self._hub.view(batch.n, seen=self._seen(batch, arrivals), wait_s=_POLL_S)
            batch.view = None
            for ref in view.replies:
                if not ref.late and ref.agent in batch.tasks and ref.agent not in arrivals:
                    arrivals[ref.agent] = self.arrive(batch.tasks[ref.agent], ref, batch.against[ref.agent])
            if view.closed:
                break
        still_open(view)
        ordered = [arrivals[agent] for agent in sorted(arrivals)]
        strictest = next(iter(batch.against.values()))
        for refused in replies.close(ordered, strictest, self._settings):
            _log.warning("exchange %d: %s", batch.n, refused.error_text)
        self._tell_left_out(batch.n, ordered)
        for agent, task in batch.tasks.items():
            self.tally.count(task, arrivals.get(agent))
        return [(arrival, batch.against[arrival.task.agent]) for arrival in ordered]

    def arrive(self, task: Task, ref: ReplyRef, against: gate.Sent) -> Arrival:
        """Return a settled task's reply, measured."""
        if ref.blob is None:
            return replies.declined(task, ref.code, ref.text)
        return replies.arrived(task, self._hub.fetch(ref.blob), against, self._settings)

    def alone(self, arrival: Arrival, against: gate.Sent) -> None:
        """Let the gate judge a reply that was pulled by itself, and count it."""
        for refused in replies.close([arrival], against, self._settings):
            _log.warning("exchange %d: %s", refused.task.n, refused.error_text)
        self._tell_left_out(arrival.task.n, [arrival])
        self.tally.count(arrival.task, arrival)

    def _tell_left_out(self, n: int, arrivals: list[Arrival]) -> None:
        """Tell the hub which replies do not count, for those who watch the run."""
        why = {
            arrival.task.agent: (arrival.left_out.code, arrival.left_out.text)
            for arrival in arrivals
            if arrival.left_out is not None
        }
        if why:
            self._hub.tell_left_out(n, why)

    def _to_nobody(self, message: Message) -> Arrival:
        """Return what stands for the reply of a node that no answer ever named."""
        self.strangers += 1
        node = message.metadata.dst_node_id
        compat.name_message(message, f"0.{node}.{self.strangers}")
        arrival = Arrival(_task(self._run, 0, AgentId(""), message))
        arrival.fail(compat.NODE_UNAVAILABLE, f"this run has no node {node}: get_node_ids names those there are")
        self.tally.count(arrival.task, arrival)
        return arrival

    def _seen(self, batch: Batch, arrivals: dict[AgentId, Arrival]) -> int:
        """Return after how many settled tasks to look again: large cohorts are looked at in steps."""
        return len(arrivals) + len(batch.tasks) // 32

    def _open(self, batch: Batch, deadline_s: float, quorum: bool) -> None:
        cohort = {agent: payload.blob for agent, payload in batch.payloads.items()}
        types = {task.message_type for task in batch.tasks.values()}
        request = Open(
            run=self._run.run, epoch=self._run.epoch, n=batch.n, cohort=cohort, deadline_s=max(deadline_s, 0.001),
            quorum=quorum_of(self._run.quorum, len(cohort)) if quorum else 0, grace_s=self._run.grace_s,
            late=self._run.late, label=" ".join([*sorted(types), self.round_label]).strip(),
        )  # fmt: skip
        for _ in range(3):
            view = self._hub.open(request)
            if view.closed == "nondeterministic":
                raise Nondeterministic(
                    f"exchange {batch.n} ({request.label}) to {len(cohort)} agents is not the one that had been opened "
                    f"under this number"
                )
            if not view.need:
                batch.view = view
                self.next_n = batch.n + 1
                batch.payloads.clear()
                return
            for payload in {p.blob.digest: p for p in batch.payloads.values()}.values():
                if payload.blob.digest in view.need:
                    self._hub.store(payload.file.fd, payload.blocks)
        raise HubRefused(f"the hub does not open exchange {batch.n}: it asks for payloads that were stored")


def still_open(view: ExchangeView) -> None:
    """Do nothing unless the exchange was cancelled with its run.

    Raises:
        Fenced: it was.
    """
    if view.closed == "cancelled":
        raise Fenced("the run was stopped")


def quorum_of(spelled: str, size: int) -> int:
    """Return how many accepted replies of a cohort are enough, 0 for all.

    Args:
        spelled: "80%" or "4".
    """
    text = spelled.strip()
    try:
        number = float(text.rstrip("%"))
    except ValueError:
        number = 100.0
        text = "100%"
    enough = -int(-size * number // 100) if text.endswith("%") else int(number)
    return 0 if not 0 < enough < size else enough


def _task(run: Run, n: int, agent: AgentId, message: Message) -> Task:
    metadata = message.metadata
    return Task(run.run, n, agent, metadata.dst_node_id, metadata.message_id, metadata.message_type, metadata.group_id)
