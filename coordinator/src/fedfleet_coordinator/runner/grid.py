"""Flower's Grid on top of durable exchanges.

The runner counts its exchanges and the Grid's answers itself, so that an app that runs again is given what it was
given before: an exchange opened under a number that was used is that exchange, an answer under a number that is
recorded is that answer. An app that then sends something else ends its run as nondeterministic.

Only the thread that made the Grid is counted. Flower's legacy `server_fn` apps ask for the nodes from a thread of
their own; it is given the last answer again.
"""

import threading
from collections.abc import Iterable
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedfleet_coordinator.errors import Nondeterministic, RunnerStop
from fedfleet_coordinator.rows import Run
from fedfleet_coordinator.runner.gate import Sent
from fedfleet_coordinator.runner.hub import Hub
from fedfleet_coordinator.runner.patience import Patience
from fedfleet_coordinator.runner.replies import Arrival, Replies, Task
from fedfleet_coordinator.runner.sending import Sender, still_open
from fedfleet_flower import compat
from fedfleet_flower.compat import FlowerRun
from fedfleet_protocol.ids import flower_number
from fedfleet_protocol.messages import ExchangeView

_PULL_WAIT_S = 1.0
_FOREVER_S = 1e9


class FleetGrid(Grid):
    """The Grid a ServerApp is called with.

    Args:
        details: what `run` shows.

    Attributes:
        next_answer: the number of the next recorded answer.
        pushed: messages that were pushed and whose replies were not pulled yet, by message id.
        over: why the run ends, once it does; every later call ends the same way, whatever the app catches.
    """

    def __init__(self, hub: Hub, run: Run, sender: Sender, patience: Patience, details: FlowerRun) -> None:
        self._hub, self._run, self._patience, self._details = hub, run, patience, details
        self.sender = sender
        self.next_answer = 1
        self.pushed: dict[str, tuple[Task, Sent]] = {}
        self.over: RunnerStop | None = None
        self._ready: dict[str, tuple[Arrival, Sent]] = {}
        self._seen: dict[int, int] = {}
        self._nodes: list[int] = []
        self._replaying = True
        self._idle_pulls = 0
        self._lock = threading.RLock()
        self._thread = threading.get_ident()

    def set_run(self, run: FlowerRun) -> None:
        """Keep the run there is: a runner has only one."""

    def expect(self, agents: int) -> None:
        """Note for how many agents the strategy at work waits, 0 if that is not known."""
        self._patience.needs = agents

    @property
    def run(self) -> FlowerRun:
        """What Flower knows of the run."""
        return self._details

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message; `flwr.app.Message` does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the agents that are there, in the order of their ids: a recorded answer."""
        with self._call():
            if threading.get_ident() == self._thread:
                agents = self._patience.agents(self.next_answer)
                self.next_answer += 1
                self._nodes = [flower_number(agent) for agent in agents]
                self.sender.agents.update(zip(self._nodes, agents, strict=True))
            return list(self._nodes)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Replies:
        """Send the messages and return the replies of all agents that gave one in time, in the order of node ids.

        Args:
            timeout: in seconds; the run's own deadline bounds it.
        """
        with self._call():
            self._patience.moved_on()
            deadline_s = _FOREVER_S if timeout is None else float(timeout)
            batches, arrivals, _ = self.sender.send(messages, deadline_s=deadline_s, quorum=True)
            for batch in batches:
                arrivals += self.sender.collect(batch)
            return Replies(sorted(arrivals, key=lambda pair: (pair[0].task.node, pair[0].task.n)))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send the messages and return their ids, by which the replies can be pulled."""
        with self._call():
            self._patience.moved_on()
            sent = list(messages)
            ttl = min((message.metadata.ttl for message in sent), default=_FOREVER_S)
            batches, unknown, ids = self.sender.send(sent, deadline_s=ttl, quorum=False)
            for batch in batches:
                for agent, task in batch.tasks.items():
                    self.pushed[task.message_id] = task, batch.against[agent]
            for arrival, against in unknown:
                self._ready[arrival.task.message_id] = arrival, against
                self.pushed[arrival.task.message_id] = arrival.task, against
            return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there and were not pulled before; a message missed its deadline is an error."""
        with self._call():
            self._patience.moved_on()
            wanted = [one for one in dict.fromkeys(message_ids) if one in self.pushed]
            settled = self._recorded_pull()
            if settled is None:
                settled = self._settled(wanted)
                if not settled:
                    self._idle_pulls += 1
                    return []
                settled = self._hub.answer(self.next_answer, "pull", settled)
            self._idle_pulls = 0
            if not set(settled) <= set(wanted):
                raise Nondeterministic(f"answer {self.next_answer} held replies that the app does not pull any more")
            self.next_answer += 1
            return [self._deliver(message_id) for message_id in settled]

    # --- what a checkpoint holds --------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what a new runner's Grid must know, as plain values."""
        sender = self.sender
        tally = [sender.tally.results, sender.tally.failures, sender.tally.why]
        pushed = [
            [task.n, task.agent, task.node, task.message_id, task.message_type, task.group_id, against.state()]
            for task, against in self.pushed.values()
            if task.n
        ]
        return {
            "next_n": sender.next_n, "next_answer": self.next_answer, "strangers": sender.strangers,
            "agents": sender.agents, "nodes": self._nodes, "tally": tally, "pushed": pushed,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where another runner's Grid was."""
        sender = self.sender
        sender.next_n, self.next_answer = state["next_n"], state["next_answer"]
        sender.strangers, sender.agents, self._nodes = state["strangers"], state["agents"], state["nodes"]
        sender.tally.results, sender.tally.failures, sender.tally.why = state["tally"]
        self.pushed = {
            message_id: (Task(self._run.run, n, agent, node, message_id, kind, group), Sent.restored(against))
            for n, agent, node, message_id, kind, group, against in state["pushed"]
        }
        self._ready.clear()
        self._replaying = True
        self._patience.moved_on()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _call(self) -> "_Call":
        return _Call(self)

    def _recorded_pull(self) -> list[str] | None:
        """Return what the pull under this number returned before, or None: then this runner is ahead of all others."""
        if not self._replaying:
            return None
        found: list[str] | None = self._hub.answer(self.next_answer, "pull", None)
        self._replaying = found is not None
        return found

    def _settled(self, wanted: list[str]) -> list[str]:
        """Return the ids among `wanted` whose replies are there, in the order of exchanges and agents."""
        numbers = sorted({self.pushed[one][0].n for one in wanted if one not in self._ready})
        for i, n in enumerate(numbers):
            wait_s = _PULL_WAIT_S if self._idle_pulls and i == 0 and not self._ready else 0.0
            view = self._hub.view(n, seen=self._seen.get(n, 0), wait_s=wait_s)
            still_open(view)
            self._seen[n] = len(view.replies)
            self._take(n, view)
        ready = [self._ready[one][0].task for one in wanted if one in self._ready]
        return [task.message_id for task in sorted(ready, key=lambda task: (task.n, task.node))]

    def _take(self, n: int, view: ExchangeView) -> None:
        """Note what is settled of exchange `n`; what the close missed is an error, so that nobody waits for it."""
        refs = {ref.agent: ref for ref in view.replies}
        for message_id, (task, against) in self.pushed.items():
            if task.n != n or message_id in self._ready:
                continue
            if task.agent in refs:
                self._ready[message_id] = self.sender.arrive(task, refs[task.agent], against), against
            elif view.closed and self._run.late != "keep":
                arrival = Arrival(task)
                arrival.fail(compat.MESSAGE_UNAVAILABLE, f"agent {task.agent} did not reply before the deadline")
                self._ready[message_id] = arrival, against

    def _deliver(self, message_id: str) -> Message:
        if message_id not in self._ready:
            task = self.pushed[message_id][0]
            self._take(task.n, self._hub.view(task.n, seen=0, wait_s=0.0))
        arrival, against = self._ready.pop(message_id)
        del self.pushed[message_id]
        if arrival.task.n:
            self.sender.alone(arrival, against)
        return arrival.message(against)


class _Call:
    """One call of the Grid at a time; what ends the run ends every later call, too."""

    def __init__(self, grid: FleetGrid) -> None:
        self._grid = grid

    def __enter__(self) -> None:
        self._grid._lock.acquire()
        if self._grid.over is not None:
            self._grid._lock.release()
            raise self._grid.over

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RunnerStop):
            self._grid.over = error
        self._grid._lock.release()
