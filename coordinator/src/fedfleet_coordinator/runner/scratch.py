"""Files without names: gone when the last descriptor is closed, however the process ends."""

import errno
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from tenacity import Retrying, retry_if_exception, wait_random_exponential

_LONGEST_WAIT_S: Final = 10.0
_TELL_EVERY_S: Final = 30.0
_log = logging.getLogger("fedfleet")
T = TypeVar("T")


def is_full(error: BaseException) -> bool:
    """Whether the disk has no room, or its user has none left on it."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class Scratch:
    """A place for the runner's own bytes.

    Args:
        folder: on a disk with room for the replies of an exchange, private to this process.
        sleep: waits; another one in tests.
    """

    def __init__(self, folder: Path, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._folder = folder
        self._sleep = sleep

    def write(self, act: Callable[[], T]) -> T:
        """Return what `act` returns; while it finds the disk full it waits, and begins again.

        A disk that is full for a while is the operator's to mend. It must not end a run, and no app can help it.
        """
        told = -_TELL_EVERY_S

        def pause(seconds: float) -> None:
            nonlocal told
            if time.monotonic() - told >= _TELL_EVERY_S:
                told = time.monotonic()
                _log.warning("the disk of %s is full; the run goes on when there is room", self._folder)
            self._sleep(seconds)

        wait = wait_random_exponential(multiplier=0.2, max=_LONGEST_WAIT_S)
        return Retrying(retry=retry_if_exception(is_full), wait=wait, sleep=pause, reraise=True)(act)

    def file(self) -> int:
        """Return a descriptor of a new empty file; the caller closes it.

        Raises:
            OSError: the disk is full or not writable.
        """
        flag = getattr(os, "O_TMPFILE", 0)
        if flag:
            try:
                return os.open(self._folder, flag | os.O_RDWR | os.O_CLOEXEC, 0o600)
            except OSError:  # not every file system has it, e.g. overlayfs of old kernels
                pass
        fd, name = tempfile.mkstemp(dir=self._folder)
        os.unlink(name)
        return fd
