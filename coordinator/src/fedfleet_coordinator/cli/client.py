"""The coordinator's API as people use it: TLS 1.3 with the user's certificate, JSON, server-sent events."""

import json
import secrets
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import urllib3
from urllib3.exceptions import HTTPError, SSLError

from fedfleet_coordinator.cli.context import Context, place
from fedfleet_coordinator.cli.errors import BadInput, Refusal, Unreachable
from fedfleet_protocol.ids import run_id

ENDED = ("finished", "failed", "stopped")
"""The states of a run that does not change any more."""
CONNECT_S = 5.0
READ_S = 60.0
SILENCE_S = 45.0
"""An event stream that is silent for so long is opened anew: a peer that vanished sends no word either."""
MAX_BODY_BYTES = 256 << 20
MAX_EVENT_BYTES = 16 << 20
_FIRST_WAIT_S, _LAST_WAIT_S = 0.2, 3.0

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Away:
    """The coordinator does not answer; somebody keeps trying.

    Attributes:
        why: in words. seconds: for how long already.
    """

    why: str
    seconds: float


class Client:
    """One coordinator, as one user."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._pool = urllib3.PoolManager(ssl_context=_tls(context), timeout=_timeout(READ_S), retries=False, maxsize=4)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()

    def get(self, path: str, *, wait_s: float = 0.0, **query: str | float) -> Any:
        """Return the JSON that is at `path`; `wait_s` is how long the coordinator may hold the answer back.

        Raises:
            Unreachable: nobody answers. Refusal: the coordinator says no.
        """
        fields = {key: str(value) for key, value in query.items()}
        return self._json("GET", path, fields=fields, timeout=_timeout(READ_S + wait_s))

    def ready(self) -> bool:
        """Return whether the coordinator says that it can work."""
        with self._answer("GET", "/readyz", preload_content=False):
            return True

    def post(self, path: str, body: Json | None = None) -> Any:
        """Return the JSON that comes back for `body`.

        Raises:
            Unreachable: nobody answers. Refusal: the coordinator says no.
        """
        return self._json("POST", path, body=json.dumps(body or {}), headers={"Content-Type": "application/json"})

    def upload_bundle(self, data: bytes, digest: str) -> None:
        """Put a bundle where runs find it; the same one again changes nothing.

        Raises:
            Unreachable: nobody answers. Refusal: the coordinator says no.
        """
        headers = {"Content-Type": "application/octet-stream", "Fedfleet-Digest": digest}
        self._json("POST", "/v1/bundles", body=data, headers=headers)

    def submit(self, request: Json, *, patience_s: float = 60.0) -> str:
        """Return the id of the new run. The id is ours, so asking again after a lost answer makes no second run.

        Raises:
            Unreachable: nobody answers for `patience_s`. Refusal: the coordinator says no.
        """
        request = {"run": run_id(secrets.token_bytes(16)), **request}
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return str(self.post("/v1/runs", request)["run"])
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def download(self, path: str) -> bytes:
        """Return the bytes at `path`.

        Raises:
            Unreachable: nobody answers. Refusal: the coordinator says no.
        """
        with self._answer("GET", path, preload_content=False) as answer:
            pieces, size = [], 0
            for piece in answer.stream(1 << 20):
                size += len(piece)
                if size > MAX_BODY_BYTES * 64:
                    raise Refusal(f"the coordinator sends more than {MAX_BODY_BYTES * 64} bytes for {path}; given up")
                pieces.append(piece)
            return b"".join(pieces)

    def watch(self, run: str) -> Iterator[Json | Away]:
        """Yield the run's snapshot on each change until it has ended, and `Away` whenever nobody answers.

        Raises:
            Refusal: the coordinator says no, e.g. there is no such run.
        """
        away_since: float | None = None
        pause = _FIRST_WAIT_S
        while True:
            try:
                for snapshot in self._events(f"/v1/runs/{run}/events"):
                    away_since, pause = None, _FIRST_WAIT_S
                    yield snapshot
                    if snapshot.get("state") in ENDED:
                        return
                snapshot = self.get(f"/v1/runs/{run}")
                away_since, pause = None, _FIRST_WAIT_S
                yield snapshot
                if snapshot.get("state") in ENDED:
                    return
            except Unreachable as error:
                away_since = away_since or time.monotonic()
                yield Away(str(error), time.monotonic() - away_since)
            except Refusal as error:
                if error.status not in (429, 502, 503, 504):
                    raise
                away_since = away_since or time.monotonic()
                yield Away(str(error), time.monotonic() - away_since)
            time.sleep(pause)
            pause = min(pause * 1.6, _LAST_WAIT_S)

    def _events(self, path: str) -> Iterator[Json]:
        headers = {"Accept": "text/event-stream"}
        with self._answer("GET", path, preload_content=False, timeout=_timeout(SILENCE_S), headers=headers) as answer:
            pending = b""
            while piece := answer.read1(64 << 10):
                pending += piece
                if len(pending) > MAX_EVENT_BYTES:
                    raise Unreachable("the coordinator sends an event that does not end; opening the stream anew")
                *events, pending = pending.replace(b"\r\n", b"\n").split(b"\n\n")
                for event in events:
                    data = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
                    if data:
                        yield _decoded(data, path)

    def _json(self, method: str, path: str, **options: Any) -> Any:
        with self._answer(method, path, preload_content=False, **options) as answer:
            data = answer.read(MAX_BODY_BYTES + 1)
            if len(data) > MAX_BODY_BYTES:
                raise Refusal(f"the coordinator sends more than {MAX_BODY_BYTES} bytes for {path}; given up")
            return _decoded(data, path) if data else None

    @contextmanager
    def _answer(self, method: str, path: str, **options: Any) -> Iterator[urllib3.BaseHTTPResponse]:
        answer: urllib3.BaseHTTPResponse | None = None
        whole = False
        try:
            answer = self._pool.request(method, self._context.url + path, redirect=False, **options)
            if answer.status >= 300:
                raise _refusal(answer.status, answer.read(64 << 10))
            yield answer
            answer.drain_conn()
            whole = True
        except SSLError as error:
            raise Unreachable(
                f"the coordinator at {self._context.url} cannot be spoken to over TLS ({_cause(error)}); "
                f"is the context in {place()} of another fleet, or its certificate expired?"
            ) from error
        except (HTTPError, OSError) as error:
            raise Unreachable(
                f"the coordinator at {self._context.url} does not answer ({_cause(error)}); is it running? "
                f"start a local fleet with: fedfleet up, or look at the address in {place()}"
            ) from error
        finally:
            if answer is not None:
                (answer.release_conn if whole else answer.close)()


def _timeout(read_s: float) -> urllib3.Timeout:
    return urllib3.Timeout(connect=CONNECT_S, read=read_s)


def _tls(context: Context) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        tls.load_verify_locations(context.ca)
        tls.load_cert_chain(context.cert, context.key)
    except (OSError, ssl.SSLError) as error:
        raise BadInput(
            f"the certificates that {place()} names cannot be used ({error}); is the fleet they belong to gone? "
            "start a local fleet with: fedfleet up"
        ) from error
    return tls


def _refusal(status: int, data: bytes) -> Refusal:
    try:
        body = json.loads(data)
        return Refusal(str(body["text"]), code=str(body.get("code", "")), status=status)
    except (ValueError, KeyError, TypeError):
        text = data.decode(errors="replace").strip()[:200]
        return Refusal(f"the coordinator answers with HTTP {status}: {text or 'nothing more'}", status=status)


def _decoded(data: bytes, path: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise Refusal(f"the coordinator's answer to {path} is not JSON; is it of another version?") from error


def _cause(error: BaseException) -> str:
    """Return the innermost sentence: urllib3 wraps what happened in several coats."""
    reason = getattr(error, "reason", None)
    while isinstance(reason, BaseException):
        error, reason = reason, getattr(reason, "reason", None)
    text = str(getattr(error, "strerror", None) or error)
    return text.rsplit(": ", 1)[-1].strip("()'\" ") or type(error).__name__
