"""Deny by default: every route says who may call it."""

from typing import cast

import pytest
from fastapi.routing import APIRoute

from fedfleet_coordinator.api.app import build_app
from fedfleet_coordinator.api.roles import GuardedRoute, Role, allow, guarded_router
from fedfleet_coordinator.api.services import Services

OPEN = {"/healthz", "/readyz", "/v1/ca", "/v1/enrol", "/v1/claims/{run}"}
"""The last one asks the cluster whether the pod's token is its own, and is refused where there is no cluster."""


def routes() -> list[APIRoute]:
    app = build_app(cast(Services, None))
    return [route for route in app.routes if isinstance(route, APIRoute)]


def test_every_route_is_guarded() -> None:
    app = build_app(cast(Services, None))
    assert len(app.routes) > 40
    assert [route for route in app.routes if not isinstance(route, GuardedRoute)] == []


def test_only_these_are_open_to_anyone() -> None:
    found = {route.path for route in routes() if isinstance(route, GuardedRoute) and Role.ANYONE in route.access.roles}
    assert found == OPEN


def test_each_route_is_for_one_kind_of_client() -> None:
    for route in routes():
        assert isinstance(route, GuardedRoute)
        wanted = {Role.RUNNER} if route.path.startswith("/v1/runner/") else route.access.roles
        assert route.access.roles == wanted
        assert route.path == "/metrics" or len(route.access.roles) == 1


def test_runners_routes_name_their_run() -> None:
    assert all("{run}" in route.path for route in routes() if "runner" in route.path)


def test_only_uploads_count_their_bytes_themselves() -> None:
    free = {route.path for route in routes() if isinstance(route, GuardedRoute) and route.access.max_bytes is None}
    assert free == {"/v1/uploads/{digest}", "/v1/runner/{run}/uploads/{digest}"}


def test_route_without_a_role_cannot_be_made() -> None:
    router = guarded_router()

    async def nobody() -> None: ...

    with pytest.raises(TypeError, match="/v1/oops declares no role"):
        router.get("/v1/oops")(nobody)
    with pytest.raises(TypeError, match="declares no role"):
        router.get("/v1/oops")(allow()(nobody))


def test_openapi_describes_the_routes_of_people_and_no_others() -> None:
    document = build_app(cast(Services, None)).openapi()
    assert "/v1/runs/{run}" in document["paths"] and "/v1/tokens" in document["paths"]
    assert not [path for path in document["paths"] if path.startswith(("/v1/runner", "/v1/uploads", "/v1/blobs"))]
