"""Files without names: gone when the last descriptor is closed, however the process ends."""

import os
import tempfile
from pathlib import Path


class Scratch:
    """A place for the runner's own bytes.

    Args:
        folder: on a disk with room for the replies of an exchange, private to this process.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

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
