"""What a run's ServerApp process asks: its run, its blobs, its exchanges.

The certificate says which run, the header `Fedfleet-Epoch` says which launch, and every write compares it in its own
transaction.
"""

from typing import Annotated, Any, Literal

import msgspec
from fastapi import Header, Request
from starlette.responses import Response

from fedfleet_coordinator import runs
from fedfleet_coordinator.api.bodies import MSGPACK, Slices, body_of, length_of, packed, unpacked
from fedfleet_coordinator.api.data import LIST_BYTES, Asked, append_upload, begin_upload, blob, not_begun
from fedfleet_coordinator.api.roles import Role, allow, guarded_router
from fedfleet_coordinator.api.services import Hub
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.errors import NotFound
from fedfleet_coordinator.exchanges import writable
from fedfleet_coordinator.launcher import readable
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.rows import Exchange, GridAnswer, Position, Run
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.exchange import ExchangeState
from fedfleet_protocol.ids import AgentId, RunId, parse_digest
from fedfleet_protocol.messages import INLINE_BYTES, BlobRef, Checkpoint, ExchangeView, Open, decode_as, encode

LONGEST_WAIT_S = 60.0
LARGE_BODY_BYTES = 16 << 20
"""A cohort of a hundred thousand agents, or the metrics of a round."""
router = guarded_router()
Epoch = Annotated[str, Header(alias="Fedfleet-Epoch")]


class _Nodes(msgspec.Struct):
    k: int
    at_least: int = 0
    unlike: list[AgentId] | None = None
    needs: int = 0


class _Recorded(msgspec.Struct):
    kind: str
    value: Any


class _Metrics(msgspec.Struct):
    server_round: int
    kind: str
    values: dict[str, Any]
    num_rounds: int = 0


class _LeftOut(msgspec.Struct):
    why: dict[AgentId, tuple[str, str]]


class _Lines(msgspec.Struct):
    lines: list[str]


class _End(msgspec.Struct):
    state: Literal["finished", "failed"]
    reason: str
    text: str = ""
    model: BlobRef | None = None


@router.get("/v1/runner/{run}", include_in_schema=False)
@allow(Role.RUNNER, max_bytes=0)
async def look(run: RunId, hub: Hub, epoch: Epoch = "") -> Response:
    """Return the run, and where it goes on."""

    def seen(tx: Tx, now: Now, out: Outbox) -> dict[str, Run | Position | None]:
        return {"run": writable(tx, run, epoch), "position": tx.get(Position, run)}

    return packed(await hub.engine.do(seen))


@router.get("/v1/runner/{run}/bundle", include_in_schema=False)
@allow(Role.RUNNER, max_bytes=0)
async def bundle(run: RunId, hub: Hub, epoch: Epoch = "", asked: Asked = None) -> Response:
    """Return the run's bundle."""
    row = await hub.engine.do(lambda tx, now, out: writable(tx, run, epoch))
    return Slices(hub.downloads.view(await blob(hub, row.bundle)), asked)


@router.get("/v1/runner/{run}/blobs/{digest}", include_in_schema=False)
@allow(Role.RUNNER, max_bytes=0)
async def fetch(run: RunId, digest: str, hub: Hub, asked: Asked = None) -> Response:
    """Return a blob that a row of this run names, or the range of it that is asked for."""
    wanted = parse_digest(digest)
    row = await hub.engine.do(lambda tx, now, out: readable(tx, run, wanted))
    if row is None:
        raise NotFound(f"run {run} has no blob {wanted[:12]}")
    return Slices(hub.downloads.view(row), asked)


@router.post("/v1/runner/{run}/uploads/{digest}", include_in_schema=False)
@allow(Role.RUNNER, max_bytes=LIST_BYTES)
async def begin(run: RunId, digest: str, request: Request, hub: Hub, epoch: Epoch = "") -> Response:
    """Take an upload's list of blocks; say where it goes on."""
    await hub.engine.do(lambda tx, now, out: writable(tx, run, epoch))
    return await begin_upload(hub, parse_digest(digest), await body_of(request))


@router.patch("/v1/runner/{run}/uploads/{digest}", include_in_schema=False)
@allow(Role.RUNNER, max_bytes=None)
async def append(run: RunId, digest: str, offset: int, request: Request, hub: Hub, epoch: Epoch = "") -> Response:
    """Take an upload's bytes from `offset` on."""
    wanted, claimed = parse_digest(digest), length_of(request.scope)
    await hub.engine.do(lambda tx, now, out: writable(tx, run, epoch))
    size = hub.blobs.announced(wanted)
    if size is None:
        if claimed is None or claimed > INLINE_BYTES or offset:
            raise not_begun(wanted)
        size = claimed
    return await append_upload(hub, wanted, request, offset=offset, size=size)


@router.post("/v1/runner/{run}/exchanges", include_in_schema=False)
@allow(Role.RUNNER, max_bytes=LARGE_BODY_BYTES)
async def open_exchange(run: RunId, request: Request, hub: Hub, epoch: Epoch = "") -> Response:
    """Open an exchange, or return it."""
    asked = decode_as(Open, await body_of(request), limit=LARGE_BODY_BYTES)
    asked = msgspec.structs.replace(asked, run=run, epoch=epoch)
    view = await hub.engine.do(lambda tx, now, out: runs.open_exchange(tx, asked, hub.exchanges, now, out))
    return Response(encode(view), media_type=MSGPACK)


@router.get("/v1/runner/{run}/exchanges/{n}", include_in_schema=False)
@allow(Role.RUNNER, max_bytes=0)
async def view(run: RunId, n: int, hub: Hub, epoch: Epoch = "", wait: float = 0.0, seen: int = -1) -> Response:
    """Return an exchange once it is closed, or more than `seen` replies are settled, or after `wait` seconds."""

    def look_at(tx: Tx, now: Now, out: Outbox) -> ExchangeView:
        writable(tx, run, epoch)
        return hub.exchanges.view(tx, run, n)

    def look_if_more(tx: Tx, now: Now, out: Outbox) -> ExchangeView | None:
        # Each reply of a thousand wakes this up: it must not read all replies each time.
        exchange = tx.get(Exchange, run, n)
        if exchange is not None and exchange.state is ExchangeState.OPEN and exchange.settled <= seen:
            writable(tx, run, epoch)
            return None
        return look_at(tx, now, out)

    found = await hub.watch(
        run,
        look_if_more,
        enough=lambda view: view is not None and (bool(view.closed) or len(view.replies) > seen),
        wait_s=min(max(wait, 0.0), LONGEST_WAIT_S),
    )
    if found is None:
        found = await hub.engine.do(look_at)
    return Response(encode(found), media_type=MSGPACK)


@router.post("/v1/runner/{run}/exchanges/{n}/left-out", include_in_schema=False)
@allow(Role.RUNNER, max_bytes=LARGE_BODY_BYTES)
async def left_out(run: RunId, n: int, request: Request, hub: Hub, epoch: Epoch = "") -> Response:
    """Note which replies of an exchange do not count, and why."""
    told: _LeftOut = unpacked(await body_of(request), _LeftOut)
    await hub.engine.do(lambda tx, now, out: runs.left_out(tx, run, epoch, n, told.why, out))
    return packed({})


@router.post("/v1/runner/{run}/checkpoint", include_in_schema=False)
@allow(Role.RUNNER)
async def checkpoint(run: RunId, request: Request, hub: Hub, epoch: Epoch = "") -> Response:
    """Commit a round, or name the blobs that must be stored first."""
    asked = msgspec.structs.replace(decode_as(Checkpoint, await body_of(request)), run=run, epoch=epoch)
    need = await hub.engine.do(lambda tx, now, out: hub.exchanges.checkpoint(tx, asked, now, out))
    return packed({"need": need})


@router.post("/v1/runner/{run}/nodes", include_in_schema=False)
@allow(Role.RUNNER, max_bytes=LARGE_BODY_BYTES)
async def nodes(run: RunId, request: Request, hub: Hub, epoch: Epoch = "") -> Response:
    """Return the agents that are there, and whether that is recorded now."""
    asked: _Nodes = unpacked(await body_of(request), _Nodes)
    agents, recorded = await hub.engine.do(
        lambda tx, now, out: runs.node_ids(
            tx, run, epoch, asked.k, now, out, at_least=asked.at_least, unlike=asked.unlike, needs=asked.needs
        )
    )
    return packed({"nodes": agents, "recorded": recorded})


@router.post("/v1/runner/{run}/answers/{k}", include_in_schema=False)
@allow(Role.RUNNER, max_bytes=LARGE_BODY_BYTES)
async def record(run: RunId, k: int, request: Request, hub: Hub, epoch: Epoch = "") -> Response:
    """Record an answer of the Grid, or return what is recorded already."""
    asked: _Recorded = unpacked(await body_of(request), _Recorded)
    row = await hub.engine.do(lambda tx, now, out: runs.answer(tx, run, epoch, k, asked.kind, asked.value))
    return packed({"kind": row.kind, "value": row.value})


@router.get("/v1/runner/{run}/answers/{k}", include_in_schema=False)
@allow(Role.RUNNER, max_bytes=0)
async def recorded(run: RunId, k: int, hub: Hub, epoch: Epoch = "") -> Response:
    """Return a recorded answer of the Grid."""

    def look_up(tx: Tx, now: Now, out: Outbox) -> GridAnswer | None:
        writable(tx, run, epoch)
        return tx.get(GridAnswer, run, k)

    row = await hub.engine.do(look_up)
    if row is None:
        raise NotFound(f"answer {k} of run {run} is not recorded")
    return packed({"kind": row.kind, "value": row.value})


@router.post("/v1/runner/{run}/metrics", include_in_schema=False)
@allow(Role.RUNNER, max_bytes=LARGE_BODY_BYTES)
async def metrics(run: RunId, request: Request, hub: Hub, epoch: Epoch = "") -> Response:
    """Keep the metrics of a round."""
    told: _Metrics = unpacked(await body_of(request), _Metrics)
    await hub.engine.do(
        lambda tx, now, out: runs.metrics(
            tx, run, epoch, told.server_round, told.kind, told.values, told.num_rounds, out
        )
    )
    return packed({})


@router.post("/v1/runner/{run}/log", include_in_schema=False)
@allow(Role.RUNNER, max_bytes=4 << 20)
async def log(run: RunId, request: Request, hub: Hub, epoch: Epoch = "") -> Response:
    """Append lines to the run's log."""
    told: _Lines = unpacked(await body_of(request), _Lines)

    def append_lines(tx: Tx, now: Now, out: Outbox) -> None:
        writable(tx, run, epoch)
        runs.log(tx, run, "serverapp", told.lines, now, out)

    await hub.engine.do(append_lines)
    return packed({})


@router.post("/v1/runner/{run}/alive", include_in_schema=False)
@allow(Role.RUNNER)
async def alive(run: RunId, hub: Hub, epoch: Epoch = "") -> Response:
    """Say whether this runner is still the one that may write."""
    await hub.engine.do(lambda tx, now, out: writable(tx, run, epoch))
    return packed({})


@router.post("/v1/runner/{run}/end", include_in_schema=False)
@allow(Role.RUNNER)
async def end(run: RunId, request: Request, hub: Hub, epoch: Epoch = "") -> Response:
    """End the run as its runner says."""
    told: _End = unpacked(await body_of(request), _End)
    await hub.engine.do(
        lambda tx, now, out: runs.end_by_runner(
            tx, run, epoch, told.state, told.reason, told.text, told.model, hub.exchanges, now, out
        )
    )
    return packed({})
