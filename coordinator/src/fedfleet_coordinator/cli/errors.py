"""What can go wrong for a person at the command line, and the exit code it ends with.

CliError
├── RunFailed      1   the run did not finish; the reason is the run's
├── BadInput       2   an argument, a file or an app that cannot be used
├── Unreachable    3   no coordinator answers there
├── Refusal        4   the coordinator answers, and says no
└── LocalFault     5   a part of a local fleet does not start or keeps dying
"""

from typing import ClassVar


class CliError(Exception):
    """Something a person has to know; the text says what happened and what to do."""

    exit_code: ClassVar[int] = 5


class RunFailed(CliError):
    """The run ended without finishing."""

    exit_code = 1


class BadInput(CliError):
    """An argument, a file or an app cannot be used."""

    exit_code = 2


class Unreachable(CliError):
    """No coordinator answers."""

    exit_code = 3


class Refusal(CliError):
    """The coordinator says no.

    Attributes:
        code: the coordinator's word for it. status: the HTTP status it came under.
    """

    exit_code = 4

    def __init__(self, text: str, *, code: str = "", status: int = 0) -> None:
        super().__init__(text)
        self.code = code
        self.status = status


class LocalFault(CliError):
    """A part of a local fleet does not start or keeps dying."""

    exit_code = 5
