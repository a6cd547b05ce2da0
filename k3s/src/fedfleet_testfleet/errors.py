"""What can go wrong for a person who works with a test fleet, and the exit code it ends with, as those of `fedfleet`.

TestfleetError
├── RunFailed      1   the run did not end as the scenario expects
├── BadInput       2   an argument, a scenario or a state file that cannot be used
│   └── Cannot     2   the fault makes sense, and this driver or fleet cannot do it
├── Unreachable    3   no coordinator answers
└── FleetFault     5   a part of the fleet, or a tool that drives it, fails
    └── Failed     5   a program ends with another exit code than 0
"""

from typing import ClassVar


class TestfleetError(Exception):
    """Something a person has to know; the text says what happened and what to do."""

    __test__ = False  # pytest takes a name like this for a test's
    exit_code: ClassVar[int] = 5


class RunFailed(TestfleetError):
    """The run did not end as expected."""

    exit_code = 1


class BadInput(TestfleetError):
    """An argument, a scenario or a state file cannot be used."""

    exit_code = 2


class Cannot(BadInput):
    """The fault makes sense, and this driver or fleet cannot do it."""


class Unreachable(TestfleetError):
    """No coordinator answers."""

    exit_code = 3


class FleetFault(TestfleetError):
    """A part of the fleet, or a tool that drives it, fails."""

    exit_code = 5


class Failed(FleetFault):
    """A program ends with another exit code than 0.

    Attributes:
        code: its exit code. said: the last line it said.
    """

    def __init__(self, text: str, *, code: int, said: str) -> None:
        super().__init__(text)
        self.code, self.said = code, said
