"""What both sides share of the exchange contract: orders, and the states of exchanges and tasks at the coordinator."""

import hashlib
from enum import StrEnum

from fedfleet_protocol.ids import AgentId, Digest, Order, RunId

_TAG = b"fedfleet order 1\n"


class ExchangeState(StrEnum):
    """An exchange as the coordinator's store has it."""

    OPEN = "open"
    CLOSED = "closed"


class TaskState(StrEnum):
    """One task of an exchange, as the coordinator's store has it."""

    WAITING = "waiting"
    """For the same agent's previous task in the run."""
    PUBLISHED = "published"
    ACCEPTED = "accepted"
    DECLINED = "declined"
    MISSED = "missed"
    """The exchange closed first."""

    @property
    def terminal(self) -> bool:
        """Whether nothing can happen to the task any more."""
        return self not in (TaskState.WAITING, TaskState.PUBLISHED)


def order_of(*, run: RunId, n: int, agent: AgentId, payload: Digest, base: Digest) -> Order:
    """Return the digest that names a task: what is to be done, by whom, from which state (EXCHANGE rule 3)."""
    text = "\n".join((run, str(n), agent, payload, base)).encode()
    return Order(hashlib.sha256(_TAG + text).hexdigest())
