"""Blobs as fixed blocks: digests, resume arithmetic and an incremental verifier. No files, no sockets.

A blob is cut into blocks of 1 MiB (the last one may be shorter), each with a SHA-256. The blob's own digest is the
SHA-256 over a tag, its size and the block digests, so whoever knows the digest can check the list of blocks, and then
each block the moment it is complete. A transfer that is cut goes on at the byte where it stopped; a block that turns
out wrong costs only itself; a block that is already at hand (a frozen layer) is not sent again.
"""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from fedfleet_protocol.errors import BlockMismatch, Malformed, TooLarge
from fedfleet_protocol.ids import Digest

BLOCK_BYTES = 1 << 20
MAX_BLOB_BYTES = 16 << 30
_TAG = b"fedfleet blob 1\n"
_EMPTY = b""


@dataclass(frozen=True, slots=True)
class BlockList:
    """The blocks of one blob.

    Attributes:
        size: bytes in the blob.
        digests: SHA-256 of each block, 32 bytes each, one after the other.
    """

    size: int
    digests: bytes

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_BLOB_BYTES:
            raise TooLarge(f"a blob of {self.size} bytes; at most {MAX_BLOB_BYTES} are taken")
        if len(self.digests) != 32 * block_count(self.size):
            raise Malformed(
                f"a blob of {self.size} bytes has {block_count(self.size)} blocks, "
                f"the list names {len(self.digests) / 32:g}"
            )

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return block_count(self.size)

    @property
    def digest(self) -> Digest:
        """The blob's digest."""
        root = hashlib.sha256(_TAG)
        root.update(self.size.to_bytes(8, "little"))
        root.update(self.digests)
        return Digest(root.hexdigest())

    def block(self, index: int) -> bytes:
        """Return the SHA-256 of block `index`."""
        return self.digests[32 * index : 32 * index + 32]

    def span(self, index: int) -> tuple[int, int]:
        """Return the first byte of block `index` and the byte after its last."""
        return index * BLOCK_BYTES, min(self.size, (index + 1) * BLOCK_BYTES)

    def missing(self, held: Collection[bytes]) -> list[tuple[int, int]]:
        """Return the byte ranges (start, end) that must be fetched when the blocks in `held` are already here."""
        ranges: list[tuple[int, int]] = []
        for index in range(self.count):
            if self.block(index) in held:
                continue
            start, end = self.span(index)
            if ranges and ranges[-1][1] == start:
                ranges[-1] = (ranges[-1][0], end)
            else:
                ranges.append((start, end))
        return ranges


def block_count(size: int) -> int:
    """Return how many blocks a blob of `size` bytes has; an empty blob has none."""
    return -(-size // BLOCK_BYTES)


def checked(digest: Digest, size: int, digests: bytes) -> BlockList:
    """Return the list of blocks of the blob `digest`, as the other side told it.

    Raises:
        Malformed: the list does not hash to `digest`, or its length does not fit `size`.
    """
    blocks = BlockList(size, digests)
    if blocks.digest != digest:
        raise Malformed(f"the list of blocks is that of {blocks.digest[:12]}, not of {digest[:12]}")
    return blocks


def blocks_of(chunks: Iterable[bytes | memoryview]) -> BlockList:
    """Return the list of blocks of the bytes in `chunks`, read once, none kept."""
    hasher = BlockHasher()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.finish()


class BlockHasher:
    """Collects the block digests of bytes that come in pieces of any length."""

    def __init__(self) -> None:
        self._done: list[bytes] = []
        self._block = hashlib.sha256()
        self._filled = 0
        self._size = 0

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(data).cast("B")
        while len(view):
            piece = view[: BLOCK_BYTES - self._filled]
            self._block.update(piece)
            self._filled += len(piece)
            self._size += len(piece)
            view = view[len(piece) :]
            if self._filled == BLOCK_BYTES:
                self._close()

    def finish(self) -> BlockList:
        """Return the list of blocks of all bytes taken."""
        if self._filled:
            self._close()
        return BlockList(self._size, _EMPTY.join(self._done))

    def _close(self) -> None:
        self._done.append(self._block.digest())
        self._block = hashlib.sha256()
        self._filled = 0


class BlockVerifier:
    """Checks the bytes of one blob as they come in order, block by block.

    After a cut, make a new one at the first byte of the block that was under way and feed it the bytes of that block
    that were kept; then go on with what arrives.

    Attributes:
        position: the next byte that is expected.
        verified: bytes before this one belong to blocks whose digest was right.
    """

    def __init__(self, blocks: BlockList, start: int = 0) -> None:
        if start % BLOCK_BYTES and start != blocks.size:
            raise ValueError(f"a verifier starts at the first byte of a block, not at {start}")
        self.blocks = blocks
        self.position = start
        self.verified = start
        self._block = hashlib.sha256()

    @property
    def complete(self) -> bool:
        """Whether every byte was seen and right."""
        return self.verified == self.blocks.size

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises:
            BlockMismatch: a block is complete and wrong; go on with a new verifier at its first byte.
            Malformed: more bytes than the blob has.
        """
        view = memoryview(data).cast("B")
        if self.position + len(view) > self.blocks.size:
            raise Malformed(f"{self.position + len(view)} bytes of a blob of {self.blocks.size}")
        while len(view):
            index = self.position // BLOCK_BYTES
            _, end = self.blocks.span(index)
            piece = view[: end - self.position]
            self._block.update(piece)
            self.position += len(piece)
            view = view[len(piece) :]
            if self.position == end:
                self._check(index)

    def _check(self, index: int) -> None:
        found = self._block.digest()
        self._block = hashlib.sha256()
        if found != self.blocks.block(index):
            raise BlockMismatch(
                index, f"block {index} of blob {self.blocks.digest[:12]} has other bytes than announced"
            )
        self.verified = self.position
