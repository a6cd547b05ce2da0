"""What the operator asks: runs made for objects of the cluster, and what became of them. And how a runner's pod begins.

The operator is the service of that name; no other certificate is let in. A runner has no certificate before it has
claimed its attempt: it shows the token that the cluster gave its pod, and gets one for this run.
"""

import asyncio
import secrets
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from fedfleet_coordinator import fleet, managed, runs
from fedfleet_coordinator.api.bodies import body_of
from fedfleet_coordinator.api.data import store
from fedfleet_coordinator.api.roles import Caller, Role, allow, guarded_router
from fedfleet_coordinator.api.services import Hub
from fedfleet_coordinator.api.snapshots import Json
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.errors import BadRequest, NotAllowed
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.pki import Peer
from fedfleet_coordinator.rows import Agent, Blob, Exchange, Managed, Metrics, Run
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.errors import ProtocolError
from fedfleet_protocol.ids import RunId, parse_digest, parse_run_id
from fedfleet_protocol.trust import check_bundle

SERVICE = "operator"
MAX_BUNDLE_BYTES = 64 << 20
_MAX_TOKEN = 16_384
router = guarded_router()


class Wanted(BaseModel):
    """A run as a FederatedRun asks for it. Without publisher and signature an earlier run has to have vouched.

    Attributes:
        failure: why its bundle cannot be had.
    """

    model_config = ConfigDict(extra="forbid")

    owner: Annotated[str, Field(max_length=320, pattern="^[^/]+/[^/]+$")]
    bundle: str
    publisher: Annotated[str, Field(max_length=128)] = ""
    signature: Annotated[str, Field(max_length=256)] = ""
    config: Annotated[dict[str, Any], Field(max_length=1000)] = {}
    selector: Annotated[dict[str, str], Field(max_length=64)] = {}
    min_agents: Annotated[int, Field(ge=1)] = 1
    quorum: str = "100%"
    deadline_s: Annotated[float, Field(gt=0)] = 3600.0
    grace_s: Annotated[float, Field(ge=0)] = 30.0
    late: Literal["refuse", "keep"] = "refuse"
    priority: int = 0
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 6
    failure: Annotated[str, Field(max_length=4000)] = ""


class Exit(BaseModel):
    """How an attempt ended."""

    attempt: Annotated[int, Field(ge=1)]
    exit_code: int
    disrupted: bool


class Change(BaseModel):
    """What of a run can be changed."""

    suspended: bool | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = None


class Ending(BaseModel):
    """Why a run shall end."""

    reason: Literal["stopped", "deadline_exceeded"]
    text: Annotated[str, Field(max_length=4000)]
    purge: bool = False


class Claim(BaseModel):
    """The token of a runner's pod."""

    attempt: Annotated[int, Field(ge=1)]
    token: Annotated[str, Field(max_length=_MAX_TOKEN)]


def _operator(caller: Peer) -> None:
    if caller.name != SERVICE:
        raise NotAllowed(f"service {caller.name} may not do this; it is for the operator")


@router.get("/v1/operator/runs", include_in_schema=False)
@allow(Role.SERVICE, max_bytes=0)
async def list_runs(hub: Hub, caller: Caller) -> dict[str, dict[str, Json]]:
    """Return all runs that were made for objects, by id, as the operator's `Stored`."""
    _operator(caller)
    return {"runs": await hub.engine.do(_stored)}


@router.put("/v1/operator/bundles/{digest}", include_in_schema=False)
@allow(Role.SERVICE, max_bytes=MAX_BUNDLE_BYTES)
async def upload(digest: str, request: Request, hub: Hub, caller: Caller) -> Json:
    """Store a bundle, if it has the digest that the object named."""
    _operator(caller)
    blocks = await store(hub, await body_of(request))
    if blocks.digest != digest:
        raise BadRequest(f"the bundle's digest is {blocks.digest}, not the {digest[:64]} that the FederatedRun names")
    return {"size": blocks.size}


@router.put("/v1/operator/runs/{run}", include_in_schema=False)
@allow(Role.SERVICE)
async def create(run: str, asked: Wanted, hub: Hub, caller: Caller) -> Json:
    """Make a run under this id, or leave the one there is as it is."""
    _operator(caller)
    name, bundle = parse_run_id(run), parse_digest(asked.bundle)

    def put(tx: Tx, now: Now, out: Outbox) -> Run:
        failure, publisher, signature = asked.failure, b"", b""
        try:
            publisher, signature = bytes.fromhex(asked.publisher), bytes.fromhex(asked.signature)
        except ValueError:
            failure = "its publisher and signature are not hexadecimal; make the ConfigMap with `fedfleet bundle`"
        if not publisher and not failure:
            before = managed.signed_before(tx, bundle)
            if before is None:
                failure = f"nobody has signed bundle {bundle[:12]} here; run it once with `fedfleet run`"
            else:
                publisher, signature = before.publisher, before.signature
        if not failure:
            try:
                check_bundle(bundle, signature, publisher, {publisher: asked.owner})
            except ProtocolError as error:
                failure = str(error)
        blob = tx.get(Blob, bundle)
        row = Run(
            run=name, app=asked.owner.partition("/")[2], bundle=bundle, bundle_size=blob.size if blob else 0,
            publisher=publisher, signature=signature, config=asked.config, selector=asked.selector,
            min_agents=asked.min_agents, quorum=asked.quorum, deadline_s=asked.deadline_s, grace_s=asked.grace_s,
            late=asked.late, priority=asked.priority, submitted_by=asked.owner,
        )  # fmt: skip
        of = Managed(run=name, owner=asked.owner, max_attempts=asked.max_attempts)
        return managed.create(tx, row, of, failure, now, out)

    return {"state": (await hub.engine.do(put)).state}


@router.post("/v1/operator/runs/{run}/exits", include_in_schema=False)
@allow(Role.SERVICE)
async def note_exit(run: RunId, told: Exit, hub: Hub, caller: Caller) -> Json:
    """Note how an attempt ended."""
    _operator(caller)
    await hub.engine.do(
        lambda tx, now, out: managed.note_exit(
            tx, run, told.attempt, told.exit_code, hub.exchanges, now, out, disrupted=told.disrupted
        )
    )
    return {}


@router.post("/v1/operator/runs/{run}/change", include_in_schema=False)
@allow(Role.SERVICE)
async def change(run: RunId, asked: Change, hub: Hub, caller: Caller) -> Json:
    """Suspend a run, let it go on, or give it another priority."""
    _operator(caller)

    def put(tx: Tx, now: Now, out: Outbox) -> None:
        if asked.suspended is not None:
            managed.suspend(tx, run, hub.exchanges, now, out, suspended=asked.suspended)
        if asked.priority is not None:
            managed.set_priority(tx, run, asked.priority, out)

    await hub.engine.do(put)
    return {}


@router.post("/v1/operator/runs/{run}/end", include_in_schema=False)
@allow(Role.SERVICE)
async def end(run: RunId, asked: Ending, hub: Hub, caller: Caller) -> Json:
    """End a run, and forget it if that is asked; one that has ended stays as it is."""
    _operator(caller)

    def put(tx: Tx, now: Now, out: Outbox) -> None:
        row = tx.get(Run, run)
        if row is not None and row.live:
            state: Literal["stopped", "failed"] = "stopped" if asked.reason == "stopped" else "failed"
            runs.end(tx, row, state, asked.reason, asked.text, hub.exchanges, now, out)
        if asked.purge:
            managed.purge(tx, run)

    await hub.engine.do(put)
    return {}


@router.post("/v1/claims/{run}", include_in_schema=False)
@allow(Role.ANYONE, max_bytes=64 << 10)
async def claim(run: RunId, asked: Claim, hub: Hub) -> Json:
    """Let a runner's pod claim its attempt; return epoch, certificate and key."""
    if hub.reviewer is None:
        raise NotAllowed("this coordinator starts its runners itself; set [kubernetes] enabled in hub.toml for Jobs")
    pod = await asyncio.to_thread(hub.reviewer.pod_of, asked.token)
    epoch = secrets.token_hex(16)
    await hub.engine.do(lambda tx, now, out: managed.claim(tx, run, asked.attempt, pod, epoch, now, out))
    certificate, key = hub.pki.issue_runner(run, now_wall=hub.engine.clock.now().wall)
    return {"epoch": epoch, "certificate": certificate.decode(), "key": key.decode()}


def _stored(tx: Tx, now: Now, out: Outbox) -> dict[str, Json]:
    agents = tx.find(Agent, state="active")
    return {row.run: _one(tx, row, run, agents, now) for row in tx.find(Managed) if (run := tx.get(Run, row.run))}


def _one(tx: Tx, row: Managed, run: Run, agents: list[Agent], now: Now) -> Json:
    told: Json = {
        "state": run.state, "owner": row.owner, "reason": run.reason, "text": run.text, "claimed": run.attempts,
        "noted": row.noted, "failures": row.failures, "suspended": row.suspended, "priority": run.priority,
        "active_s": managed.active(row, now), "started_wall": run.started_wall, "ended_wall": run.ended_wall,
    }  # fmt: skip
    shown: Json = {"round": run.server_round}
    newest = {
        name: (value, one.server_round)
        for one in tx.find(Metrics, run=run.run, order=("server_round",))
        for name, value in one.values.items()
        if isinstance(value, int | float)
    }
    if newest:
        shown["metrics"] = [
            {"name": name[:128], "value": f"{value:.6g}", "round": number}
            for name, (value, number) in sorted(newest.items())[:64]
        ]
    if run.model:
        shown["model"] = {"digest": run.model, "sizeBytes": run.model_size, "round": run.server_round}
    if not run.live:
        return told | {"shown": shown}
    matching = [agent for agent in agents if fleet.matches(agent, run.selector)]
    online = [agent for agent in matching if agent.online]
    counts = {"matching": len(matching), "online": len(online), "eligible": sum(agent.eligible for agent in online)}
    exchange = tx.get(Exchange, run.run, run.exchanges) if run.exchanges else None
    if exchange is not None:
        counts |= {"asked": exchange.expected, "replied": exchange.accepted}
        counts["refused"] = exchange.settled - exchange.accepted
    shown["agents"] = counts
    why: dict[str, list[Agent]] = {}
    for agent in matching:
        if not agent.online or not agent.eligible:
            why.setdefault("offline" if not agent.online else agent.code or "unknown", []).append(agent)
    shown["ineligible"] = [
        {"reason": code[:64], "count": len(them), "example": f"{them[0].agent}: {them[0].text or code}"[:512]}
        for code, them in sorted(why.items())[:32]
    ]
    enough = len(online) >= run.min_agents
    waits = f"{run.min_agents} agents are needed, {len(matching)} match, {len(online)} are online"
    return told | {"shown": shown, "enough_agents": enough, "waits": "" if enough else waits}
