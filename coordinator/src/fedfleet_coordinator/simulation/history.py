"""What became of every task of a simulated run, when its rows are gone: numbers, and the spans that a picture shows."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fedfleet_coordinator.api.snapshots import shown_state
from fedfleet_coordinator.rows import Exchange, Task
from fedfleet_protocol.exchange import TaskState

Json = dict[str, Any]
_SHOWN_AGENTS = 60


@dataclass(slots=True)
class History:
    """Counts of tasks by what became of them.

    Attributes:
        asked: tasks. replies: that were accepted, errors among them. errors: of those, Flower's `Error`s.
        left_out: of the replies, those that the update gate refused.
        dropped: devices that never answered. missed: tasks without a reply at the close, those included. declined: by
            code.
        exchanges: closed ones, by reason. closed: the same, one by one.
    """

    asked: int = 0
    replies: int = 0
    errors: int = 0
    left_out: int = 0
    dropped: int = 0
    missed: int = 0
    declined: Counter[str] = field(default_factory=Counter)
    exchanges: Counter[str] = field(default_factory=Counter)
    closed: list[Json] = field(default_factory=list)
    spans: list[Json] = field(default_factory=list)
    _agents: set[str] = field(default_factory=set)

    def note(self, exchange: Exchange, tasks: Iterable[Task]) -> None:
        """Take in an exchange that is closed, once."""
        self.exchanges[exchange.reason] += 1
        self.closed.append(
            {
                "n": exchange.n, "label": exchange.label, "expected": exchange.expected,
                "accepted": exchange.accepted, "reason": exchange.reason,
            }
        )  # fmt: skip
        for task in tasks:
            self.asked += 1
            if task.state is TaskState.ACCEPTED:
                self.replies += 1
                self.left_out += shown_state(task) == "left out"
            elif task.state is TaskState.DECLINED:
                self.declined[task.code] += 1
            else:
                self.missed += 1
            self._draw(exchange, task)

    def as_json(self) -> Json:
        """Return the numbers, for programs."""
        return {
            "exchanges": dict(self.exchanges), "tasks": self.asked, "replies": self.replies, "errors": self.errors,
            "left_out": self.left_out,
            "dropped_out": self.dropped, "missed": self.missed, "declined": dict(self.declined),
        }  # fmt: skip

    def _draw(self, exchange: Exchange, task: Task) -> None:
        """Keep a span for the picture, which shows no more than so many agents."""
        if task.agent not in self._agents:
            if len(self._agents) >= _SHOWN_AGENTS:
                return
            self._agents.add(task.agent)
        self.spans.append(
            {
                "agent": task.agent, "labels": {}, "n": task.n, "label": exchange.label,
                "published": task.published_wall, "settled": task.settled_wall, "state": shown_state(task),
                "code": task.code,
            }
        )  # fmt: skip
