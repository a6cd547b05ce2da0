"""The agents of this coordinator: what they say of themselves, and which of them are there.

An agent is present if it is connected, or was until less than the absence limit ago, in the hub's up-time: who takes
part in a run must not depend on the instant at which somebody asks.
"""

import msgspec

from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.rows import Agent
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.ids import AgentId
from fedfleet_protocol.messages import Presence, Status

ABSENCE_LIMIT_S = 600.0


def presence(tx: Tx, agent: AgentId, message: Presence, now: Now, out: Outbox) -> None:
    """Note that an agent connected or went."""
    row = tx.get(Agent, agent)
    if row is not None and row.online != message.online:
        tx.put(msgspec.structs.replace(row, online=message.online, seen_at=now.up, seen_wall=now.wall))


def status(tx: Tx, agent: AgentId, message: Status, now: Now, out: Outbox) -> None:
    """Note what an agent says of itself."""
    row = tx.get(Agent, agent)
    if row is None:
        return
    told = msgspec.structs.replace(
        row,
        eligible=message.eligible,
        code=message.code[:40],
        text=message.text[:500],
        version=message.version[:40],
        self_labels={name[:80]: value[:200] for name, value in list(message.labels.items())[:32]},
    )
    if told != row:
        tx.put(msgspec.structs.replace(told, seen_at=now.up, seen_wall=now.wall))


def forget_presence(tx: Tx, now: Now) -> None:
    """Take every agent for unconnected: after a start, the retained presences say who is there."""
    for row in tx.find(Agent, online=True):
        tx.put(msgspec.structs.replace(row, online=False, seen_at=now.up))


def present(tx: Tx, selector: dict[str, str], now: Now, *, absence_s: float = ABSENCE_LIMIT_S) -> list[AgentId]:
    """Return the agents that a run with this selector may use, in the order of their ids."""
    return [
        row.agent
        for row in tx.find(Agent, state="active")
        if matches(row, selector) and (row.online or now.up - row.seen_at <= absence_s)
    ]


def matches(row: Agent, selector: dict[str, str]) -> bool:
    """Whether an agent has all labels that a selector names."""
    return all(row.labels.get(name) == value for name, value in selector.items())
