"""Blobs from and to the coordinator, over links that are slow, cut and shared: resumed at the byte where they stopped.

A transfer goes on until it is done or cancelled. Between tries it waits, longer each time and never in step with other
agents, unless something moved. Progress is bytes that moved, and nothing else renews a lease.
"""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import msgspec
import urllib3

from fedfleet_agent.errors import AgentError, HubRefused, HubUnreachable
from fedfleet_agent.hub import CAPABILITY, Hub, Patience, checked, drained, refused, told_in
from fedfleet_agent.incoming import BLOCKS, Incoming, Place
from fedfleet_protocol.blocks import BLOCK_BYTES, BlockList
from fedfleet_protocol.blocks import checked as checked_blocks
from fedfleet_protocol.errors import BlockMismatch, Malformed
from fedfleet_protocol.messages import Grant

Moved = Callable[[int], None]
"""Told the number of bytes each time some moved."""

READ_BYTES: Final = 256 << 10
FLUSH_S: Final = 1.0
QUICK_BYTES_S: Final = 8 << 20
"""From this rate on a cut may cost the piece under way, which took a thirtieth of a second at most."""
WRONG_LIMIT: Final = 5
_FEWEST, _MOST = 2 << 10, 256 << 10
_NOTHING_HELD: Final[Mapping[bytes, Place]] = {}


class _Told(msgspec.Struct):
    """What the hub says of an upload."""

    offset: int
    complete: bool = False


def _unheard(_: int) -> None:
    """Tell nobody."""


class Transfer:
    """Fetches and brings blobs.

    Args:
        rng: for the jitter of waits.
    """

    def __init__(self, hub: Hub, rng: random.Random) -> None:
        self._hub = hub
        self._rng = rng

    def fetch(
        self,
        grant: Grant,
        folder: Path,
        *,
        cancel: threading.Event,
        held: Mapping[bytes, Place] = _NOTHING_HELD,
        moved: Moved = _unheard,
    ) -> Path:
        """Return the blob's file in `folder`, named by its digest, verified and durable.

        Args:
            held: blocks that need not be fetched, as `held_blocks` finds them.

        Raises:
            TransferCancelled: `cancel` was set. GrantRefused: the grant does not hold (any more); ask again.
            HubRefused: the hub has no such blob, or sends wrong bytes again and again. DiskFull: no room.
        """
        target = folder / grant.blob.digest
        if target.is_file():
            return target
        patience = Patience(self._rng, cancel)
        blocks = self._blocks(grant, target, patience) if grant.blob.size > BLOCK_BYTES else None
        incoming = Incoming(target, grant.blob.digest, grant.blob.size, blocks)
        try:
            if grant.inline is not None and incoming.position == 0:
                incoming.append(grant.inline[: grant.blob.size])
            self._fill(grant, incoming, held, patience, moved)
        finally:
            incoming.close()
        return target

    def upload(
        self,
        source: Path | bytes,
        grant: Grant,
        blocks: BlockList,
        *,
        cancel: threading.Event,
        moved: Moved = _unheard,
    ) -> None:
        """Bring a blob to the hub; it is durable there afterwards.

        Raises:
            TransferCancelled, GrantRefused: as `fetch`. HubRefused: the hub will not have it.
            AgentError: the file is gone, or has other bytes than its list of blocks says.
        """
        patience = Patience(self._rng, cancel)
        wrong, begun = 0, False
        with _Source(source, blocks.size) as pieces:
            while True:
                patience.check()
                try:
                    told = self._begin(grant, blocks, begun=begun)
                    begun = True
                    if told.complete:
                        return
                    told = self._bring(grant, pieces, told.offset, patience, moved)
                    if told.complete:
                        return
                except HubUnreachable as error:
                    patience.wait(error.retry_after_s)
                except BlockMismatch as error:
                    wrong += 1
                    if wrong >= WRONG_LIMIT:
                        raise AgentError(f"blob {blocks.digest[:12]} has changed on this disk: {error}") from error

    # --- fetching ----------------------------------------------------------------------------------------------------

    def _blocks(self, grant: Grant, target: Path, patience: Patience) -> BlockList:
        """Return the blob's list of blocks: from the grant, from an earlier try, or from the hub."""
        blob, kept = grant.blob, target.with_name(target.name + BLOCKS)
        if grant.blocks:
            with suppress(Malformed):
                return checked_blocks(blob.digest, blob.size, grant.blocks)
        if kept.is_file():
            try:
                return checked_blocks(blob.digest, blob.size, kept.read_bytes())
            except Malformed:
                kept.unlink()
        wrong = 0
        while True:
            patience.check()
            try:
                body = checked(self._hub.open("GET", f"{grant.path}/blocks", headers={CAPABILITY: grant.capability}))
                blocks = checked_blocks(blob.digest, int.from_bytes(body[:8], "little"), body[8:])
                kept.write_bytes(blocks.digests)
                return blocks
            except HubUnreachable as error:
                patience.wait(error.retry_after_s)
            except Malformed as error:
                wrong += 1
                if wrong >= WRONG_LIMIT:
                    raise HubRefused(f"the hub's list of blocks of {blob.digest[:12]} is wrong: {error}") from error
                patience.wait()

    def _fill(
        self, grant: Grant, incoming: Incoming, held: Mapping[bytes, Place], patience: Patience, moved: Moved
    ) -> None:
        wrong = 0
        while True:
            patience.check()
            try:
                while incoming.take_held(held):
                    pass
                if incoming.position < incoming.size:
                    self._get(grant, incoming, incoming.wanted(held), patience, moved)
                elif incoming.finish():
                    return
                else:
                    wrong = _counted(wrong, grant, "its bytes do not have its digest")
            except HubUnreachable as error:
                patience.wait(error.retry_after_s)
            except Malformed as error:
                wrong = _counted(wrong, grant, str(error))
                patience.wait()

    def _get(self, grant: Grant, incoming: Incoming, wanted: tuple[int, int], patience: Patience, moved: Moved) -> None:
        """Fetch a range; what came before a cut is kept."""
        start, end = wanted
        headers = {CAPABILITY: grant.capability, "Range": f"bytes={start}-{end - 1}"}
        answer = self._hub.open("GET", grant.path, headers=headers)
        if answer.status not in {200, 206}:
            raise refused(answer, drained(answer))
        if answer.status == 200 and start:
            answer.close()
            raise HubRefused("the hub does not know ranges; is there a proxy in between?")
        try:
            for piece in _gathered(answer, end - start):
                patience.check()
                incoming.append(piece)
                patience.reset()
                moved(len(piece))
        finally:
            if incoming.position == end:
                answer.release_conn()
            else:
                answer.close()

    # --- bringing ----------------------------------------------------------------------------------------------------

    def _begin(self, grant: Grant, blocks: BlockList, *, begun: bool) -> _Told:
        """Return where the upload goes on; the list of blocks is sent only if the hub does not have it."""
        headers = {CAPABILITY: grant.capability}
        if begun:
            answer = self._hub.open("GET", grant.path, headers=headers)
            body = drained(answer)
            if answer.status < 300:
                return _told(body)
            if answer.status != 404:
                raise refused(answer, body)
        told = blocks.size.to_bytes(8, "little") + blocks.digests
        return _told(checked(self._hub.open("POST", grant.path, body=told, headers=headers)))

    def _bring(self, grant: Grant, source: "_Source", offset: int, patience: Patience, moved: Moved) -> _Told:
        if not 0 <= offset <= source.size:
            raise HubRefused(f"the hub wants byte {offset} of a blob of {source.size}")

        def told(count: int) -> None:
            patience.check()
            patience.reset()
            moved(count)

        headers = {CAPABILITY: grant.capability, "Content-Length": str(source.size - offset)}
        answer = self._hub.open(
            "PATCH", f"{grant.path}?offset={offset}", body=source.pieces(offset, told), headers=headers
        )
        said = drained(answer)
        if answer.status < 300:
            return _told(said)
        if answer.status == 422:
            raise BlockMismatch(0, str(told_in(said).get("text", "a block is wrong")))
        if answer.status == 409:
            return _Told(offset)  # someone else's bytes came in between: `_begin` says where to go on
        raise refused(answer, said)


class _Source:
    """The bytes of an upload, in pieces that suit the link."""

    def __init__(self, source: Path | bytes, size: int) -> None:
        self.size = size
        self._data = source if isinstance(source, bytes) else None
        self._path = source if isinstance(source, Path) else None
        self._descriptor = -1

    def __enter__(self) -> Self:
        if self._path is not None:
            try:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise AgentError(f"{self._path} cannot be read: {error.strerror}") from error
        there = len(self._data) if self._data is not None else os.fstat(self._descriptor).st_size
        if there != self.size:
            self.__exit__()
            raise AgentError(f"the blob to be uploaded has {there} bytes, its list of blocks says {self.size}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def pieces(self, offset: int, moved: Moved) -> Iterator[bytes]:
        """Yield the bytes from `offset` on.

        A piece is one TLS record or several, and a record that is cut in the middle is lost: on a slow link pieces are
        as small as what passes in a twentieth of a second.
        """
        began, sent, count = time.monotonic(), 0, 2 * _FEWEST
        while offset < self.size:
            data = self._read(offset, min(count, self.size - offset))
            yield data
            offset += len(data)
            sent += len(data)
            moved(len(data))
            rate = sent / max(1e-6, time.monotonic() - began)
            count = int(min(_MOST, max(_FEWEST, rate / 20), 2 * count))

    def _read(self, offset: int, count: int) -> bytes:
        if self._data is not None:
            return self._data[offset : offset + count]
        data = os.pread(self._descriptor, count, offset)
        if not data:
            raise AgentError(f"{self._path} became shorter while it was uploaded")
        return data


def _gathered(answer: urllib3.BaseHTTPResponse, count: int) -> Iterator[bytearray]:
    """Yield `count` bytes of an answer in pieces of `READ_BYTES`; before an error, what came until then.

    Raises:
        HubUnreachable: the connection broke, or the answer ended early.
    """
    gathered, left, failure, since, quick = bytearray(), count, "", time.monotonic(), False
    while left and not failure:
        try:
            # One record at a time loses nothing to a cut, and costs a quick link most of the processor's time.
            piece = answer.read(min(READ_BYTES, left)) if quick else answer.read1(min(READ_BYTES, left))
            failure = "" if piece else "the answer ended early"
        except (urllib3.exceptions.HTTPError, OSError) as error:
            piece, failure = b"", str(error)
        gathered += piece
        left -= len(piece)
        now = time.monotonic()
        full = len(gathered) >= READ_BYTES or now - since >= FLUSH_S
        if gathered and (full or failure or not left):
            quick = len(gathered) >= QUICK_BYTES_S * (now - since)
            yield gathered
            gathered, since = bytearray(), time.monotonic()
    if failure:
        raise HubUnreachable(f"the connection to the hub broke: {failure}; the transfer goes on by itself")


def _counted(wrong: int, grant: Grant, text: str) -> int:
    if wrong + 1 >= WRONG_LIMIT:
        raise HubRefused(f"what the hub sends as blob {grant.blob.digest[:12]} is wrong again and again: {text}")
    return wrong + 1


def _told(body: bytes) -> _Told:
    try:
        return msgspec.msgpack.decode(body, type=_Told)
    except msgspec.MsgspecError as error:
        raise HubRefused(f"the hub's answer to an upload cannot be read: {error}") from error
