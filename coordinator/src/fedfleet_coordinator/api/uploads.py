"""Uploads: how many at a time, where each one goes on, and when it is whole.

An upload is told its list of blocks first (`begin`), then its bytes from the offset that both sides agree on
(`append`). What arrived is kept when the link is cut, when the agent reboots and when the coordinator restarts. One
connection writes to an upload at a time and a newer one takes over, because the coordinator notices a cut link much
later than the agent does.

At most `ACTIVE` uploads run at a time: that bounds memory and costs no throughput. A few more wait, the rest is told
when to come back. An upload over a slow link gives its place away: it needs little, and sixteen slow or hostile
devices must not stall a fleet.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from fedfleet_coordinator.api.reservations import Reservations, TaskKey
from fedfleet_coordinator.blobs import BlobFolder
from fedfleet_coordinator.errors import BadRequest, Busy, WrongBlock, WrongOffset
from fedfleet_protocol.blocks import blocks_of
from fedfleet_protocol.ids import Digest
from fedfleet_protocol.messages import CARRIED_BLOCKS, INLINE_BYTES

ACTIVE = 16
WAITING = 64
SLOW = 512
PER_OWNER = 4
WAIT_S = 5.0
RETRY_AFTER_S = 1.0
SLOW_AFTER_S = 3.0
SLOW_BYTES_S = 256 << 10
COALESCE_BYTES = 256 << 10
"""Measured: bytes are hashed and written quickest in pieces of this size."""
FLUSH_S = 1.0
"""On a slow link bytes are put down at least so often: a coordinator that dies loses no more than that."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored:
    """A whole upload: durable in a file, or so few bytes that they belong into the row.

    Attributes:
        blocks: its list of blocks, if that is short enough to ride in tasks.
    """

    digest: Digest
    size: int
    file: str = ""
    inline: bytes | None = None
    blocks: bytes = b""


class Admission:
    """Who may upload now.

    Attributes:
        active, slow, waiting: how many there are of each.
    """

    def __init__(self, *, at_once: int = ACTIVE, wait_s: float = WAIT_S) -> None:
        self.active = self.slow = self.waiting = 0
        self._at_once, self._wait_s = at_once, wait_s
        self._queue: list[asyncio.Future[None]] = []
        self._owners: Counter[str] = Counter()

    def check(self) -> None:
        """Say now, before the bytes come, that there are too many.

        Raises:
            Busy: come back at the time said.
        """
        if self.waiting >= WAITING:
            raise Busy(f"{self.active} uploads are under way and {self.waiting} wait; come back later", RETRY_AFTER_S)

    @contextlib.asynccontextmanager
    async def place(self, owner: str) -> AsyncIterator["Place"]:
        """Hold a place.

        Raises:
            Busy: none became free in time, or this owner has several already.
        """
        if self._owners[owner] >= PER_OWNER:
            raise Busy(f"{owner} has {PER_OWNER} uploads under way already", RETRY_AFTER_S)
        self._owners[owner] += 1
        try:
            await self._enter()
            place = Place(self)
            try:
                yield place
            finally:
                place.leave()
        finally:
            self._owners[owner] -= 1
            if not self._owners[owner]:
                del self._owners[owner]

    async def _enter(self) -> None:
        if self.active < self._at_once:
            self.active += 1
            return
        self.check()
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self.waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except BaseException as error:
            if turn in self._queue:
                self._queue.remove(turn)
            elif turn.done() and not turn.cancelled():
                self.release()  # the place came in the same instant
            if isinstance(error, TimeoutError):
                raise Busy(f"{self.active} uploads are under way; come back later", RETRY_AFTER_S) from error
            raise
        finally:
            self.waiting -= 1

    def release(self) -> None:
        """Give a place to whoever waits longest."""
        if self._queue:
            self._queue.pop(0).set_result(None)
        else:
            self.active -= 1


class Place:
    """A place among the uploads, held by one of them."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._slow = False
        self._since = time.monotonic()

    def note(self, moved_bytes: int) -> None:
        """Give the place away if the upload, having moved so much, turns out to be a slow one."""
        spent = time.monotonic() - self._since
        if self._slow or spent < SLOW_AFTER_S or moved_bytes > SLOW_BYTES_S * spent or self._admission.slow >= SLOW:
            return
        self._slow = True
        self._admission.slow += 1
        self._admission.release()

    def leave(self) -> None:
        """Give the place back."""
        if self._slow:
            self._admission.slow -= 1
        else:
            self._admission.release()


class _Writer:
    """The request that writes to an upload."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # requests are tasks
        self.task = task
        self.superseded = False
        self.gone = asyncio.Event()


class Uploads:
    """Blobs on their way in.

    Args:
        folder: where they are put down; its work is done in threads of its own.
    """

    def __init__(self, folder: BlobFolder, admission: Admission | None = None) -> None:
        self.admission = admission or Admission()
        self._folder = folder
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="uploads")
        self._writers: dict[Digest, _Writer] = {}
        self._reserved = Reservations()
        self._finishing: dict[Digest, asyncio.Task[None]] = {}

    async def begin(self, digest: Digest, size: int, digests: bytes, *, task: TaskKey | None = None) -> int:
        """Begin an upload or go on with one; return the byte it goes on at, which is `size` if all bytes are here.

        Args:
            task: the task whose reply this is, for an agent's upload.

        Raises:
            Busy: too many uploads. BadRequest: the list of blocks is not this blob's. QuotaFull: no room.
        """
        self.admission.check()
        await self._take_over(digest)
        if size <= INLINE_BYTES:
            return 0
        if task is not None:
            await self._give_up(self._reserved.take(task, digest))
        return await self._in_thread(self._folder.begin, digest, size, digests)

    async def settle(self, wanted: Callable[[Collection[TaskKey]], Awaitable[Collection[TaskKey]]]) -> None:
        """Give up what agents began for tasks that do not want it any more.

        Args:
            wanted: returns which of some tasks still wait for their replies.
        """
        tasks = self._reserved.tasks()
        if tasks:
            await self._give_up(self._reserved.settle(tasks - set(await wanted(tasks))))

    async def reached(self, digest: Digest) -> int | None:
        """Return the byte an upload goes on at, None if its list of blocks is needed first."""
        self.admission.check()
        await self._take_over(digest)
        return self._folder.reached(digest)

    async def append(
        self, digest: Digest, size: int, offset: int, pieces: AsyncIterator[bytes], *, owner: str
    ) -> int | Stored:
        """Take an upload's bytes from `offset` on; return where it goes on, or the small blob that is whole.

        Raises:
            Busy: too many uploads, or a newer connection has taken over. WrongOffset: it goes on elsewhere.
            WrongBlock: a block is wrong; what was right before it stays. BadRequest: not begun, too much, or cut off.
        """
        async with self.admission.place(owner) as place:
            await self._take_over(digest)
            writer = self._writers[digest] = _Writer()
            try:
                if size <= INLINE_BYTES:
                    return await _small(digest, size, offset, pieces)
                return await self._append(digest, offset, pieces, place)
            except asyncio.CancelledError:
                if not writer.superseded:
                    raise
                writer.task.uncancel()
                raise Busy("a newer connection goes on with this upload", RETRY_AFTER_S) from None
            finally:
                writer.gone.set()
                if self._writers.get(digest) is writer:
                    del self._writers[digest]

    async def finish(self, digest: Digest, size: int, keep: Callable[[Stored], Awaitable[None]]) -> None:
        """Make an upload durable whose bytes are all here, and have `keep` give it its row.

        It is done once, and to the end, however many connections ask and whether they stay or not.

        Raises:
            BadRequest: the bytes are not all here.
        """
        task = self._finishing.get(digest)
        if task is None:
            task = self._finishing[digest] = asyncio.create_task(self._finish(digest, size, keep))
            task.add_done_callback(lambda _: self._finishing.pop(digest, None))
        await asyncio.shield(task)

    async def settled(self, digest: Digest) -> None:
        """Wait until an upload that is being finished has its row."""
        task = self._finishing.get(digest)
        if task is not None:
            await asyncio.wait([task])

    async def _finish(self, digest: Digest, size: int, keep: Callable[[Stored], Awaitable[None]]) -> None:
        self._reserved.done(digest)
        blocks = self._folder.listed(digest)
        name = await self._in_thread(self._folder.complete, digest)
        await keep(Stored(digest, size, file=name, blocks=blocks if len(blocks) <= 32 * CARRIED_BLOCKS else b""))

    def close(self) -> None:
        """End the threads; what was put down stays."""
        self._threads.shutdown()

    async def _append(self, digest: Digest, offset: int, pieces: AsyncIterator[bytes], place: Place) -> int:
        """Write pieces behind the reception of the next ones; whatever happens, what came is put down."""
        position, buffer, flushed = offset, bytearray(), time.monotonic()
        writing: asyncio.Future[int] | None = None
        try:
            async for piece in pieces:
                direct = not buffer and len(piece) >= COALESCE_BYTES
                if not direct:
                    buffer += piece
                    if len(buffer) < COALESCE_BYTES and time.monotonic() - flushed < FLUSH_S:
                        continue
                if writing is not None:
                    position = await asyncio.shield(writing)
                    writing = None
                writing = self._in_thread(self._folder.append, digest, position, piece if direct else buffer)
                buffer, flushed = bytearray(), time.monotonic()
                place.note(position - offset)
        finally:
            if writing is not None:
                position = await asyncio.shield(writing)
            if buffer:
                position = await asyncio.shield(self._in_thread(self._folder.append, digest, position, buffer))
        return position

    async def _give_up(self, digests: list[Digest]) -> None:
        for digest in digests:
            if digest not in self._finishing:
                await self._take_over(digest)
                await self._in_thread(self._folder.abandon, digest)

    async def _take_over(self, digest: Digest) -> None:
        """End the connection that writes to an upload, if there is one, and wait until its bytes are put down."""
        writer = self._writers.get(digest)
        if writer is not None:
            writer.superseded = True
            writer.task.cancel()
            await writer.gone.wait()

    def _in_thread(self, act: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, act, *arguments)


async def _small(digest: Digest, size: int, offset: int, pieces: AsyncIterator[bytes]) -> Stored:
    """Return a blob of few bytes, which comes whole or not at all."""
    if offset:
        raise WrongOffset(0)
    data = bytearray()
    async for piece in pieces:
        data += piece
        if len(data) > size:
            raise BadRequest(f"more than the {size} bytes announced of {digest[:12]}")
    if len(data) != size:
        raise BadRequest(f"{len(data)} of {size} bytes came")
    if blocks_of([memoryview(data)]).digest != digest:
        raise WrongBlock(0, f"the bytes are not those of blob {digest[:12]}")
    return Stored(digest, size, inline=bytes(data))
