"""A simulated fleet: how large it is, and what there is of a device while it has something to do or to keep."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from fedfleet_coordinator.simulation.devices import Conditions
from fedfleet_coordinator.simulation.pool import Answered
from fedfleet_protocol.messages import Notice


@dataclass(frozen=True, slots=True)
class Fleet:
    """The fleet that is simulated.

    Attributes:
        cohort: how many of the agents each answer of the Grid names; None for all.
    """

    agents: int
    cohort: int | None = None
    conditions: Conditions = field(default_factory=Conditions)


@dataclass(slots=True)
class Job:
    """A task that a device works on: its call is with the pool until it has computed, then its reply is under way."""

    index: int
    notice: Notice
    answer: Answered | None = None


@dataclass(slots=True)
class Device:
    """What there is of a device: the task at hand, and the state after its last accepted reply, None if it is empty."""

    job: Job | None = None
    state: Path | None = None


def copy(fd: int, size: int, target: Path) -> None:
    """Write the first `size` bytes of an open file into `target`."""
    into = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        offset = 0
        while offset < size and (sent := os.sendfile(into, fd, offset, size - offset)):
            offset += sent
    finally:
        os.close(into)
