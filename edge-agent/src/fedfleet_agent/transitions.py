"""What may happen to the agent's task, as a table. `docs/explanation/the-exchange.md` draws its picture from `TABLE`.

The first row whose stage, event and facts fit is the one that applies. An event that fits no row is late, repeated or
somebody else's: it changes nothing. What a row's action does is in `core`.
"""

from dataclasses import dataclass
from enum import StrEnum

from fedfleet_protocol.task import Stage

IDLE, ASSIGNED, TRAINING, READY = Stage.IDLE, Stage.ASSIGNED, Stage.TRAINING, Stage.READY
BUSY = (ASSIGNED, TRAINING, READY)
ANY = (IDLE, *BUSY)


class Event(StrEnum):
    """What can reach the task."""

    NOTICE = "notice"
    OPEN = "answer: open task"
    ELIGIBLE = "eligible"
    INELIGIBLE = "not eligible"
    FETCHED = "fetched"
    FAILED = "failed"
    RESULT = "result"
    CONNECTED = "connected"
    NEED = "need"
    UPLOADED = "uploaded"
    ACCEPTED = "accepted"
    CLOSED = "closed"
    SUPERSEDED = "superseded"
    UNKNOWN = "unknown"
    OVER = "run over"


class Action(StrEnum):
    """What is done about it."""

    ASSIGN = "journal the task"
    STATE_LOST = "decline state_lost"
    ADOPT = "adopt the attempt"
    ANNOUNCE = "adopt the attempt, reply"
    ASK = "ask"
    FETCH = "fetch missing blocks"
    TRAIN = "start the trainer from base"
    DECLINE = "decline with the code"
    FINISH = "journal reply, state and ledger at once, reply"
    REPLY = "reply"
    UPLOAD = "upload missing blocks"
    PROMOTE = "promote the state, keep base, last = number"
    DISCARD = "discard, stop the trainer, last = number"
    DROP = "discard, stop the trainer"
    FORGET = "forget the run's states"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the journal says about an event.

    Attributes:
        order: it quotes the order of the task at hand.
        same: it does, and the digest of the reply at hand if it quotes one.
        digest: it quotes the digest of the reply at hand.
        next: its number is above the last settled one and its base is the newest state.
        held: the state it builds on is at hand.
    """

    order: bool = False
    same: bool = False
    digest: bool = False
    next: bool = False
    held: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: in `stage`, on `event`, if the named facts hold, do `action` and be in `next` afterwards.

    Attributes:
        given: names of `Facts`; one with a "!" before it must not hold.
        next: the stage afterwards, or None for no change.
    """

    stages: tuple[Stage, ...]
    event: Event
    given: tuple[str, ...]
    action: Action
    next: Stage | None

    def fits(self, stage: Stage, event: Event, facts: Facts) -> bool:
        """Whether this row applies."""
        return (
            stage in self.stages
            and event is self.event
            and all(getattr(facts, name.lstrip("!")) is not name.startswith("!") for name in self.given)
        )


TABLE: tuple[Rule, ...] = (
    Rule((IDLE,), Event.NOTICE, ("next",), Action.ASSIGN, ASSIGNED),
    Rule(BUSY, Event.NOTICE, ("same",), Action.ADOPT, None),
    Rule(ANY, Event.NOTICE, (), Action.ASK, None),
    Rule((IDLE,), Event.OPEN, ("held",), Action.ASSIGN, ASSIGNED),
    Rule((IDLE,), Event.OPEN, ("!held",), Action.STATE_LOST, IDLE),
    Rule((READY,), Event.OPEN, ("same",), Action.ANNOUNCE, None),
    Rule((ASSIGNED, TRAINING), Event.OPEN, ("same",), Action.ADOPT, None),
    Rule((ASSIGNED,), Event.ELIGIBLE, ("same",), Action.FETCH, None),
    Rule((ASSIGNED,), Event.INELIGIBLE, ("same",), Action.DECLINE, IDLE),
    Rule((ASSIGNED,), Event.FETCHED, ("same",), Action.TRAIN, TRAINING),
    Rule((ASSIGNED, TRAINING), Event.FAILED, ("same",), Action.DECLINE, IDLE),
    Rule((TRAINING,), Event.RESULT, ("same",), Action.FINISH, READY),
    Rule((READY,), Event.CONNECTED, (), Action.REPLY, None),
    Rule((READY,), Event.NEED, ("same", "digest"), Action.UPLOAD, None),
    Rule((READY,), Event.UPLOADED, ("same", "digest"), Action.REPLY, None),
    Rule((READY,), Event.ACCEPTED, ("order", "digest"), Action.PROMOTE, IDLE),
    Rule(BUSY, Event.ACCEPTED, ("order", "!digest"), Action.DISCARD, IDLE),
    Rule(BUSY, Event.CLOSED, ("same",), Action.DISCARD, IDLE),
    Rule(BUSY, Event.SUPERSEDED, ("same",), Action.DISCARD, IDLE),
    Rule(BUSY, Event.UNKNOWN, ("same",), Action.DROP, IDLE),
    Rule(ANY, Event.OVER, (), Action.FORGET, None),
)


def decide(stage: Stage, event: Event, facts: Facts) -> Rule | None:
    """Return the row that applies, or None if the event changes nothing."""
    return next((rule for rule in TABLE if rule.fits(stage, event, facts)), None)
