"""Patient HTTPS: one coordinator, a client certificate, and requests that are repeated until they are answered."""

import json
import logging
import math
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import urllib3
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from fedfleet_coordinator.errors import Fenced, HubRefused, Nondeterministic
from fedfleet_protocol.ids import RunId

PIECE_BYTES = 256 << 10
MAX_ANSWER_BYTES = 64 << 20
_AGAIN = frozenset({408, 429, 500, 502, 503, 504, 507})
_TELL_EVERY_S = 30.0
_FAILURES_S = 120.0
_log = logging.getLogger("fedfleet")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the coordinator is, and who asks.

    Attributes:
        url: `https://host:port`.
        epoch: the token of this launch; every request carries it.
        certificate, key, ca: PEM files.
    """

    url: str
    run: RunId
    epoch: str
    certificate: Path
    key: Path
    ca: Path


class Later(Exception):
    """Not now; try again, not before `after_s`, and if the coordinator failed over the request, not for ever."""

    def __init__(self, text: str, after_s: float = 0.0, *, failed: bool = False) -> None:
        super().__init__(text)
        self.after_s, self.failed = after_s, failed


class Elsewhere(Exception):
    """An upload goes on at another byte."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"the upload goes on at byte {offset}")
        self.offset = offset


class Wire:
    """Requests to the coordinator's routes for one run. Safe to be used by several threads.

    Args:
        first_wait_s, longest_wait_s: between two attempts.
    """

    def __init__(self, address: Address, *, first_wait_s: float = 0.05, longest_wait_s: float = 10.0) -> None:
        parts = urlsplit(address.url)
        if parts.scheme != "https" or not parts.hostname:
            raise ValueError(f"{address.url!r} is no https address")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(address.ca)
        context.load_cert_chain(address.certificate, address.key)
        self._pool = urllib3.HTTPSConnectionPool(
            parts.hostname, parts.port or 443, ssl_context=context, maxsize=4, retries=False, blocksize=PIECE_BYTES
        )
        self._base = f"/v1/runner/{address.run}"
        self._headers = {"Fedfleet-Epoch": address.epoch, "Content-Type": "application/msgpack"}
        self._wait = wait_random_exponential(multiplier=first_wait_s, max=longest_wait_s)

    def close(self) -> None:
        """Let go of the connections."""
        self._pool.close()

    def ask(self, method: str, path: str, body: bytes | None = None, **options: Any) -> bytes:
        """Return the answer to a request, however long the coordinator is away; options as for `once`."""
        return self.patiently(lambda: self.once(method, path, body, **options))

    def patiently(self, once: Callable[[], _T]) -> _T:
        """Call `once` until it does not raise `Later`."""
        began = told = time.monotonic()
        failing_since = math.inf

        def before_sleep(state: RetryCallState) -> None:
            nonlocal told, failing_since
            now = time.monotonic()
            error = state.outcome.exception() if state.outcome is not None else None
            failing_since = min(failing_since, now) if isinstance(error, Later) and error.failed else math.inf
            if now - failing_since > _FAILURES_S:
                raise HubRefused(str(error))
            if now - told >= _TELL_EVERY_S:
                told = now
                _log.warning("no success at the coordinator for %.0f s, trying on: %s", now - began, error)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            return max(self._wait(state), error.after_s if isinstance(error, Later) else 0.0)

        retrying = Retrying(retry=retry_if_exception_type(Later), wait=wait, before_sleep=before_sleep, reraise=True)
        return retrying(once)

    def once(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        timeout_s: float = 60.0,
        missing: bool = False,
        answers: int = 0,
    ) -> bytes:
        """Ask once.

        Args:
            missing: whether 404 is an answer, the empty one.
            answers: the number of the Grid's answer that the request is about; a 400 says it was to another question.

        Raises:
            Later: no answer, or not now. Elsewhere: an upload goes on at another byte.
            Fenced, Nondeterministic, HubRefused: as the port says.
        """
        response = self.begin(method, path, body, headers=headers, timeout_s=timeout_s)
        try:
            data = read(response, MAX_ANSWER_BYTES + 1)
        finally:
            response.release_conn()
        if len(data) > MAX_ANSWER_BYTES:
            raise HubRefused(f"{method} {path}: the answer has more than {MAX_ANSWER_BYTES} bytes")
        if response.status < 300:
            return data
        if response.status == 404 and missing:
            return b""
        raise refusal(f"{method} {path}", response.status, data, answers)

    def begin(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> urllib3.BaseHTTPResponse:
        """Return a response whose body was not read.

        Raises:
            Later: the coordinator is not there.
        """
        try:
            return self._pool.request(
                method, self._base + path, body=body, headers={**self._headers, **(headers or {})},
                timeout=urllib3.Timeout(connect=10.0, read=timeout_s), preload_content=False,
            )  # fmt: skip
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Later(f"{type(error).__name__}: {error}") from error


def read(response: urllib3.BaseHTTPResponse, most: int) -> bytes:
    """Return the next bytes of a body.

    Raises:
        Later: the connection was cut.
    """
    try:
        return response.read(most)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        response.close()
        raise Later(f"{type(error).__name__}: {error}") from error


def refusal(what: str, status: int, data: bytes, answers: int) -> BaseException:
    """Return the exception that an answer other than success stands for."""
    try:
        told = json.loads(data)
        told = told if isinstance(told, dict) else {}
    except ValueError:
        told = {}
    code, text = str(told.get("code", "")), str(told.get("text", "")) or data[:200].decode("utf-8", "replace")
    if code in ("epoch", "over"):
        return Fenced(text)
    if status in (409, 422) and isinstance(told.get("offset"), int):
        return Elsewhere(told["offset"])
    if status in _AGAIN:
        after = told.get("retry_after_s", 0.0)
        wait_s = float(after) if isinstance(after, int | float) else 0.0
        return Later(f"{what}: {status} {text}", wait_s, failed=status == 500)
    if status == 400 and answers:
        return Nondeterministic(text)
    return HubRefused(f"{what}: {status} {code} {text}")
