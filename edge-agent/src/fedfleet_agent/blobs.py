"""The agent's blob folder: payloads, bundles, replies and app states, each a file named by its digest.

A file is under its name only when its bytes are verified and durable. Rows of the journal name files; `sweep` removes
those that none names. What lies beside a blob follows it: `<digest>.blocks`, its list of blocks, and `<digest>.part`,
what is there of it while it is fetched (`incoming`).
"""

import os
import shutil
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path

from fedfleet_agent.errors import AgentError, DiskFull
from fedfleet_protocol.blocks import BlockList, blocks_of, checked
from fedfleet_protocol.errors import ProtocolError
from fedfleet_protocol.ids import Digest

CHUNK_BYTES = 256 << 10


class BlobFolder:
    """Blobs on this device's disk.

    Args:
        folder: is made if it is not there, for its owner only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, digest: Digest) -> Path:
        """Return where the blob is, or will be."""
        return self.folder / digest

    def has(self, digest: Digest) -> bool:
        """Return whether the blob is here, whole."""
        return self.path(digest).is_file()

    def put(self, pieces: Iterable[bytes | memoryview]) -> BlockList:
        """Make the bytes a durable blob; return its blocks.

        Raises:
            DiskFull: there is no room; nothing is left behind.
        """
        aside = self._aside()
        try:
            with aside.open("wb") as stream:
                stream.writelines(pieces)
            return self.adopt(aside)
        except OSError as error:
            raise _trouble(error, aside) from error
        finally:
            aside.unlink(missing_ok=True)

    def adopt(self, file: Path) -> BlockList:
        """Make a finished file a durable blob; return its blocks. The file is moved, or copied from another disk.

        Raises:
            DiskFull: there is no room; the file stays where it is.
            AgentError: it is not an ordinary file, or cannot be read.
        """
        if not file.is_file() or file.is_symlink():
            raise AgentError(f"{file} is not an ordinary file")
        try:
            if file.stat().st_dev != self.folder.stat().st_dev:
                aside = self._aside()
                shutil.copyfile(file, aside)
                file.unlink()
                file = aside
            blocks = blocks_of(read(file))
            self._list(blocks.digest).write_bytes(blocks.digests)
            durable(file)
            file.rename(self.path(blocks.digest))
            durable(self.folder)
        except OSError as error:
            raise _trouble(error, file) from error
        return blocks

    def blocks(self, digest: Digest) -> BlockList:
        """Return the blocks of a blob that is here, from the list kept beside it if that is whole.

        Raises:
            AgentError: the blob cannot be read, or has other bytes than its name says.
        """
        try:
            size = self.path(digest).stat().st_size
            with suppress(OSError, ProtocolError):
                return checked(digest, size, self._list(digest).read_bytes())
            blocks = blocks_of(read(self.path(digest)))
        except OSError as error:
            raise _trouble(error, self.path(digest)) from error
        if blocks.digest != digest:
            raise AgentError(f"the file {self.path(digest)} has changed on this disk")
        return blocks

    def _list(self, digest: Digest) -> Path:
        return self.folder / f"{digest}.blocks"

    def _aside(self) -> Path:
        return self.folder / f"incoming.{threading.get_ident()}"

    def used_bytes(self) -> int:
        """Return how much the folder holds."""
        return sum(entry.stat().st_size for entry in os.scandir(self.folder) if entry.is_file(follow_symlinks=False))

    def sweep(self, named: Collection[str]) -> int:
        """Remove every file that does not begin with a name in `named`; return how many."""
        removed = 0
        for entry in list(os.scandir(self.folder)):
            if entry.name.partition(".")[0] in named:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
            removed += 1
        return removed


def read(file: Path) -> Iterator[memoryview]:
    """Yield the bytes of a file in pieces; a piece is overwritten by the next."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            yield buffer[:count]


def durable(path: Path) -> None:
    """Make the bytes of a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _trouble(error: OSError, file: Path) -> AgentError:
    if error.errno in (ENOSPC, EDQUOT, EFBIG):
        return DiskFull(f"no room left for {file.name}; free some space on the disk of {file.parent}")
    return AgentError(f"{file} cannot be written: {error.strerror}")
