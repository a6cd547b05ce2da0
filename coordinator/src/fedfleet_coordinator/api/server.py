"""The HTTPS server: uvicorn inside the coordinator's own event loop, TLS 1.3 with client certificates.

uvicorn is a program; here it is a part. It takes no signals, binds before it says it started, and hands each request
the client's certificate, which it otherwise hides. Connections are bounded: in number, in the size of a request's
head, and in the time until that head is there, so that clients that never finish a sentence hold nothing for long.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fedfleet_coordinator.errors import Misconfigured

CERTIFICATE = "fedfleet.certificate"
"""Where in the ASGI scope the client's certificate is, in DER; None if it showed none."""
MAX_CONNECTIONS = 8192
MAX_HEAD_BYTES = 32 << 10
HEAD_S = 15.0
KEEP_ALIVE_S = 60
HANDSHAKE_S = 20.0
GRACE_S = 10
WRITE_BUFFER_BYTES = 1 << 20


def tls_context(*, chain: Path, key: Path, client_cas_pem: Iterable[str]) -> ssl.SSLContext:
    """Return the server's side of TLS 1.3.

    A client certificate is asked for and, if shown, must come from one of the client CAs; showing none is for the
    routes to judge: a device that is about to enrol has none.

    Args:
        chain: PEM file of the server's certificate, issued by the services CA. key: its private key.
        client_cas_pem: the CAs of agents, services and users.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(chain, key)
    context.load_verify_locations(cadata="\n".join(client_cas_pem))
    context.verify_mode = ssl.CERT_OPTIONAL
    # No session tickets: each connection proves its certificate anew, also after the CAs or the CRL changed.
    context.num_tickets = 0
    return context


class PeerProtocol(HttpToolsProtocol):
    """HTTP/1.1 of one connection; adds the client's certificate to each request and bounds the head of a request."""

    _certificate: bytes | None = None
    _head_bytes = 0
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Remember the certificate, and expect a request soon."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        tls = transport.get_extra_info("ssl_object")
        self._certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of the timers."""
        self._forget_head()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take the next bytes; a head that does not end is refused."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        cast(dict[str, Any], self.scope)[CERTIFICATE] = self._certificate
        self._in_head = True
        self._head_bytes = 0
        self._await_head()

    def on_headers_complete(self) -> None:
        """The head is there; from here on the route bounds what comes."""
        self._in_head = False
        self._forget_head()
        super().on_headers_complete()

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self.timeout_keep_alive_handler)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _Embedded(uvicorn.Server):
    """uvicorn without its hold on the process."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, tls: ssl.SSLContext) -> None:
        super().__init__(config)
        self._listener = listener
        self._tls = tls

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the coordinator."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, with time limits for the handshake that uvicorn does not set."""
        await self.lifespan.startup()

        def protocol() -> PeerProtocol:
            return PeerProtocol(self.config, self.server_state, self.lifespan.state)

        server = await asyncio.get_running_loop().create_server(
            protocol,
            sock=self._listener,
            ssl=self._tls,
            backlog=self.config.backlog,
            ssl_handshake_timeout=HANDSHAKE_S,
            ssl_shutdown_timeout=2.0,
        )
        self.servers = [server]
        self.started = True


class ApiServer:
    """The API at one address.

    Args:
        tls: as `tls_context` makes it; to renew the server's certificate, load the new one into the same context.
        stopping: set when the server begins to stop; routes that wait for something give up waiting then.
    """

    def __init__(
        self, app: ASGIApp, *, host: str, port: int, tls: ssl.SSLContext, stopping: asyncio.Event | None = None
    ) -> None:
        config = uvicorn.Config(
            app,
            http=PeerProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
        config.load()
        self.host = host
        self._listener = _bound(host, port)
        self._server = _Embedded(config, self._listener, tls)
        self._stopping = stopping
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port it listens on, also when 0 was asked for."""
        return int(self._listener.getsockname()[1])

    async def start(self) -> None:
        """Accept connections from now on."""
        self._task = asyncio.create_task(self._server.serve(), name="api")
        while not self._server.started:
            if self._task.done():
                await self._task
                raise RuntimeError("the API server ended before it started")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Take no more requests, finish those under way within `GRACE_S` seconds, and close all connections."""
        if self._stopping is not None:
            self._stopping.set()
        self._server.should_exit = True
        if self._task is None:
            self._listener.close()
            return
        await self._task
        for connection in list(self._server.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol must be named: asyncio sets TCP_NODELAY only on sockets that say they are TCP, and without it each
    # answer waits 40 ms for the acknowledgement of its head.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Misconfigured(
            f"the API cannot listen on {host} port {port}: {error.strerror}; stop what is there or choose another"
        ) from error
    listener.setblocking(False)
    return listener
