"""The coordinator's blob folder: uploads that may be cut anywhere, and files that are durable before a row names them.

A partial upload is a file: the bytes so far; whoever goes on with it names its blocks again. It goes on at the byte where it
stopped, also after this process was killed: whole blocks are checked as they become whole, and what lies in the last,
unfinished block is read again. A finished blob is synced, renamed to a name of its own (digest and nonce), and its
folder synced; only then may a row name it (EXCHANGE rules 1 and 12). Everything here blocks: call it from a thread.
"""

import errno
import mmap
import os
import secrets
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedfleet_coordinator.errors import BadRequest, QuotaFull, StoreUnavailable, WrongBlock, WrongOffset
from fedfleet_protocol.blocks import BLOCK_BYTES, BlockList, BlockVerifier, checked
from fedfleet_protocol.errors import BlockMismatch, Malformed
from fedfleet_protocol.ids import Digest

SLICE_BYTES = 256 << 10
FREE_FLOOR_BYTES = 256 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(slots=True)
class _Upload:
    verifier: BlockVerifier
    fd: int
    lock: threading.Lock
    touched: float


class BlobFolder:
    """Blobs as files.

    Args:
        quota_bytes: partial and finished blobs together take no more.
    """

    def __init__(self, folder: Path, *, quota_bytes: int = 1 << 40) -> None:
        self.folder = folder
        self._partial = folder / "partial"
        self._partial.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._quota = quota_bytes
        self._uploads: dict[Digest, _Upload] = {}
        self._lock = threading.Lock()
        self._used = sum(e.stat().st_size for e in os.scandir(folder) if e.is_file())

    # --- uploads -----------------------------------------------------------------------------------------------------

    def begin(self, digest: Digest, size: int, digests: bytes) -> int:
        """Begin an upload, or go on with one; return the byte it goes on at.

        Raises:
            BadRequest: the list of blocks is not this blob's. QuotaFull: there is no room for it.
        """
        try:
            blocks = checked(digest, size, digests)
        except Malformed as error:
            raise BadRequest(str(error)) from error
        with self._lock:
            if digest not in self._uploads:
                self._check_room(size)
                self._uploads[digest] = self._resume(blocks)
                self._used += size
            return self._uploads[digest].verifier.position

    def append(self, digest: Digest, offset: int, data: bytes | memoryview) -> int:
        """Add the next bytes of an upload; return the byte it goes on at. Pieces of 256 KiB are quickest.

        Raises:
            BadRequest: the upload was not begun, or this is more than it announced.
            WrongOffset: it goes on at another byte. WrongBlock: a block was wrong, and must be sent again.
            QuotaFull: the disk is full; what is there stays.
        """
        upload = self._uploads.get(digest)
        if upload is None:
            raise BadRequest(f"the upload of {digest[:12]} was not begun here; begin it again")
        with upload.lock:
            if offset != upload.verifier.position:
                raise WrongOffset(upload.verifier.position)
            upload.touched = time.monotonic()
            if offset + len(data) > upload.verifier.blocks.size:
                raise BadRequest(f"more than the {upload.verifier.blocks.size} bytes announced of {digest[:12]}")
            _write(upload.fd, data, offset)
            try:
                upload.verifier.update(data)
            except BlockMismatch as error:
                start = error.index * BLOCK_BYTES
                os.ftruncate(upload.fd, start)
                upload.verifier = BlockVerifier(upload.verifier.blocks, start)
                raise WrongBlock(start, str(error)) from error
            return upload.verifier.position

    def reached(self, digest: Digest) -> int | None:
        """Return the byte an upload goes on at, None if it was not begun since this process started."""
        upload = self._uploads.get(digest)
        return upload.verifier.position if upload is not None else None

    def announced(self, digest: Digest) -> int | None:
        """Return the size of an upload that was begun since this process started, None if it was not."""
        upload = self._uploads.get(digest)
        return upload.verifier.blocks.size if upload is not None else None

    def is_whole(self, digest: Digest) -> bool:
        """Whether every byte of an upload is here and right."""
        upload = self._uploads.get(digest)
        return upload is not None and upload.verifier.complete

    def complete(self, digest: Digest) -> str:
        """Make a whole upload durable under a name of its own; return the name. A row may name it from now on.

        Raises:
            BadRequest: it is not whole, or somebody completed it before. QuotaFull: the disk is full.
        """
        upload = self._uploads.get(digest)
        if upload is None or not upload.verifier.complete:
            raise BadRequest(f"the upload of {digest[:12]} is not whole")
        with upload.lock:
            if self._uploads.get(digest) is not upload:
                raise BadRequest(f"the upload of {digest[:12]} was completed by another request")
            name = f"{digest}.{secrets.token_hex(6)}"
            try:
                os.fsync(upload.fd)
                (self._partial / digest).rename(self.folder / name)
                _sync_folder(self.folder)
            except OSError as error:
                raise _trouble(error) from error
            self._forget(digest, upload)
        return name

    # --- finished blobs ----------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """Return where a blob's file is."""
        return self.folder / name

    def unlink(self, name: str) -> None:
        """Remove a file that no row names any more; one that is gone is no error."""
        path = self.path(name)
        with self._lock:
            try:
                self._used -= path.stat().st_size
                path.unlink()
            except FileNotFoundError:
                pass

    def slices(self, name: str, start: int, end: int) -> Iterator[memoryview]:
        """Yield the bytes from `start` to before `end` in pieces of 256 KiB, mapped and not copied."""
        with self.path(name).open("rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)) if end > start else memoryview(b"")
        for at in range(start, end, SLICE_BYTES):
            yield view[at : min(at + SLICE_BYTES, end)]

    def sweep(self, named: Collection[str], *, older_than_s: float) -> int:
        """Remove files that no row names and partial uploads nobody went on with; return how many.

        Call it where nothing completes an upload at the same time, or with an age that makes that impossible.
        """
        oldest, gone = time.time() - older_than_s, 0
        for entry in list(os.scandir(self.folder)):
            if entry.is_file() and entry.name not in named and entry.stat().st_mtime < oldest:
                self.unlink(entry.name)
                gone += 1
        for entry in list(os.scandir(self._partial)):
            digest = Digest(entry.name.partition(".")[0])
            if entry.stat().st_mtime < oldest:
                with self._lock:
                    upload = self._uploads.get(digest)
                    if upload is not None:
                        self._used -= upload.verifier.blocks.size
                        self._forget(digest, upload)
                Path(entry.path).unlink(missing_ok=True)
                gone += 1
        return gone

    def close(self) -> None:
        """Close what is open; partial uploads go on after the next start."""
        for digest, upload in list(self._uploads.items()):
            self._uploads.pop(digest)
            os.close(upload.fd)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _check_room(self, size: int) -> None:
        if self._used + size > self._quota:
            raise QuotaFull(
                f"no room for a blob of {size} bytes: {self._used} of the {self._quota} bytes of the blob quota are in "
                "use; raise [blobs] quota_mb or end runs that are not needed"
            )
        disk = os.statvfs(self.folder)
        free = disk.f_bavail * disk.f_frsize
        if free - size < FREE_FLOOR_BYTES:
            raise QuotaFull(
                f"no room for a blob of {size} bytes: the disk has {free} bytes left; free some space on it"
            )

    def _resume(self, blocks: BlockList) -> _Upload:
        """Open the bytes that are there and check them: whole blocks first, then what there is of the next."""
        path = self._partial / blocks.digest
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            here = min(os.fstat(fd).st_size, blocks.size)
            verifier = BlockVerifier(blocks)
            buffer = bytearray(SLICE_BYTES)
            while verifier.position < here:
                view = memoryview(buffer)[: here - verifier.position]
                count = os.preadv(fd, [view], verifier.position)
                try:
                    verifier.update(view[:count])
                except BlockMismatch as error:
                    verifier = BlockVerifier(blocks, error.index * BLOCK_BYTES)
                    break
            os.ftruncate(fd, verifier.position)
        except OSError as error:
            raise _trouble(error) from error
        return _Upload(verifier, fd, threading.Lock(), time.monotonic())

    def _forget(self, digest: Digest, upload: _Upload) -> None:
        self._uploads.pop(digest, None)
        os.close(upload.fd)


def _write(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    try:
        while len(view):
            count = os.pwrite(fd, view, offset)
            view, offset = view[count:], offset + count
    except OSError as error:
        raise _trouble(error) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _trouble(error: OSError) -> QuotaFull | StoreUnavailable:
    if error.errno in _FULL:
        return QuotaFull("the disk of the blob folder is full; free some space on it. What was accepted is intact")
    return StoreUnavailable(f"the blob folder cannot be written: {error.strerror}")
