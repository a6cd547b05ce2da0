"""The coordinator's blob folder: uploads that may be cut anywhere, and files that are durable before a row names them.

A partial upload is a file: the bytes so far; whoever goes on with it names its blocks again. It goes on at the byte
where it stopped, also after this process was killed: what is there is read and checked again, block by block.
A finished blob is synced, renamed to a name of its own (digest and nonce), and its folder synced; only then may a row
name it (EXCHANGE rules 1 and 12). Everything here blocks: call it from a thread.

No upload holds a descriptor between two calls: ten thousand agents may have begun one. One lock per upload is taken
before the folder's own, which guards the numbers and is never held while a disk works.
"""

import contextlib
import errno
import mmap
import os
import secrets
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedfleet_coordinator.errors import (
    BadRequest,
    CoordinatorError,
    QuotaFull,
    StoreUnavailable,
    WrongBlock,
    WrongOffset,
)
from fedfleet_protocol.blocks import BLOCK_BYTES, BlockList, BlockVerifier, checked
from fedfleet_protocol.errors import BlockMismatch, Malformed
from fedfleet_protocol.ids import Digest

SLICE_BYTES = 256 << 10
FREE_FLOOR_BYTES = 256 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(slots=True)
class _Upload:
    verifier: BlockVerifier
    lock: threading.Lock
    touched: float


class BlobFolder:
    """Blobs as files.

    Args:
        quota_bytes: partial and finished blobs together take no more; an upload counts whole from its beginning.
        free_floor_bytes: so much of the disk stays free for others, the database above all.

    Raises:
        StoreUnavailable: the folder cannot be made or read.
    """

    def __init__(self, folder: Path, *, quota_bytes: int = 1 << 40, free_floor_bytes: int = FREE_FLOOR_BYTES) -> None:
        self.folder = folder
        self._partial = folder / "partial"
        self._quota, self._floor = quota_bytes, free_floor_bytes
        self._uploads: dict[Digest, _Upload] = {}
        self._completed: dict[str, float] = {}
        self._lock = threading.Lock()
        try:
            for place in (folder, self._partial):
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Partial uploads from before this start, until somebody goes on with them.
            self._idle = {entry.name: entry.stat().st_size for entry in os.scandir(self._partial) if entry.is_file()}
            self._used = sum(self._idle.values()) + sum(e.stat().st_size for e in os.scandir(folder) if e.is_file())
        except OSError as error:
            raise _trouble(error) from error

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
        while True:
            with self._lock:
                upload = self._uploads.get(digest)
                if upload is None:
                    upload = self._reserve(blocks)
                    break
            with upload.lock:
                if self._uploads.get(digest) is upload:  # else it was completed or given up while this waited
                    upload.touched = time.monotonic()
                    return upload.verifier.position
        try:
            upload.verifier = self._checked(blocks)
        except OSError as error:
            self._forget(digest)
            raise _trouble(error) from error
        finally:
            upload.lock.release()
        return upload.verifier.position

    def append(self, digest: Digest, offset: int, data: bytes | memoryview) -> int:
        """Add the next bytes of an upload; return the byte it goes on at. Pieces of 256 KiB are quickest.

        Raises:
            BadRequest: the upload was not begun, or this is more than it announced.
            WrongOffset: it goes on at another byte. WrongBlock: a block was wrong, and must be sent again.
            QuotaFull: the disk is full; what is there stays.
        """
        with self._held(digest) as upload, self._opened(digest) as fd:
            blocks = upload.verifier.blocks
            if offset != upload.verifier.position:
                raise WrongOffset(upload.verifier.position)
            if offset + len(data) > blocks.size:
                raise BadRequest(f"more than the {blocks.size} bytes announced of {digest[:12]}")
            upload.touched = time.monotonic()
            try:
                _write(fd, data, offset)
                upload.verifier.update(data)
            except BlockMismatch as error:
                start = error.index * BLOCK_BYTES
                os.ftruncate(fd, start)
                upload.verifier = BlockVerifier(blocks, start)
                raise WrongBlock(start, str(error)) from error
            except OSError:
                os.ftruncate(fd, offset)
                raise
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

    def listed(self, digest: Digest) -> bytes:
        """Return an upload's list of blocks; empty if it was not begun, or is completed."""
        upload = self._uploads.get(digest)
        return b"" if upload is None else upload.verifier.blocks.digests

    def complete(self, digest: Digest) -> str:
        """Make a whole upload durable under a name of its own; return the name. A row may name it from now on.

        Raises:
            BadRequest: it is not whole, or somebody completed it before. QuotaFull: the disk is full.
            StoreUnavailable: the disk fails. In these two cases the upload must be begun again.
        """
        name = f"{digest}.{secrets.token_hex(6)}"
        with self._held(digest) as upload:
            if not upload.verifier.complete:
                raise BadRequest(f"the upload of {digest[:12]} is not whole")
            try:
                with self._opened(digest) as fd:
                    os.fsync(fd)
                    (self._partial / digest).rename(self.folder / name)
                    _sync_folder(self.folder)
            except CoordinatorError:
                # A second fsync would say yes to pages that the first one could not write and dropped.
                for path in (self._partial / digest, self.folder / name):
                    with contextlib.suppress(OSError):
                        path.unlink(missing_ok=True)
                self._forget(digest)
                raise
            with self._lock:
                del self._uploads[digest]
                self._completed[name] = time.monotonic()
        return name

    def abandon(self, digest: Digest) -> None:
        """Remove a partial upload, begun now or before this start; it waits for whoever writes to it at the moment."""
        upload = self._uploads.get(digest)
        with upload.lock if upload is not None else contextlib.nullcontext(), self._lock:
            if self._uploads.get(digest) is not upload:
                return  # it was completed, given up or begun while this waited
            if upload is not None:
                del self._uploads[digest]
            elif digest not in self._idle:
                return
            self._used -= upload.verifier.blocks.size if upload is not None else self._idle.pop(digest)
            (self._partial / digest).unlink(missing_ok=True)

    # --- finished blobs ----------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """Return where a blob's file is."""
        return self.folder / name

    def unlink(self, name: str) -> None:
        """Remove a file that no row names any more; one that is gone is no error."""
        path = self.path(name)
        with self._lock, contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            self._used -= size
            self._completed.pop(name, None)

    def slices(self, name: str, start: int, end: int) -> Iterator[memoryview]:
        """Yield the bytes from `start` to before `end` in pieces of 256 KiB, mapped and not copied."""
        with self.path(name).open("rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)) if end > start else memoryview(b"")
        for at in range(start, end, SLICE_BYTES):
            yield view[at : min(at + SLICE_BYTES, end)]

    def sweep(self, named: Collection[str], *, older_than_s: float) -> int:
        """Remove files that no row names and partial uploads nobody went on with; return how many.

        What this process did is aged by a clock that does not jump: a file may be waiting for its row. What was there
        before is aged by its time stamp.

        Args:
            named: read from the store after this folder was opened.
        """
        gone = 0
        for entry in list(os.scandir(self.folder)):
            if entry.is_file() and entry.name not in named and self._age(entry, self._completed) >= older_than_s:
                self.unlink(entry.name)
                gone += 1
        for entry in list(os.scandir(self._partial)):
            gone += self._give_up(entry, older_than_s)
        return gone

    def close(self) -> None:
        """Let go; partial uploads go on after the next start."""
        with self._lock:
            self._uploads.clear()

    # --- inside ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _held(self, digest: Digest) -> Iterator[_Upload]:
        """Have an upload to oneself."""
        upload = self._uploads.get(digest)
        if upload is not None:
            with upload.lock:
                # It may have been completed or given up while this waited.
                if self._uploads.get(digest) is upload:
                    yield upload
                    return
        raise BadRequest(f"the upload of {digest[:12]} is not under way here; begin it again")

    @contextlib.contextmanager
    def _opened(self, digest: Digest) -> Iterator[int]:
        """Open the file of an upload that is held; what the disk says of it is said in our words."""
        try:
            fd = os.open(self._partial / digest, os.O_RDWR | os.O_CLOEXEC)
            try:
                yield fd
            finally:
                os.close(fd)
        except FileNotFoundError as error:
            self._forget(digest)
            raise BadRequest(f"the upload of {digest[:12]} was removed from the disk; begin it again") from error
        except OSError as error:
            raise _trouble(error) from error

    def _forget(self, digest: Digest) -> None:
        """Let go of an upload that is held."""
        with self._lock:
            upload = self._uploads.pop(digest, None)
            if upload is not None:
                self._used -= upload.verifier.blocks.size

    def _give_up(self, entry: "os.DirEntry[str]", older_than_s: float) -> bool:
        """Remove a partial upload if it is old and nobody is at it."""
        with self._lock:
            upload = self._uploads.get(Digest(entry.name))
            if upload is None:
                if self._age(entry, {}) < older_than_s:
                    return False
                self._used -= self._idle.pop(entry.name, 0)
            elif time.monotonic() - upload.touched < older_than_s or not upload.lock.acquire(blocking=False):
                return False
            else:
                self._used -= upload.verifier.blocks.size
                del self._uploads[Digest(entry.name)]
                upload.lock.release()
            Path(entry.path).unlink(missing_ok=True)
        return True

    def _age(self, entry: "os.DirEntry[str]", known: dict[str, float]) -> float:
        since = known.get(entry.name)
        if since is not None:
            return time.monotonic() - since
        try:
            return time.time() - entry.stat().st_mtime
        except FileNotFoundError:
            return 0.0  # somebody was quicker

    def _reserve(self, blocks: BlockList) -> _Upload:
        """Make an upload that is held already; the folder's lock is held too."""
        here = self._idle.get(blocks.digest, 0)
        self._check_room(blocks.size, here=here)
        self._used += blocks.size - here
        self._idle.pop(blocks.digest, None)
        upload = self._uploads[blocks.digest] = _Upload(BlockVerifier(blocks), threading.Lock(), time.monotonic())
        upload.lock.acquire()  # nobody else knows it yet, so this does not wait
        return upload

    def _check_room(self, size: int, *, here: int) -> None:
        if self._used + size - here > self._quota:
            raise QuotaFull(
                f"no room for a blob of {size} bytes: {self._used} of the {self._quota} bytes of the blob quota are in "
                "use; raise [blobs] quota_mb or end runs that are not needed"
            )
        disk = os.statvfs(self.folder)
        free = disk.f_bavail * disk.f_frsize
        if free - (size - here) < self._floor:
            raise QuotaFull(
                f"no room for a blob of {size} bytes: the disk has {free} bytes left, of which {self._floor} stay "
                "free; free some space on it"
            )

    def _checked(self, blocks: BlockList) -> BlockVerifier:
        """Read and check the bytes that are there; cut off what is wrong."""
        fd = os.open(self._partial / blocks.digest, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
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
            return verifier
        finally:
            os.close(fd)


def _write(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


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
