"""What a transition causes once it is committed: nothing leaves before."""

from collections.abc import Callable
from dataclasses import dataclass, field

from fedfleet_protocol.ids import AgentId, RunId
from fedfleet_protocol.messages import ToAgent


@dataclass(slots=True)
class Outbox:
    """Collects what is to be done after the commit of one transaction.

    Attributes:
        sends: messages for agents, in order.
        changes: runs whose watchers want to look again.
        commits: functions to call, in order, e.g. to unlink a file no row names any more.
    """

    sends: list[tuple[AgentId, ToAgent]] = field(default_factory=list)
    changes: set[RunId] = field(default_factory=set)
    commits: list[Callable[[], object]] = field(default_factory=list)

    def send(self, agent: AgentId, message: ToAgent) -> None:
        """Say something to an agent; a hint that may be lost."""
        self.sends.append((agent, message))

    def changed(self, run: RunId) -> None:
        """Wake whoever watches this run."""
        self.changes.add(run)

    def after_commit(self, act: Callable[[], object]) -> None:
        """Call `act` once everything is durable; a crash in between loses the call."""
        self.commits.append(act)
