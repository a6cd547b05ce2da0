"""What may happen to a task, as a table. `docs/explanation/the-exchange.md` draws its picture from `TABLE`.

The first row whose state, event and facts fit is the one that applies; an event that fits no row is a bug of ours and
raises. What a row's action does is in `exchanges`.
"""

from dataclasses import dataclass
from enum import StrEnum

from fedfleet_protocol.exchange import TaskState

WAITING, PUBLISHED, ACCEPTED = TaskState.WAITING, TaskState.PUBLISHED, TaskState.ACCEPTED
DECLINED, MISSED = TaskState.DECLINED, TaskState.MISSED


class Event(StrEnum):
    """What can reach a task."""

    TURN = "turn"
    """The same agent's earlier tasks in the run are all terminal, or their exchanges closed."""
    REPLY = "reply"
    DECLINE = "decline"
    PROGRESS = "progress"
    LEASE = "lease missed"
    CLOSE = "close"
    """Its exchange closes."""
    PASSED = "passed"
    """A later task of the same agent in the run is published."""


class Action(StrEnum):
    """What is done about it, in one transaction, then said."""

    PUBLISH = "fix base and order, send the notice"
    ACCEPT = "store the digest, say accepted"
    NEED = "say need"
    REFUSE = "store the code, say closed"
    DECLINE = "store the code"
    RENEW = "renew the lease"
    REPEAT = "attempt + 1, send the notice"
    MISS = "store why, say closed"
    KEEP = "nothing: the exchange keeps late updates"
    CONFIRM = "say accepted"
    SUPERSEDE = "say superseded"
    CLOSED = "say closed"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the store says about a task at this instant.

    Attributes:
        answerable: its run is live, and its exchange is open, or keeps late updates and this is the agent's newest
            task.
        blob: the reply's bytes are durable here.
        fits: the reply is one this coordinator takes: its size is within the limit, inline bytes have their digest.
        same: the reply is the accepted one.
        late: the exchange keeps late updates.
    """

    answerable: bool
    blob: bool = False
    fits: bool = True
    same: bool = False
    late: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: in `state`, on `event`, if the named facts hold, do `action` and be in `next` afterwards.

    Attributes:
        given: names of `Facts`; one with a "!" before it must not hold.
    """

    state: TaskState
    event: Event
    given: tuple[str, ...]
    action: Action
    next: TaskState

    def fits(self, state: TaskState, event: Event, facts: Facts) -> bool:
        """Whether this row applies."""
        return (
            self.state is state
            and self.event is event
            and all(getattr(facts, name.lstrip("!")) is not name.startswith("!") for name in self.given)
        )


TABLE: tuple[Rule, ...] = (
    Rule(WAITING, Event.TURN, ("answerable",), Action.PUBLISH, PUBLISHED),
    Rule(WAITING, Event.CLOSE, (), Action.MISS, MISSED),
    Rule(PUBLISHED, Event.REPLY, ("answerable", "!fits"), Action.REFUSE, DECLINED),
    Rule(PUBLISHED, Event.REPLY, ("answerable", "blob"), Action.ACCEPT, ACCEPTED),
    Rule(PUBLISHED, Event.REPLY, ("answerable", "!blob"), Action.NEED, PUBLISHED),
    Rule(PUBLISHED, Event.REPLY, ("!answerable",), Action.CLOSED, PUBLISHED),
    Rule(PUBLISHED, Event.DECLINE, ("answerable",), Action.DECLINE, DECLINED),
    Rule(PUBLISHED, Event.DECLINE, ("!answerable",), Action.NOTHING, PUBLISHED),
    Rule(PUBLISHED, Event.PROGRESS, ("answerable",), Action.RENEW, PUBLISHED),
    Rule(PUBLISHED, Event.PROGRESS, ("!answerable",), Action.CLOSED, PUBLISHED),
    Rule(PUBLISHED, Event.LEASE, ("answerable",), Action.REPEAT, PUBLISHED),
    Rule(PUBLISHED, Event.CLOSE, ("late",), Action.KEEP, PUBLISHED),
    Rule(PUBLISHED, Event.CLOSE, ("!late",), Action.MISS, MISSED),
    Rule(PUBLISHED, Event.PASSED, (), Action.MISS, MISSED),
    Rule(ACCEPTED, Event.REPLY, ("same",), Action.CONFIRM, ACCEPTED),
    Rule(ACCEPTED, Event.REPLY, ("!same",), Action.SUPERSEDE, ACCEPTED),
    Rule(ACCEPTED, Event.PROGRESS, (), Action.NOTHING, ACCEPTED),
    Rule(ACCEPTED, Event.DECLINE, (), Action.NOTHING, ACCEPTED),
    Rule(DECLINED, Event.REPLY, (), Action.CLOSED, DECLINED),
    Rule(DECLINED, Event.PROGRESS, (), Action.CLOSED, DECLINED),
    Rule(DECLINED, Event.DECLINE, (), Action.NOTHING, DECLINED),
    Rule(MISSED, Event.REPLY, (), Action.CLOSED, MISSED),
    Rule(MISSED, Event.PROGRESS, (), Action.CLOSED, MISSED),
    Rule(MISSED, Event.DECLINE, (), Action.NOTHING, MISSED),
)


def decide(state: TaskState, event: Event, facts: Facts) -> Rule:
    """Return the row that applies.

    Raises:
        LookupError: there is none; a bug of ours, for no message from outside can cause it.
    """
    for rule in TABLE:
        if rule.fits(state, event, facts):
            return rule
    raise LookupError(f"no rule for a {state} task on {event!r} with {facts}")
