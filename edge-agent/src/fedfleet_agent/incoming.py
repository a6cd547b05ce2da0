"""A blob on its way to this device: a file that grows from the front and can be left at any byte.

Only the front of the file is ever written, so its length says where to go on, after a cut as after a reboot. Blocks are
checked as they become complete; one that is wrong is cut off again, and nothing but it. What a power cut did to bytes
that were not durable yet is found the same way when the file is opened again.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from typing import Final

from fedfleet_agent.blobs import durable, read
from fedfleet_agent.errors import AgentError, DiskFull
from fedfleet_protocol.blocks import BLOCK_BYTES, BlockList, BlockVerifier, blocks_of
from fedfleet_protocol.errors import BlockMismatch
from fedfleet_protocol.ids import Digest

PART: Final = ".part"
BLOCKS: Final = ".blocks"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block lies on this device."""

    file: Path
    offset: int


def held_blocks(folder: Path) -> dict[bytes, Place]:
    """Return the blocks of all whole blobs in `folder`, by their SHA-256, as far as their lists were kept."""
    held: dict[bytes, Place] = {}
    for entry in os.scandir(folder):
        file = folder / entry.name.removesuffix(BLOCKS)
        if not entry.name.endswith(BLOCKS) or not file.is_file():
            continue
        digests = Path(entry.path).read_bytes()
        for index in range(len(digests) // 32):
            held[digests[32 * index : 32 * index + 32]] = Place(file, index * BLOCK_BYTES)
    return held


class Incoming:
    """A blob that is being fetched into `<target>.part`.

    Args:
        blocks: its blocks; None for a blob of a single block, which is checked as a whole when it is here.

    Raises:
        AgentError: the file cannot be opened.
    """

    def __init__(self, target: Path, digest: Digest, size: int, blocks: BlockList | None) -> None:
        if blocks is None and size > BLOCK_BYTES:
            raise ValueError("a blob of several blocks is checked block by block")
        self.target, self.digest, self.size = target, digest, size
        self._blocks = blocks
        self._part = target.with_name(target.name + PART)
        self._verifier = BlockVerifier(blocks) if blocks is not None else None
        try:
            self._stream = os.fdopen(os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b", 0)
        except OSError as error:
            raise _trouble(error, self._part) from error
        self.position = 0
        self._reopen()

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes.

        Raises:
            BlockMismatch: the block that they complete is wrong; `position` is back at its first byte.
            Malformed: more bytes than the blob has. DiskFull: no room; what was there stays.
        """
        try:
            if self._verifier is not None:
                self._verifier.update(memoryview(data))
        except BlockMismatch:
            self._cut(self._verified())
            raise
        try:
            view = memoryview(data)
            while view:
                view = view[self._stream.write(view) or 0 :]
        except OSError as error:
            self._cut(self.position)
            raise _trouble(error, self._part) from error
        self.position += len(data)

    def take_held(self, held: Mapping[bytes, Place]) -> bool:
        """Copy the block that comes next from another blob if it is held; return whether it was."""
        if self._blocks is None or self.position % BLOCK_BYTES or self.position >= self.size:
            return False
        index = self.position // BLOCK_BYTES
        place = held.get(self._blocks.block(index))
        if place is None:
            return False
        start, end = self._blocks.span(index)
        try:
            with place.file.open("rb") as stream:
                stream.seek(place.offset)
                data = stream.read(end - start)
            self.append(data)
        except (OSError, BlockMismatch):  # the other blob went or is damaged: the network has the block as well
            self._cut(start)
            return False
        return self.position == end

    def wanted(self, held: Mapping[bytes, Place]) -> tuple[int, int]:
        """Return the bytes (start, end) to ask for next: up to the next block that is held, or the end."""
        if self._blocks is None:
            return self.position, self.size
        for index in range(self.position // BLOCK_BYTES + 1, self._blocks.count):
            if self._blocks.block(index) in held:
                return self.position, self._blocks.span(index)[0]
        return self.position, self.size

    def finish(self) -> bool:
        """Make the blob durable under its own name; return False, and begin again, if its bytes are wrong.

        Raises:
            DiskFull, AgentError: it cannot be made durable.
        """
        if self._blocks is None and blocks_of(read(self._part)).digest != self.digest:
            self._cut(0)
            return False
        try:
            os.fsync(self._stream.fileno())
            if self._blocks is not None:
                self.target.with_name(self.target.name + BLOCKS).write_bytes(self._blocks.digests)
            self._part.rename(self.target)
            durable(self.target.parent)
        except OSError as error:
            raise _trouble(error, self._part) from error
        return True

    def close(self) -> None:
        """Leave the file as it is."""
        self._stream.close()

    def _reopen(self) -> None:
        """Take what an earlier transfer left, as far as it is right."""
        size = os.fstat(self._stream.fileno()).st_size
        if size > self.size:
            self._cut(0)
            return
        if self._verifier is None:
            self._cut(size)
            return
        try:
            for piece in read(self._part):
                self._verifier.update(piece)
                self.position += len(piece)
            self._stream.seek(self.position)
        except BlockMismatch:
            self._cut(self._verified())

    def _verified(self) -> int:
        return self._verifier.verified if self._verifier is not None else 0

    def _cut(self, position: int) -> None:
        """Go back to `position`."""
        self._stream.truncate(position)
        self._stream.seek(position)
        self.position = position
        if self._blocks is not None:
            start = position // BLOCK_BYTES * BLOCK_BYTES
            self._verifier = BlockVerifier(self._blocks, start)
            self._stream.seek(start)
            self._verifier.update(self._stream.read(position - start))


def _trouble(error: OSError, file: Path) -> AgentError:
    if error.errno in {ENOSPC, EDQUOT, EFBIG}:
        return DiskFull(f"no room left for {file.name}; free some space on the disk of {file.parent}")
    return AgentError(f"{file} cannot be written: {error.strerror}")
