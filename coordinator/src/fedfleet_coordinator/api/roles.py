"""Who may call which route. Deny by default: a route that names no role cannot even be made.

A client is who its certificate says: the issuing CA together with the one URI in it (`pki.Peer`). TLS has checked the
certificate when the connection was made; here it is checked again at every request, for a connection may outlive its
certificate, and an agent may have been revoked in between. A runner is admitted to its own run's routes only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi.routing import APIRoute, APIRouter
from starlette.types import Receive, Scope, Send

from fedfleet_coordinator.api.bodies import BoundedBody, length_of
from fedfleet_coordinator.api.server import CERTIFICATE
from fedfleet_coordinator.api.services import Services
from fedfleet_coordinator.errors import CertificateRefused, NotAllowed, TooMuch
from fedfleet_coordinator.pki import Peer, Pki
from fedfleet_coordinator.rows import Agent
from fedfleet_coordinator.store.port import Tx

SMALL_BODY_BYTES = 512 << 10
"""What a route takes if it does not say otherwise: more than any control message has."""
_MARK = "__fedfleet_access__"
_PEER = "fedfleet.peer"
BODY = "fedfleet.body"
"""Where in the ASGI scope the request's bounded body is."""
_Endpoint = TypeVar("_Endpoint", bound=Callable[..., Any])


class Role(StrEnum):
    """What a client may be. ANYONE needs no certificate."""

    ANYONE = "anyone"
    AGENT = "agent"
    RUNNER = "runner"
    SERVICE = "service"
    USER = "user"


@dataclass(frozen=True, slots=True)
class Access:
    """What a route declares.

    Attributes:
        max_bytes: of a request's body; None if the route counts them itself.
    """

    roles: frozenset[Role]
    max_bytes: int | None


def allow(*roles: Role, max_bytes: int | None = SMALL_BODY_BYTES) -> Callable[[_Endpoint], _Endpoint]:
    """Declare who may call an endpoint, and how large a body it takes. Stands below the route's decorator."""

    def mark(endpoint: _Endpoint) -> _Endpoint:
        setattr(endpoint, _MARK, Access(frozenset(roles), max_bytes))
        return endpoint

    return mark


class GuardedRoute(APIRoute):
    """A route that lets in whom it declares."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        access = getattr(endpoint, _MARK, None)
        if not isinstance(access, Access) or not access.roles:
            raise TypeError(f"route {path} declares no role; put @allow(...) below its decorator")
        self.access = access
        super().__init__(path, endpoint, **options)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check who asks and how much it brings, then serve."""
        if scope["method"] in (self.methods or ()):
            scope[_PEER] = await admit(scope, self.access, scope["app"].state.services)
            claimed, limit = length_of(scope), self.access.max_bytes
            if limit is not None and claimed is not None and claimed > limit:
                raise TooMuch(f"the request claims {claimed} bytes; at most {limit} are taken here")
            chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
            body = scope[BODY] = BoundedBody(receive, limit, claimed, chunked=chunked)
            receive = body.receive
        await super().handle(scope, receive, send)


def guarded_router() -> APIRouter:
    """Return a router whose routes are guarded."""
    return APIRouter(route_class=GuardedRoute)


async def admit(scope: Scope, access: Access, services: Services) -> Peer | None:
    """Return who asks, None if the route is open to anyone.

    Raises:
        CertificateRefused: no certificate, or one that does not hold (any more). NotAllowed: not this role's route.
    """
    if Role.ANYONE in access.roles:
        return None
    der = scope.get(CERTIFICATE)
    if der is None:
        raise CertificateRefused(
            "this address needs a client certificate: devices get one with fedfleet-agent join, users from the operator"
        )
    wall = services.engine.clock.now().wall
    peer = _holder(services.pki, der, int(wall / 60))
    if peer.not_after_wall <= wall:
        raise CertificateRefused("this certificate has expired; renew it, or join again")
    if Role(peer.role) not in access.roles:
        raise NotAllowed(f"{peer.role} {peer.name} may not do this; it is for {' or '.join(sorted(access.roles))}")
    if peer.role == "runner" and scope["path_params"].get("run") != peer.name:
        raise NotAllowed(f"the runner of {peer.name} may not touch another run")
    if peer.role == "agent":
        await services.engine.do(lambda tx, now, out: active(tx, peer))
    return peer


@lru_cache(8192)
def _holder(pki: Pki, der: bytes, minute: int) -> Peer:
    """Return who holds a certificate; signatures are checked once a minute: they take longer than most requests."""
    return pki.peer(der, now_wall=minute * 60.0)


def active(tx: Tx, peer: Peer) -> Agent:
    """Return the row of the agent that shows this certificate.

    Raises:
        CertificateRefused: it is unknown or revoked, or the certificate is none that it was given.
    """
    row = tx.get(Agent, peer.name)
    if row is None:
        raise CertificateRefused(f"agent {peer.name} is not enrolled here; join again with a new token")
    if row.state != "active":
        raise CertificateRefused(f"agent {peer.name} was revoked; ask the operator, then join again with a new token")
    if peer.serial not in row.serials:
        raise CertificateRefused(f"agent {peer.name} shows a certificate that is not known here; join again")
    return row


async def _peer(request: Request) -> Peer:  # not async it would run in a thread
    peer = request.scope.get(_PEER)
    if peer is None:
        raise NotAllowed("this route is open to anyone and knows nobody's name")
    assert isinstance(peer, Peer)
    return peer


Caller = Annotated[Peer, Depends(_peer)]
"""A route's argument by which it gets who asks."""
