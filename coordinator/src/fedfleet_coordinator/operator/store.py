"""The coordinator's store as the operator reaches it: over the API, as the service `operator`."""

import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import urllib3

from fedfleet_coordinator.operator.seen import Stored
from fedfleet_protocol.ids import RunId

Json = dict[str, Any]
_CONNECT_S = 2.0
_READ_S = 4.0
_UPLOAD_S = 60.0


class StoreError(Exception):
    """The coordinator did not do what it was asked."""


class Silent(StoreError):
    """No coordinator answers, or none that can serve now: try again."""


class RefusedByStore(StoreError):
    """The coordinator does not take the request; its words say why."""


class Store(Protocol):
    """What the operator asks of the coordinator. Every method raises Silent or RefusedByStore, and can be repeated."""

    def look(self) -> Mapping[RunId, Stored]:
        """Return all runs that were made for objects."""
        ...

    def create(self, run: RunId, wanted: Json) -> None:
        """Make a run; one that is there stays as it is."""
        ...

    def upload(self, digest: str, data: bytes) -> None:
        """Store a bundle."""
        ...

    def tell(self, run: RunId, what: str, body: Json) -> None:
        """Tell of an exit (`exits`), change a run (`change`), or end it (`end`)."""
        ...


class ApiStore:
    """A coordinator behind its API.

    Args:
        folder: holds operator.pem, operator.key and ca.pem, which the coordinator writes.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url.rstrip("/"), folder
        self._pool: urllib3.PoolManager | None = None

    def look(self) -> Mapping[RunId, Stored]:
        """Return all runs that were made for objects. Raises: StoreError."""
        found = self._ask("GET", "/v1/operator/runs")["runs"]
        return {RunId(run): msgspec.convert(told, Stored) for run, told in found.items()}

    def create(self, run: RunId, wanted: Json) -> None:
        """Make a run; one that is there stays as it is. Raises: StoreError."""
        self._ask("PUT", f"/v1/operator/runs/{run}", json.dumps(wanted).encode())

    def upload(self, digest: str, data: bytes) -> None:
        """Store a bundle. Raises: StoreError."""
        self._ask("PUT", f"/v1/operator/bundles/{digest}", data, read_s=_UPLOAD_S)

    def tell(self, run: RunId, what: str, body: Json) -> None:
        """Tell of an exit, change a run, or end it. Raises: StoreError."""
        self._ask("POST", f"/v1/operator/runs/{run}/{what}", json.dumps(body).encode())

    def _ask(self, method: str, path: str, body: bytes | None = None, *, read_s: float = _READ_S) -> Json:
        try:
            answer = self._connected().request(
                method, self._url + path, body=body, retries=False, redirect=False,
                headers={"Content-Type": "application/json"}, timeout=urllib3.Timeout(connect=_CONNECT_S, read=read_s),
            )  # fmt: skip
            said = json.loads(answer.data) if answer.data else {}
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            self._pool = None  # certificate or CA may be new by then
            raise Silent(f"the coordinator at {self._url} does not answer: {error}") from error
        if answer.status >= 500 or answer.status in (408, 429):
            raise Silent(str(said.get("text", f"the coordinator answers {answer.status}")))
        if answer.status >= 400:
            raise RefusedByStore(str(said.get("text", f"{method} {path}: the coordinator answers {answer.status}")))
        return dict(said)

    def _connected(self) -> urllib3.PoolManager:
        if self._pool is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.load_verify_locations(self._folder / "ca.pem")
            context.load_cert_chain(self._folder / "operator.pem", self._folder / "operator.key")
            self._pool = urllib3.PoolManager(ssl_context=context, maxsize=2)
        return self._pool

    def close(self) -> None:
        """Let go of connections."""
        if self._pool is not None:
            self._pool.clear()
