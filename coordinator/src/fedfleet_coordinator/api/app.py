"""The application: all routes, and what clients are told when something goes wrong."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedfleet_coordinator.api import agents, data, health, operator, runner, users
from fedfleet_coordinator.api.bodies import BoundedBody, refusal
from fedfleet_coordinator.api.health import Telemetry
from fedfleet_coordinator.api.roles import BODY, GuardedRoute
from fedfleet_coordinator.api.services import Services
from fedfleet_coordinator.errors import BadRequest, Bug, CoordinatorError, NoSuchMethod, NotAllowed, NotFound, TooMuch
from fedfleet_protocol import errors as protocol

TITLE = "fedfleet coordinator"
_log = logging.getLogger(__name__)


def build_app(services: Services) -> FastAPI:
    """Return the application; `services` is what its routes may reach."""
    # Routes are taken over as they are: FastAPI's include_router would make guarded ones anew at each request.
    app = FastAPI(title=TITLE, version="1", openapi_url=None, docs_url=None, redoc_url=None)
    for part in (agents, data, runner, users, operator, health):
        app.router.routes.extend(part.router.routes)
    app.state.services = services
    app.state.telemetry = Telemetry()
    app.add_exception_handler(CoordinatorError, _refused)
    app.add_exception_handler(protocol.ProtocolError, _unusable)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_middleware(_Outermost, telemetry=app.state.telemetry)
    return app


class _Outermost:
    """Counts requests, and turns what nobody handled into a plain answer and a line in the log."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except TimeoutError:
            _log.info("a client took no more bytes of its answer; the connection is closed")
        except Exception:
            # The path only: a query may say what is nobody else's business.
            _log.exception("a request failed", extra={"method": scope.get("method"), "path": scope.get("path")})
            if not status:
                bug = Bug("something went wrong at the coordinator; its log says what")
                await refusal(bug, whole=await _whole(scope))(scope, receive, noted)
        route = scope.get("route")
        self._telemetry.count(route.path if isinstance(route, GuardedRoute) else "none", status)


async def _whole(scope: Scope) -> bool:
    """Whether the request was read to its end; a short rest is read now."""
    body = scope.get(BODY)
    if not isinstance(body, BoundedBody):
        return True
    await body.drain()
    return body.whole


async def _answer(request: Request, error: CoordinatorError) -> Response:
    return refusal(error, whole=await _whole(request.scope))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, CoordinatorError)
    return await _answer(request, error)


async def _unusable(request: Request, error: Exception) -> Response:
    """What came from the other side cannot be used."""
    kinds: dict[type[Exception], type[CoordinatorError]] = {
        protocol.TooLarge: TooMuch,
        protocol.Forged: NotAllowed,
        protocol.Untrusted: NotAllowed,
    }
    return await _answer(request, kinds.get(type(error), BadRequest)(str(error)))


async def _invalid(request: Request, error: Exception) -> Response:
    """A field is missing, or not what it should be."""
    assert isinstance(error, RequestValidationError)
    problems = [f"{_place(one['loc'])}: {one['msg']}" for one in error.errors()[:5]]
    return await _answer(request, BadRequest("; ".join(problems) or "the request is not what this route takes"))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:200]
    if error.status_code == 405:
        return await _answer(request, NoSuchMethod(f"{request.method} is not what {path} is for"))
    if error.status_code == 404:
        return await _answer(request, NotFound(f"there is nothing at {path}"))
    return await _answer(request, BadRequest(str(error.detail)))


def _place(loc: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in loc if part not in {"body", "query", "path"}) or "the body"
