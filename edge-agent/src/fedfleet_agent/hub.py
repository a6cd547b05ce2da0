"""The agent's HTTPS side: one pool of kept-alive connections to the coordinator, and what its answers mean."""

import json
import random
import socket
import ssl
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, cast

import urllib3

from fedfleet_agent.errors import GrantRefused, HubRefused, HubUnreachable, TransferCancelled

CAPABILITY: Final = "Fedfleet-Capability"
CONNECT_S: Final = 20.0
STALL_S: Final = 30.0
"""A connection over which nothing comes for so long is given up; the transfer goes on over the next one."""
MAX_ANSWER_BYTES: Final = 4 << 20
_BUSY = frozenset({408, 425, 429})
# Data that waits in the kernel cannot be taken back when the link is cut: little of it, so that little is sent twice.
_UNSENT_BYTES = 64 << 10
_SOCKET_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *([(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)] if hasattr(socket, "TCP_NOTSENT_LOWAT") else []),
]


def tls_context(*, certificate: Path | None, key: Path | None, services_ca_pem: str) -> ssl.SSLContext:
    """Return the agent's side of TLS 1.3: nobody but the services CA is believed.

    Args:
        certificate, key: PEM files of the agent's identity; None for a device that has none yet.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=services_ca_pem)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


class Hub:
    """The coordinator, over HTTPS. May be used by several threads.

    Args:
        data_url: `https://host:port`, as the identity says.
        tls: as `tls_context` makes it.
    """

    def __init__(self, data_url: str, tls: ssl.SSLContext) -> None:
        self._data_url = data_url.rstrip("/")
        self._pool = urllib3.PoolManager(
            num_pools=2,
            maxsize=2,
            ssl_context=tls,
            timeout=urllib3.Timeout(connect=CONNECT_S, read=STALL_S),
            retries=False,
            socket_options=_SOCKET_OPTIONS,
        )

    def post(self, path: str, body: bytes) -> bytes:
        """Return the answer to `body`; one try.

        Raises:
            HubUnreachable: no connection, or the hub asks to come back later. HubRefused: the hub says no.
        """
        answer = self.open("POST", path, body=body, headers={"Content-Type": "application/msgpack"})
        return checked(answer)

    def open(
        self,
        method: str,
        path: str,
        *,
        body: bytes | Iterable[bytes | memoryview] | None = None,
        headers: dict[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """Send a request and return the answer with its body still unread; the caller reads or closes it.

        Raises:
            HubUnreachable: no connection, or it broke before the answer came.
        """
        url = path if path.startswith("https://") else self._data_url + path
        try:
            return self._pool.request(
                method, url, body=cast(Any, body), headers=headers, preload_content=False, redirect=False
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise unreachable(self._data_url, error) from error

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()


def unreachable(where: str, error: Exception) -> HubUnreachable:
    """Return the error that says a connection failed."""
    return HubUnreachable(f"no connection to {where}: {error}; the agent tries again by itself")


def checked(answer: urllib3.BaseHTTPResponse) -> bytes:
    """Return the body of a good answer.

    Raises:
        HubUnreachable: the hub asks to come back, or the connection broke. GrantRefused, HubRefused: it says no.
    """
    body = drained(answer)
    if answer.status < 300:
        return body
    raise refused(answer, body)


def drained(answer: urllib3.BaseHTTPResponse) -> bytes:
    """Return the body of an answer and let its connection be used again.

    Raises:
        HubUnreachable: the connection broke. HubRefused: the answer is larger than any a hub gives.
    """
    try:
        body = answer.read(MAX_ANSWER_BYTES + 1)
        if len(body) > MAX_ANSWER_BYTES:
            answer.close()
            raise HubRefused(f"the hub's answer has more than {MAX_ANSWER_BYTES} bytes; is this address a hub?")
        answer.drain_conn()
        answer.release_conn()
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise unreachable("the hub", error) from error
    return bytes(body)


def refused(answer: urllib3.BaseHTTPResponse, body: bytes) -> HubUnreachable | HubRefused:
    """Return what an answer that is no success means."""
    told = told_in(body)
    text = str(told.get("text") or f"the hub answered {answer.status}")
    if answer.status >= 500 or answer.status in _BUSY:
        return HubUnreachable(text, _seconds(told.get("retry_after_s") or answer.headers.get("Retry-After")))
    if answer.status == 403 and told.get("code") == "capability":
        return GrantRefused(text)
    return HubRefused(text)


def told_in(body: bytes) -> dict[str, Any]:
    """Return what the hub says in a JSON answer; nothing if it is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


class Patience:
    """Waits between tries: exponential back-off with full jitter, until cancelled.

    Args:
        cancel: set by another thread to end all waiting.
    """

    FIRST_S: Final = 0.5
    LONGEST_S: Final = 60.0

    def __init__(self, rng: random.Random, cancel: threading.Event) -> None:
        self._rng = rng
        self._cancel = cancel
        self._tries = 0

    def check(self) -> None:
        """Go on.

        Raises:
            TransferCancelled: somebody cancelled.
        """
        if self._cancel.is_set():
            raise TransferCancelled("the transfer was cancelled")

    def reset(self) -> None:
        """Something moved: the next failure is a first one."""
        self._tries = 0

    def wait(self, at_least_s: float = 0.0) -> None:
        """Wait before the next try.

        Args:
            at_least_s: what the hub asked for; up to as much again is added, so that not all come back at once.

        Raises:
            TransferCancelled: somebody cancelled.
        """
        longest = min(self.LONGEST_S, self.FIRST_S * 2.0**self._tries)
        self._tries = min(self._tries + 1, 16)
        pause = (
            at_least_s + self._rng.uniform(0, min(at_least_s, longest)) if at_least_s else self._rng.uniform(0, longest)
        )
        self._cancel.wait(min(pause, 10 * self.LONGEST_S))
        self.check()


def _seconds(told: object) -> float:
    try:
        return min(3600.0, max(0.0, float(str(told))))
    except ValueError:
        return 0.0
