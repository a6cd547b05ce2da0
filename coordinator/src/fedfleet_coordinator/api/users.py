"""What people and their commands ask: runs, agents, tokens. JSON, and described by the OpenAPI document."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr
from starlette.responses import Response, StreamingResponse

from fedfleet_coordinator import enrolment, runs
from fedfleet_coordinator.api import snapshots
from fedfleet_coordinator.api.bodies import Slices, body_of
from fedfleet_coordinator.api.data import Asked, store
from fedfleet_coordinator.api.explain import explain_agent, explain_run
from fedfleet_coordinator.api.roles import Caller, Role, allow, guarded_router
from fedfleet_coordinator.api.services import Hub, Services
from fedfleet_coordinator.api.snapshots import Json
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.errors import BadRequest
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.rows import Agent, Blob, Run, Token
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.ids import AgentId, RunId, parse_digest, parse_run_id, run_id
from fedfleet_protocol.trust import check_bundle

MAX_BUNDLE_BYTES = 64 << 20
COALESCE_S = 0.1
ALIVE_S = 15.0
router = guarded_router()
Hex = Annotated[str, Field(pattern="^([0-9a-f]{2})*$", max_length=128)]
Labels = Annotated[dict[str, str], Field(max_length=64)]
ConfigValue = StrictBool | StrictInt | StrictFloat | StrictStr


class Submission(BaseModel):
    """A run as it is asked for.

    Attributes:
        run: an id of the client's own, so that asking again after a lost answer makes no second run.
        bundle: digest of the bundle, which was uploaded before; `publisher` and `signature` vouch for it.
    """

    model_config = ConfigDict(extra="forbid")

    bundle: str
    publisher: Hex
    signature: Hex
    app: Annotated[str, Field(max_length=200)] = ""
    config: Annotated[dict[str, ConfigValue], Field(max_length=1000)] = {}
    selector: Labels = {}
    min_agents: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    quorum: Annotated[str, Field(pattern=r"^([1-9][0-9]{0,6}|(100|[1-9][0-9]?)%)$")] = "100%"
    deadline_s: Annotated[float, Field(gt=0, le=31_536_000)] = 3600.0
    grace_s: Annotated[float, Field(ge=0, le=31_536_000)] = 30.0
    late: Literal["refuse", "keep"] = "refuse"
    gate: Annotated[dict[str, Any], Field(max_length=64)] = {}
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    run: str | None = None


class TokenRequest(BaseModel):
    """A join token as it is asked for."""

    model_config = ConfigDict(extra="forbid")

    labels: Labels = {}
    uses: Annotated[int, Field(ge=1, le=100_000)] = 1
    expires_s: Annotated[float, Field(gt=0, le=31_536_000)] = 3600.0


# --- runs -------------------------------------------------------------------------------------------------------------


@router.post(
    "/v1/bundles",
    summary="Upload a bundle",
    openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}, "required": True}},
)
@allow(Role.USER, max_bytes=MAX_BUNDLE_BYTES)
async def upload_bundle(
    request: Request, hub: Hub, digest: Annotated[str, Header(alias="Fedfleet-Digest")] = ""
) -> dict[str, str | int]:
    """Store a Flower app bundle (FAB); the same one again changes nothing. Returns its digest and size."""
    data = await body_of(request)
    blocks = await store(hub, data)
    if digest and digest != blocks.digest:
        raise BadRequest(
            f"the bundle's digest is {blocks.digest[:12]}, not {digest[:12]}: it came damaged, send it again"
        )
    return {"digest": blocks.digest, "size": blocks.size}


@router.post("/v1/runs", summary="Submit a run")
@allow(Role.USER)
async def submit(asked: Submission, hub: Hub, caller: Caller) -> dict[str, str]:
    """Start a run of an uploaded bundle. Returns its id."""
    bundle = parse_digest(asked.bundle)
    publisher, signature = bytes.fromhex(asked.publisher), bytes.fromhex(asked.signature)
    check_bundle(bundle, signature, publisher, {publisher: caller.name})
    name = parse_run_id(asked.run) if asked.run else run_id(secrets.token_bytes(16))
    row = Run(
        run=name,
        bundle=bundle,
        publisher=publisher,
        signature=signature,
        submitted_by=caller.name,
        **asked.model_dump(exclude={"run", "bundle", "publisher", "signature"}),
    )
    run = await hub.engine.do(lambda tx, now, out: runs.submit(tx, _sized(tx, row), now, out))
    hub.on_submit(run.run)
    return {"run": run.run}


@router.get("/v1/runs", summary="List runs")
@allow(Role.USER, max_bytes=0)
async def list_runs(hub: Hub) -> dict[str, list[Json]]:
    """Return all runs, the newest first."""
    rows = await hub.engine.do(lambda tx, now, out: tx.find(Run, order=("-created_wall",)))
    return {"runs": [snapshots.run_summary(row) for row in rows]}


@router.get("/v1/runs/{run}", summary="Show a run")
@allow(Role.USER, max_bytes=0)
async def show_run(run: RunId, hub: Hub) -> Json:
    """Return a run's snapshot: state, newest exchange with each agent's state, metrics, model."""
    return await hub.engine.do(lambda tx, now, out: snapshots.run_snapshot(tx, run, now))


@router.get("/v1/runs/{run}/events", summary="Watch a run", response_class=StreamingResponse)
@allow(Role.USER, max_bytes=0)
async def events(run: RunId, hub: Hub) -> StreamingResponse:
    """Return server-sent events: `data: <snapshot>` now and at each change, until the run has ended."""
    first = await hub.engine.do(lambda tx, now, out: snapshots.run_snapshot(tx, run, now))
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(hub, run, first), media_type="text/event-stream", headers=headers)


@router.get("/v1/runs/{run}/timeline", summary="Show a run's tasks over time")
@allow(Role.USER, max_bytes=0)
async def show_timeline(run: RunId, hub: Hub) -> Json:
    """Return every task of a run with its times: `{"run", "tasks": [...]}`."""
    return await hub.engine.do(lambda tx, now, out: snapshots.timeline(tx, run))


@router.post("/v1/runs/{run}/stop", summary="Stop a run")
@allow(Role.USER)
async def stop(run: RunId, hub: Hub) -> Json:
    """End a run; one that has ended stays as it is."""
    row = await hub.engine.do(lambda tx, now, out: runs.stop(tx, run, hub.exchanges, now, out))
    return snapshots.run_summary(row)


@router.get("/v1/runs/{run}/logs", summary="Read a run's log")
@allow(Role.USER, max_bytes=0)
async def logs(
    run: RunId, hub: Hub, after: int = 0, wait: Annotated[float, Query(ge=0, le=60)] = 0.0
) -> dict[str, list[Json]]:
    """Return lines of the ServerApp, the agents and the coordinator, numbered; waits up to `wait` seconds for some."""
    lines = await hub.watch(run, lambda tx, now, out: snapshots.log_lines(tx, run, after), enough=bool, wait_s=wait)
    return {"lines": lines}


@router.get("/v1/runs/{run}/model", summary="Download a run's model", response_class=Response)
@allow(Role.USER, max_bytes=0)
async def model(run: RunId, hub: Hub, asked: Asked = None, checkpoint: bool = False) -> Response:
    """Return the final model, or with `checkpoint` a live run's newest, as a record stream; ranges are understood."""
    blob = await hub.engine.do(lambda tx, now, out: snapshots.model_blob(tx, run, checkpoint=checkpoint))
    return Slices(hub.downloads.view(blob), asked)


@router.get("/v1/runs/{run}/explain", summary="Explain a run")
@allow(Role.USER, max_bytes=0)
async def why_run(run: RunId, hub: Hub) -> Json:
    """Return why the run is where it is, and why which agent is not in its newest exchange."""
    return await hub.engine.do(lambda tx, now, out: explain_run(tx, run, now))


# --- agents -----------------------------------------------------------------------------------------------------------


@router.get("/v1/agents", summary="List agents")
@allow(Role.USER, max_bytes=0)
async def list_agents(hub: Hub) -> dict[str, list[Json]]:
    """Return all agents: labels, whether they are connected, whether they may train now, and why not."""
    rows = await hub.engine.do(lambda tx, now, out: tx.find(Agent))
    return {"agents": [snapshots.agent_json(row) for row in rows]}


@router.get("/v1/agents/{agent}", summary="Show an agent")
@allow(Role.USER, max_bytes=0)
async def show_agent(agent: AgentId, hub: Hub) -> Json:
    """Return one agent."""
    return await hub.engine.do(lambda tx, now, out: snapshots.agent_json(snapshots.agent_row(tx, agent)))


@router.get("/v1/agents/{agent}/explain", summary="Explain an agent")
@allow(Role.USER, max_bytes=0)
async def why_agent(agent: AgentId, hub: Hub) -> Json:
    """Return why the agent is, or is not, at work."""
    return await hub.engine.do(lambda tx, now, out: explain_agent(tx, agent, now))


@router.post("/v1/agents/{agent}/revoke", summary="Revoke an agent")
@allow(Role.USER)
async def revoke(agent: AgentId, hub: Hub) -> Json:
    """Shut an agent out for good."""
    row = await hub.engine.do(lambda tx, now, out: enrolment.revoke(tx, agent, hub.exchanges, now, out))
    hub.on_revoke(agent)
    return snapshots.agent_json(row)


# --- join tokens ------------------------------------------------------------------------------------------------------


@router.post("/v1/tokens", summary="Make a join token")
@allow(Role.USER)
async def create_token(asked: TokenRequest, hub: Hub, caller: Caller) -> dict[str, str | float]:
    """Return a new join token. It is a secret, and shown this once."""
    secret = secrets.token_bytes(32)
    now = hub.engine.clock.now()

    def create(tx: Tx, now: Now, out: Outbox) -> str:
        return enrolment.create_token(
            tx, hub.pki, hub.addresses, labels=asked.labels, uses=asked.uses, lifetime_s=asked.expires_s,
            secret=secret, created_by=caller.name, now=now,
        ).spell()  # fmt: skip

    return {"token": await hub.engine.do(create), "expires": now.wall + asked.expires_s}


@router.get("/v1/tokens", summary="List join tokens")
@allow(Role.USER, max_bytes=0)
async def list_tokens(hub: Hub) -> dict[str, list[Json]]:
    """Return the join tokens that can still be used, without their secrets."""

    def usable(tx: Tx, now: Now, out: Outbox) -> list[Json]:
        rows = tx.find(Token, order=("-expires_wall",))
        return [snapshots.token_json(row) for row in rows if row.uses_left and row.expires_wall > now.wall]

    return {"tokens": await hub.engine.do(usable)}


def _sized(tx: Tx, row: Run) -> Run:
    """Return a new run with the size of its bundle; `runs.submit` refuses it if there is no such bundle."""
    blob = tx.get(Blob, row.bundle)
    return msgspec.structs.replace(row, bundle_size=blob.size if blob is not None else 0)


async def _events(hub: Services, run: RunId, snapshot: Json) -> AsyncIterator[str]:
    """Yield a run's snapshots: at each change, and now and then to say that there was none."""
    while True:
        yield f"data: {json.dumps(snapshot, separators=(',', ':'))}\n\n"
        if snapshot["state"] not in {"pending", "running"} or hub.stopping.is_set():
            return
        await asyncio.sleep(COALESCE_S)
        known = _lasting(snapshot)
        snapshot = await hub.watch(
            run,
            lambda tx, now, out: snapshots.run_snapshot(tx, run, now),
            enough=lambda seen, known=known: _lasting(seen) != known,  # type: ignore[misc]
            wait_s=ALIVE_S,
        )


def _lasting(snapshot: Json) -> Any:
    """Return a snapshot without what merely counts seconds."""
    exchange = dict(snapshot["exchange"] or {}, remaining_s=0.0)
    exchange["agents"] = [(one["agent"], one["state"], one["code"]) for one in exchange.get("agents", ())]
    return {**snapshot, "exchange": exchange}
