"""Blobs for agents: fetched by range, brought in resumable pieces; each with a capability made for that agent."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from fastapi import Header, Request
from starlette.responses import Response

from fedfleet_coordinator.api.bodies import SLICE_BYTES, Slices, body_of, length_of, packed
from fedfleet_coordinator.api.reservations import TaskKey
from fedfleet_coordinator.api.roles import Caller, Role, allow, guarded_router
from fedfleet_coordinator.api.services import Hub, Services
from fedfleet_coordinator.api.uploads import Stored
from fedfleet_coordinator.capabilities import HEADER, Granted, Method
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.errors import BadRequest, Busy, CapabilityRefused, NotFound, TooMuch
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.pki import Peer
from fedfleet_coordinator.rows import Blob
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.blocks import MAX_BLOB_BYTES, BlockList, block_count, blocks_of
from fedfleet_protocol.ids import AgentId, Digest, parse_digest
from fedfleet_protocol.messages import INLINE_BYTES

LIST_BYTES = 8 + 32 * block_count(MAX_BLOB_BYTES)
"""The longest list of blocks there is, with the size before it."""
router = guarded_router()
Proof = Annotated[str, Header(alias=HEADER)]
Asked = Annotated[str | None, Header(alias="Range")]


@router.get("/v1/blobs/{digest}", include_in_schema=False)
@allow(Role.AGENT, max_bytes=0)
async def fetch(digest: str, hub: Hub, caller: Caller, proof: Proof = "", asked: Asked = None) -> Response:
    """Return a blob, or the range of it that is asked for."""
    granted(hub, caller, "GET", digest, proof)
    return Slices(hub.downloads.view(await blob(hub, parse_digest(digest))), asked)


@router.get("/v1/blobs/{digest}/blocks", include_in_schema=False)
@allow(Role.AGENT, max_bytes=0)
async def fetch_blocks(digest: str, hub: Hub, caller: Caller, proof: Proof = "") -> Response:
    """Return a blob's list of blocks: its size as u64, then the SHA-256 of each block."""
    granted(hub, caller, "GET", digest, proof)
    blocks = await hub.downloads.blocks(await blob(hub, parse_digest(digest)))
    return Response(blocks.size.to_bytes(8, "little") + blocks.digests, media_type="application/octet-stream")


@router.post("/v1/uploads/{digest}", include_in_schema=False)
@allow(Role.AGENT, max_bytes=LIST_BYTES)
async def begin(digest: str, request: Request, hub: Hub, caller: Caller, proof: Proof = "") -> Response:
    """Take an upload's list of blocks; say where it goes on."""
    right = granted(hub, caller, "PUT", digest, proof)
    task = await _awaited(hub, right, caller)
    return await begin_upload(hub, parse_digest(digest), await body_of(request), size=right.size, task=task)


@router.get("/v1/uploads/{digest}", include_in_schema=False)
@allow(Role.AGENT, max_bytes=0)
async def reached(digest: str, hub: Hub, caller: Caller, proof: Proof = "") -> Response:
    """Say where an upload goes on; 404 if its list of blocks must be sent first."""
    right = granted(hub, caller, "PUT", digest, proof)
    return await upload_reached(hub, parse_digest(digest), right.size)


@router.patch("/v1/uploads/{digest}", include_in_schema=False)
@allow(Role.AGENT, max_bytes=None)
async def append(digest: str, offset: int, request: Request, hub: Hub, caller: Caller, proof: Proof = "") -> Response:
    """Take an upload's bytes from `offset` on; answer once they are durable, or say where to go on."""
    right = granted(hub, caller, "PUT", digest, proof)
    if right.size <= INLINE_BYTES:  # larger ones were begun
        await _awaited(hub, right, caller)
    return await append_upload(
        hub, parse_digest(digest), request, offset=offset, size=right.size, agent=AgentId(caller.name)
    )


def granted(hub: Services, caller: Peer, method: Method, digest: str, proof: str) -> Granted:
    """Return what the caller's capability grants.

    Raises:
        CapabilityRefused: nothing.
    """
    return hub.capabilities.check(
        proof, method=method, digest=Digest(digest), agent=AgentId(caller.name), now_wall=hub.engine.clock.now().wall
    )


async def _awaited(hub: Services, right: Granted, caller: Peer) -> TaskKey:
    """Return the task that an upload is for.

    Raises:
        CapabilityRefused: it wants no reply any more.
    """
    task = (right.run, right.n, AgentId(caller.name))
    if not await hub.engine.do(lambda tx, now, out: hub.exchanges.awaits(tx, *task)):
        raise CapabilityRefused(f"exchange {right.n} of run {right.run} takes no reply of yours any more: ask again")
    return task


async def blob(hub: Services, digest: Digest) -> Blob:
    """Return a blob's row.

    Raises:
        NotFound: it is not here.
    """
    row = await hub.engine.do(lambda tx, now, out: tx.get(Blob, digest))
    if row is None:
        raise NotFound(f"blob {digest[:12]} is not here (any more); ask for your tasks again")
    return row


async def begin_upload(
    hub: Services, digest: Digest, told: bytes, *, size: int | None = None, task: TaskKey | None = None
) -> Response:
    """Take a list of blocks; say where the upload goes on.

    Args:
        told: the size as u64, then the SHA-256 of each block. size: what it must be, if that is known.
        task: the task whose reply this is, for an agent's upload.

    Raises:
        BadRequest: it is no list of blocks, or another size was granted.
    """
    claimed = int.from_bytes(told[:8], "little") if len(told) >= 8 else -1
    if claimed < 0 or (size is not None and claimed != size):
        raise BadRequest(f"the list of blocks is for a blob of {claimed} bytes, {size} were granted")
    if await _is_here(hub, digest):
        return packed({"offset": claimed, "complete": True})
    position = await hub.uploads.begin(digest, claimed, told[8:], task=task)
    return await _said(hub, digest, position, claimed)


async def upload_reached(hub: Services, digest: Digest, size: int) -> Response:
    """Say where an upload goes on.

    Raises:
        NotFound: its list of blocks must be sent first.
    """
    if await _is_here(hub, digest):
        return packed({"offset": size, "complete": True})
    position = await hub.uploads.reached(digest)
    if position is None:
        raise NotFound(f"the upload of {digest[:12]} was not begun; send its list of blocks")
    return await _said(hub, digest, position, size)


async def append_upload(
    hub: Services,
    digest: Digest,
    request: Request,
    *,
    offset: int,
    size: int,
    agent: AgentId | None = None,
) -> Response:
    """Take the bytes of a request into an upload.

    Args:
        agent: whose reply this may be; None for a runner.

    Raises:
        TooMuch: the request claims more bytes than the blob has left. CoordinatorError: as `Uploads.append`.
    """
    claimed = length_of(request.scope)
    if not 0 <= offset <= size or (claimed is not None and offset + claimed > size):
        raise TooMuch(f"{claimed} bytes from byte {offset} on; the blob {digest[:12]} has {size}")
    if await _is_here(hub, digest):
        return packed({"offset": size, "complete": True})
    if size > INLINE_BYTES and hub.blobs.announced(digest) is None:
        raise not_begun(digest)
    owner = f"agent {agent}" if agent is not None else f"run {request.path_params['run']}"
    reached = await hub.uploads.append(digest, size, offset, _pieces(request), owner=owner)
    if isinstance(reached, Stored):
        await keep(hub, reached, agent)
        return packed({"offset": size, "complete": True})
    return await _said(hub, digest, reached, size, agent)


def not_begun(digest: Digest) -> Busy:
    """Return the error for bytes of an upload whose list of blocks went with the coordinator's last life."""
    return Busy(f"the coordinator has restarted; begin the upload of {digest[:12]} again", 0.05)


async def store(hub: Services, data: bytes) -> BlockList:
    """Make bytes that are here already a stored blob; return its blocks."""
    view = memoryview(data)
    pieces = [view[at : at + SLICE_BYTES] for at in range(0, len(view), SLICE_BYTES)]
    blocks = await asyncio.to_thread(blocks_of, pieces)
    if await _is_here(hub, blocks.digest):
        return blocks
    if blocks.size <= INLINE_BYTES:
        await keep(hub, Stored(blocks.digest, blocks.size, inline=data))
        return blocks
    position = await hub.uploads.begin(blocks.digest, blocks.size, blocks.digests)
    while position < blocks.size:
        piece = view[position : position + SLICE_BYTES]
        position = await asyncio.to_thread(hub.blobs.append, blocks.digest, position, piece)
    await hub.uploads.finish(blocks.digest, blocks.size, lambda stored: keep(hub, stored))
    return blocks


async def keep(hub: Services, stored: Stored, agent: AgentId | None = None) -> None:
    """Give a whole upload its row, and settle the reply that waited for it; of a second copy, let go.

    Raises:
        CapabilityRefused: its agent has announced another reply since. Kept, it would only take room.
    """

    def put(tx: Tx, now: Now, out: Outbox) -> None:
        known = tx.get(Blob, stored.digest)
        if known is None and agent is not None and not hub.exchanges.wants(agent, stored.digest):
            raise CapabilityRefused(f"{stored.digest[:12]} is not the reply that was announced last: ask again")
        if known is not None:
            tx.put(msgspec.structs.replace(known, stored_at=now.up))
            if stored.file:
                out.after_commit(lambda: hub.blobs.unlink(stored.file))
        else:
            tx.put(
                Blob(
                    digest=stored.digest, size=stored.size, file=stored.file, inline=stored.inline,
                    blocks=stored.blocks, stored_at=now.up,
                )
            )  # fmt: skip
        if agent is not None:
            hub.exchanges.uploaded(tx, agent, stored.digest, now, out)

    try:
        await hub.engine.do(put)
    except CapabilityRefused:
        if stored.file:
            hub.blobs.unlink(stored.file)
        raise


async def _is_here(hub: Services, digest: Digest) -> bool:
    """Whether the blob is stored already; if so it stays for a while, until a row names it."""

    def touch(tx: Tx, now: Now, out: Outbox) -> bool:
        known = tx.get(Blob, digest)
        if known is not None and now.up - known.stored_at > 60:
            tx.put(msgspec.structs.replace(known, stored_at=now.up))
        return known is not None

    await hub.uploads.settled(digest)
    return await hub.engine.do(touch)


async def _said(hub: Services, digest: Digest, position: int, size: int, agent: AgentId | None = None) -> Response:
    """Say how far an upload is; if all bytes are here, once it is durable and has its row."""
    complete = position == size and size > 0 and hub.blobs.is_whole(digest)
    if complete:
        await hub.uploads.finish(digest, size, lambda stored: keep(hub, stored, agent))
    return packed({"offset": position, "complete": complete})


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """Yield a request's body as it comes.

    Raises:
        BadRequest: the connection was cut before the end.
    """
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("the connection was cut; what came is kept")
        if piece := message.get("body", b""):
            yield piece
        if not message.get("more_body", False):
            return
