"""Requests to the API server: plain dicts in, plain dicts out, every one with a time limit.

The official client is used for what it does well, configuration and authentication. Its typed models, its informers and
its leader election are not: the informer raises on custom resources and sits on a dead connection.

    ClusterError
    ├── Unreachable   no answer in time, or one that says "not now": the cluster's fault, try again
    ├── NotThere      404
    ├── Conflict      409: somebody was quicker, or it is there already; look again
    ├── Expired       410: what was watched from is too old; list again
    └── Refused       the API server does not take it: our fault or the person's; its words say why
"""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import urllib3
from kubernetes import config as kubeconfig
from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException

Json = dict[str, Any]
MANAGER = "fedfleet-operator"
REQUEST_S = 4.0
"""How long any request but a watch may take; a Lease's margin is longer, see `lease`."""
_CONNECT_S = 2.0
_PAGE = 500
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"


class ClusterError(Exception):
    """The API server did not do what it was asked."""


class Unreachable(ClusterError):
    """No answer in time, or one that says "not now"."""


class NotThere(ClusterError):
    """There is no such object."""


class Conflict(ClusterError):
    """Somebody was quicker, or it is there already."""


class Expired(ClusterError):
    """The resource version is too old to be watched from."""


class Refused(ClusterError):
    """The API server does not take the request."""


class ApiServer:
    """One API server, spoken to as the operator. Safe to use from several threads.

    Args:
        client: configured and authenticated.
    """

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    @classmethod
    def found(cls, kubeconfig_file: str | None = None) -> "ApiServer":
        """Return the API server of the pod this runs in, or the one that a kubeconfig names.

        Raises:
            Refused: neither can be used.
        """
        settings = Configuration()
        try:
            if kubeconfig_file is None:
                kubeconfig.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
            else:
                kubeconfig.load_kube_config(kubeconfig_file, client_configuration=settings)  # type: ignore[no-untyped-call]
        except kubeconfig.ConfigException as error:
            raise Refused(f"no API server can be spoken to: {error}") from error
        settings.retries = False
        settings.connection_pool_maxsize = 16
        return cls(ApiClient(settings))

    # --- objects -----------------------------------------------------------------------------------------------------

    def get(self, path: str) -> Json:
        """Return one object. Raises: ClusterError."""
        return self._json("GET", path)

    def all(self, path: str, *, labels: str = "") -> tuple[list[Json], str]:
        """Return all objects of a kind, page by page, and the version to watch from. Raises: ClusterError."""
        found: list[Json] = []
        after = ""
        while True:
            query = {"limit": str(_PAGE)} | ({"labelSelector": labels} if labels else {})
            page = self._json("GET", path, query=query | ({"continue": after} if after else {}))
            found += page.get("items") or []
            after = page["metadata"].get("continue") or ""
            if not after:
                return found, page["metadata"]["resourceVersion"]

    def create(self, path: str, body: Json) -> Json:
        """Make an object. Raises: Conflict: it is there already. ClusterError."""
        return self._json("POST", path, body=body, query={"fieldManager": MANAGER})

    def replace(self, path: str, body: Json) -> Json:
        """Replace an object, if it is still the version that `body` names. Raises: Conflict. ClusterError."""
        return self._json("PUT", path, body=body, query={"fieldManager": MANAGER})

    def apply(self, path: str, body: Json, *, manager: str = MANAGER) -> Json:
        """Make the fields in `body` ours, and let go of those that were and are not in it. Raises: ClusterError."""
        return self._json("PATCH", path, body=body, kind=_APPLY, query={"fieldManager": manager, "force": "true"})

    def merge(self, path: str, body: Json) -> Json:
        """Change fields of an object; a null takes one away. Raises: ClusterError."""
        return self._json("PATCH", path, body=body, kind=_MERGE, query={"fieldManager": MANAGER})

    def delete(self, path: str) -> None:
        """Delete an object, and what belongs to it after it; one that is gone is as good. Raises: ClusterError."""
        try:
            self._json("DELETE", path, body={"propagationPolicy": "Background"})
        except NotThere:
            pass

    # --- watching ----------------------------------------------------------------------------------------------------

    def watch(
        self, path: str, version: str, *, labels: str = "", for_s: float, silence_s: float
    ) -> Iterator[tuple[str, Json]]:
        """Yield what happens to objects of a kind after `version`, as (type, object).

        Args:
            for_s: the server ends the watch then; go on from the last version seen.
            silence_s: with nothing heard for this long the connection counts as dead; more than `for_s`.

        Raises:
            Expired: list again. Unreachable: the connection broke, or nothing was heard.
        """
        query = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(int(for_s)),
        }
        query |= {"labelSelector": labels} if labels else {}
        response = self._send("GET", path, query=query, body=None, kind=None, read_s=silence_s)
        rest = b""
        try:
            for piece in response.stream(1 << 16, decode_content=True):
                rest += piece
                *lines, rest = rest.split(b"\n")
                for line in filter(None, lines):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise _error(int(event["object"].get("code", 500)), event["object"], path)
                    yield event["type"], event["object"]
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise Unreachable(f"the watch of {path} broke: {error}") from error
        finally:
            response.close()

    # --- how ---------------------------------------------------------------------------------------------------------

    def _json(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: Json | None = None,
        kind: str | None = None,
    ) -> Json:  # fmt: skip
        response = self._send(method, path, query=query or {}, body=body, kind=kind, read_s=REQUEST_S)
        try:
            data = response.read()
            return json.loads(data) if data else {}
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise Unreachable(f"the answer to {method} {path} broke off: {error}") from error
        finally:
            response.release_conn()

    def _send(
        self, method: str, path: str, *, query: dict[str, str], body: Json | None, kind: str | None, read_s: float
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": "application/json", "Content-Type": kind or "application/json"}
        try:
            wanted = self._client.param_serialize(
                method, path, query_params=list(query.items()), header_params=headers, body=body,
                auth_settings=["BearerToken"],
            )  # fmt: skip
            # The client would look for JSON by the type alone and refuse the one of server-side apply.
            answer = self._client.rest_client.pool_manager.request(
                method, wanted[1], headers=wanted[2], body=json.dumps(body).encode() if body is not None else None,
                preload_content=False, redirect=False, timeout=urllib3.Timeout(connect=_CONNECT_S, read=read_s),
            )  # fmt: skip
        except (urllib3.exceptions.HTTPError, OSError, ApiException) as error:
            raise Unreachable(f"the API server does not answer {method} {path}: {error}") from error
        if answer.status >= 300:
            try:
                said = json.loads(answer.read())
            except (urllib3.exceptions.HTTPError, OSError, ValueError):
                said = {}
            finally:
                answer.release_conn()
            raise _error(answer.status, said, path)
        return answer


def _error(status: int, said: Json, path: str) -> ClusterError:
    text = str(said.get("message") or f"{path}: the API server answers {status}")
    if status == 404:
        return NotThere(text)
    if status == 409:
        return Conflict(text)
    if status == 410:
        return Expired(text)
    if status in (401, 408, 429) or status >= 500:  # 401: the token was renewed in between
        return Unreachable(text)
    return Refused(text)


def runs_path(namespace: str = "", name: str = "", sub: str = "") -> str:
    """Return the path of FederatedRuns, or of one."""
    return _path("/apis/fedfleet.dev/v1alpha1", "federatedruns", namespace, name, sub)


def jobs_path(namespace: str = "", name: str = "") -> str:
    """Return the path of Jobs, or of one."""
    return _path("/apis/batch/v1", "jobs", namespace, name)


def pods_path(namespace: str = "") -> str:
    """Return the path of pods."""
    return _path("/api/v1", "pods", namespace)


def events_path(namespace: str) -> str:
    """Return the path of a namespace's Events."""
    return _path("/api/v1", "events", namespace)


def lease_path(namespace: str, name: str = "") -> str:
    """Return the path of a namespace's Leases, or of one."""
    return _path("/apis/coordination.k8s.io/v1", "leases", namespace, name)


def _path(group: str, kind: str, namespace: str = "", name: str = "", sub: str = "") -> str:
    parts = [group, *(["namespaces", quote(namespace, safe="")] if namespace else []), kind]
    return "/".join([*parts, *([quote(name, safe="")] if name else []), *([sub] if sub else [])])
