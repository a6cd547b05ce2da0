"""What ends a simulation before its app does.

SimulationError    no `Exception`, so that it passes through the code of apps
├── Unusable       the researcher's: the ClientApp cannot be loaded, or the trainer is not installed
└── NoRoom         the machine's: the scratch folder is full
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SimulationError(BaseException):
    """The simulation cannot go on; the text says why and what to do."""


class Unusable(SimulationError):
    """There is no ClientApp to call."""


class NoRoom(SimulationError):
    """The scratch folder is full."""


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """Let a full disk end the simulation, whoever of the app's code was on the way to it.

    Raises:
        NoRoom: it is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoRoom(f"{folder} is full: name a larger folder with --scratch") from error
