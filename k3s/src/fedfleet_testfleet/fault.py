"""What is done to a fleet: a fault is an action, the node or part it is done to, and for how long."""

import re
from enum import StrEnum

import msgspec

from fedfleet_testfleet.errors import BadInput

MAX_S = 86_400.0
_TIME = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Action(StrEnum):
    """What can be done to a node or a part."""

    STOP = "stop"
    START = "start"
    CUT = "cut"
    HEAL = "heal"
    SLOW = "slow"
    KILL = "kill"
    API_DOWN = "api-down"
    API_UP = "api-up"


MEANINGS = {
    Action.STOP: "it does nothing until it is started: a power cut, or a freeze where there is no power to cut",
    Action.START: "ends stop",
    Action.CUT: "its cable is pulled; what runs goes on",
    Action.HEAL: "ends cut and slow",
    Action.SLOW: "it gets a tenth of a processor",
    Action.KILL: "its processes are killed; whoever watches over them starts them again",
    Action.API_DOWN: "the Kubernetes API server goes away",
    Action.API_UP: "the Kubernetes API server comes back",
}
"""What each action means, for people."""
_ENDS = {
    Action.STOP: Action.START, Action.CUT: Action.HEAL, Action.SLOW: Action.HEAL, Action.API_DOWN: Action.API_UP,
}  # fmt: skip
_WITHOUT_TARGET = (Action.API_DOWN, Action.API_UP)
_EXAMPLE = "write it like: stop agent-0 for 10s"


class Fault(msgspec.Struct, frozen=True):
    """One thing to do to a fleet.

    Attributes:
        target: the name of a node or a part; empty for the API server.
        for_s: seconds after which it is undone; None: it stays.
    """

    action: Action
    target: str = ""
    for_s: float | None = None

    def __str__(self) -> str:
        words = [self.action.value, *([self.target] if self.target else [])]
        return " ".join([*words, f"for {self.for_s:.10g}s"] if self.for_s is not None else words)

    @property
    def end(self) -> "Fault | None":
        """What undoes it after `for_s`; None if it stays."""
        return Fault(_ENDS[self.action], self.target) if self.for_s is not None else None


def parse(text: str) -> Fault:
    """Return the fault that `text` spells, as "stop agent-3 for 10s".

    Raises:
        BadInput: it spells none.
    """
    words = text.split()
    if not words:
        raise BadInput(f"there is no fault; {_EXAMPLE}")
    try:
        action = Action(words.pop(0))
    except ValueError as error:
        raise BadInput(f"a fleet cannot {text.split(maxsplit=1)[0]}; it can: {', '.join(Action)}") from error
    target = words.pop(0) if words and words[0] != "for" else ""
    if words and (words[0] != "for" or len(words) != 2):
        raise BadInput(f"{text!r} has words that mean nothing; {_EXAMPLE}")
    return made(action, target, words[1] if words else None)


def made(action: Action, target: str, for_: str | None) -> Fault:
    """Return a fault whose parts go together.

    Args:
        for_: a time like "10s".

    Raises:
        BadInput: they do not.
    """
    if bool(target) == (action in _WITHOUT_TARGET):
        if target:
            raise BadInput(f"{action} takes no node: there is one API server per fleet; leave out {target}")
        raise BadInput(f"{action} needs a node or a part; {_EXAMPLE.replace('stop', action)}")
    if for_ is not None and action not in _ENDS:
        remedy = "use stop for that" if action is Action.KILL else "leave out the time"
        raise BadInput(f"{action} has no end that could come after {for_}; {remedy}")
    return Fault(action, target, None if for_ is None else seconds(for_))


def seconds(text: str) -> float:
    """Return a time like "10s", "500ms" or "1.5m" in seconds.

    Raises:
        BadInput: it is no time, or none between 0 and a day.
    """
    found = _TIME.fullmatch(text)
    value = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < value <= MAX_S:
        raise BadInput(f"{text!r} is no time up to a day; write it like 10s, 500ms, 1.5m or 2h")
    return value
