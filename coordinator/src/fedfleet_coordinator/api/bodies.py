"""Bodies of requests and answers: read within limits, written without copies."""

import asyncio
import contextlib
import mmap
import os
import re
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from fedfleet_coordinator.errors import BadRequest, Busy, CoordinatorError, Stalled, TooMuch

MSGPACK = "application/msgpack"
_BYTES = "application/octet-stream"
SLICE_BYTES = 256 << 10
"""Measured: 256 KiB slices of a map cost a seventh of the CPU of Starlette's FileResponse."""
STALL_S = 60.0
"""A client that neither sends nor takes a byte for so long has gone."""
DRAIN_BYTES = 4 << 20
DRAIN_S = 1.0
_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{0,15})")


class BoundedBody:
    """A request's body, of at most so many bytes, and without long pauses.

    Args:
        max_bytes: None if the route counts itself.

    Attributes:
        whole: whether the client has said all it has to say.
    """

    def __init__(self, receive: Receive, max_bytes: int | None, claimed: int | None, *, chunked: bool) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._claimed = claimed
        self._seen = 0
        self.whole = not claimed and not chunked

    async def receive(self) -> Message:
        """Return the next message.

        Raises:
            TooMuch: the body is longer than it may be. Stalled: the client stopped in the middle.
        """
        if self.whole:
            return await self._receive()
        try:
            async with asyncio.timeout(STALL_S):
                message = await self._receive()
        except TimeoutError as error:
            raise Stalled(f"nothing came for {STALL_S:.0f} s in the middle of the request") from error
        if message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            self.whole = not message.get("more_body", False)
            if self._max_bytes is not None and self._seen > self._max_bytes:
                raise TooMuch(f"the body of this request has more than the {self._max_bytes} bytes that are taken")
        return message

    async def drain(self) -> None:
        """Take and forget the rest of the body if it is short: a client reads no answer before it has sent all."""
        if self._claimed is None or self._claimed - self._seen > DRAIN_BYTES:
            return
        self._max_bytes = None
        with contextlib.suppress(TimeoutError, Stalled):
            async with asyncio.timeout(DRAIN_S):
                while not self.whole and (await self.receive())["type"] == "http.request":
                    pass


def length_of(scope: Scope) -> int | None:
    """Return what the request claims of its body's length, None if it does not.

    Raises:
        BadRequest: it is no number.
    """
    for name, value in scope["headers"]:
        if name == b"content-length":
            if not value.isdigit() or len(value) > 15:
                raise BadRequest("the header Content-Length is not a length")
            return int(value)
    return None


def packed(value: Any, status: int = 200) -> Response:
    """Return an answer in msgpack."""
    return Response(msgspec.msgpack.encode(value), status, media_type=MSGPACK)


def unpacked(data: bytes, kind: Any) -> Any:
    """Return the msgpack value in `data`, which must be a `kind`.

    Raises:
        BadRequest: it is not.
    """
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise BadRequest(f"the body is not what this route takes: {error}") from error


def refusal(error: CoordinatorError, *, whole: bool = True) -> Response:
    """Return the answer that tells a client of an error.

    Args:
        whole: whether the request was read to its end; if not the connection is closed, for what is still to come may
            be gigabytes over a slow link.
    """
    headers = {"Retry-After": f"{max(1, round(error.retry_after_s))}"} if isinstance(error, Busy) else {}
    if not whole:
        headers["Connection"] = "close"
    return JSONResponse({"code": error.code, "text": str(error), **error.details}, error.status, headers)


async def body_of(request: Request) -> bytes:
    """Return the whole body; the route's guard has bounded it.

    Raises:
        BadRequest: the client went before the end.
    """
    pieces = []
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("the request was cut off")
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


def mapped(path: str | os.PathLike[str], size: int) -> memoryview:
    """Return the `size` bytes of a file as a map that stays valid after the file is unlinked.

    Raises:
        OSError: it cannot be opened, or has another size: reading past the end of a map would kill the process.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size != size:
            raise OSError(f"{os.fspath(path)} does not have the {size} bytes it should have")
        if size == 0:
            return memoryview(b"")
        area = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    area.madvise(mmap.MADV_SEQUENTIAL)
    return memoryview(area)


class Slices(Response):
    """Bytes in memory, or the range of them that is asked for, in slices; nothing is copied.

    Args:
        asked: the request's Range header. A range we do not understand is ignored, as RFC 9110 §14.2 allows.
    """

    def __init__(
        self, data: bytes | memoryview, asked: str | None = None, media_type: str = "application/octet-stream"
    ) -> None:
        view = memoryview(data)
        size = len(view)
        super().__init__(None, 200, {"Accept-Ranges": "bytes", "Cache-Control": "no-store"}, _BYTES)
        match = _RANGE.fullmatch(asked) if asked else None
        if match is not None:
            start, end = int(match[1]), min(int(match[2] or size), size - 1)
            if start >= size or end < start:
                self.status_code = 416
                self.headers["Content-Range"] = f"bytes */{size}"
                view = view[:0]
            else:
                self.status_code = 206
                self.headers["Content-Range"] = f"bytes {start}-{end}/{size}"
                view = view[start : end + 1]
        self.headers["Content-Length"] = str(len(view))
        self._view = view

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the bytes; give up on a client that takes none."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        view, at = self._view, 0
        while True:
            piece = view[at : at + SLICE_BYTES]
            at += len(piece)
            async with asyncio.timeout(STALL_S):
                await send({"type": "http.response.body", "body": piece, "more_body": at < len(view)})
            if at >= len(view):
                return
