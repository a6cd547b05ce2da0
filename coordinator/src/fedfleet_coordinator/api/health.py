"""Whether the coordinator lives, can serve, and is well; and its metrics for Prometheus."""

import os
from typing import Any

from fastapi import Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest
from starlette.responses import JSONResponse, Response

from fedfleet_coordinator.api.roles import Role, allow, guarded_router
from fedfleet_coordinator.api.services import Hub, Services
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.errors import CoordinatorError
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.rows import Agent, Exchange, Run
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.exchange import ExchangeState

LOW_DISK_BYTES = 1 << 30
_SOON_S = 86_400.0
router = guarded_router()


class Telemetry:
    """What is counted of requests. One for each application: tests have several in a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "fedfleet_api_requests", "Requests by route and status.", ("route", "status"), registry=self.registry
        )
        self._gauges = {
            name: Gauge(f"fedfleet_{name}", text, registry=self.registry)
            for name, text in {
                "agents_online": "Agents that are connected.",
                "agents_eligible": "Agents that are connected and may train now.",
                "agents_enrolled": "Agents that joined and were not revoked.",
                "runs_live": "Runs that have not ended.",
                "exchanges_open": "Exchanges that are open.",
                "uploads_active": "Uploads that hold a place.",
                "uploads_slow": "Uploads over slow links.",
                "uploads_waiting": "Uploads that wait for a place.",
            }.items()
        }

    def count(self, route: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()

    def text(self, values: dict[str, float]) -> bytes:
        """Return all metrics, the gauges with these values, as Prometheus reads them."""
        for name, value in values.items():
            self._gauges[name].set(value)
        return generate_latest(self.registry)


@router.get("/healthz", include_in_schema=False)
@allow(Role.ANYONE, max_bytes=0)
async def healthz(hub: Hub) -> Response:
    """Say that the process lives: its loop and its engine answer."""
    await hub.engine.do(lambda tx, now, out: None)
    return JSONResponse({"ok": True})


@router.get("/readyz", include_in_schema=False)
@allow(Role.ANYONE, max_bytes=0)
async def readyz(hub: Hub) -> Response:
    """Say whether the coordinator can serve now."""
    why = hub.ready()
    return JSONResponse({"ok": not why, "text": why}, 503 if why else 200)


@router.get("/metrics", include_in_schema=False)
@allow(Role.SERVICE, Role.USER, max_bytes=0)
async def metrics(request: Request, hub: Hub) -> Response:
    """Return the coordinator's metrics in Prometheus' text format."""
    telemetry: Telemetry = request.app.state.telemetry
    admission = hub.uploads.admission
    values = await hub.engine.do(_counts)
    values |= {
        "uploads_active": admission.active,
        "uploads_slow": admission.slow,
        "uploads_waiting": admission.waiting,
    }
    return Response(telemetry.text(values), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/openapi.json", include_in_schema=False)
@allow(Role.USER, max_bytes=0)
async def openapi(request: Request) -> Response:
    """Return the OpenAPI document of the routes of people."""
    return JSONResponse(request.app.openapi())


@router.get("/v1/doctor", summary="Check that the fleet is well")
@allow(Role.USER, max_bytes=0)
async def doctor(hub: Hub) -> dict[str, list[dict[str, Any]]]:
    """Return checks, each with a sentence: `{"checks": [{"name", "ok", "text"}]}`."""
    return {"checks": await checks(hub)}


async def checks(hub: Services) -> list[dict[str, Any]]:
    """Return what the coordinator knows about its own health."""
    found = [_broker(hub), _disk(hub)]
    try:
        found += await hub.engine.do(_fleet)
        found.insert(0, _check("store", True, "the database takes writes"))
    except CoordinatorError as error:
        found.insert(0, _check("store", False, str(error)))
    return found


def _counts(tx: Tx, now: Now, out: Outbox) -> dict[str, float]:
    online = tx.find(Agent, state="active", online=True)
    return {
        "agents_online": len(online),
        "agents_eligible": sum(agent.eligible for agent in online),
        "agents_enrolled": len(tx.find(Agent, state="active")),
        "runs_live": len(tx.find(Run, state=("pending", "running"))),
        "exchanges_open": len(tx.find(Exchange, state=ExchangeState.OPEN)),
    }


def _broker(hub: Services) -> dict[str, Any]:
    why = hub.ready()
    return _check("broker", not why, why or f"agents reach the broker at {hub.addresses.broker}")


def _disk(hub: Services) -> dict[str, Any]:
    disk = os.statvfs(hub.blobs.folder)
    free = disk.f_bavail * disk.f_frsize
    text = f"{free / 1e9:.1f} GB are free for blobs"
    if free < LOW_DISK_BYTES:
        text += "; uploads will be refused soon: free some space or end runs that are not needed"
    return _check("disk", free >= LOW_DISK_BYTES, text)


def _fleet(tx: Tx, now: Now, out: Outbox) -> list[dict[str, Any]]:
    agents = tx.find(Agent, state="active")
    online = [agent for agent in agents if agent.online]
    eligible = [agent for agent in online if agent.eligible]
    text = f"{len(online)} of {len(agents)} agents are connected, {len(eligible)} of them may train now"
    if not agents:
        text = "no device has joined yet; make a token with: fedfleet token create"
    late = [agent for agent in online if agent.not_after_wall < now.wall + _SOON_S]
    renewals = f"{len(late)} connected agents did not renew certificates that expire within a day; see their logs"
    return [
        _check("agents", bool(online) or not agents, text),
        _check("certificates", not late, renewals if late else "agents renew their certificates in time"),
    ]


def _check(name: str, ok: bool, text: str) -> dict[str, Any]:
    return {"name": name, "ok": ok, "text": text}
