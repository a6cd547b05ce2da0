"""A bad link of the tests' own: a TCP proxy that is slow both ways and cuts every connection now and then."""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

_CHUNK = 2048
_BUFFER = 8192


@dataclass
class BadLink:
    """The proxy.

    Attributes:
        bits_s: how fast it is, each way.
        cut_every_s: after about so long a connection ends without a word; 0 for never.
        up, down: bytes that came from the client and from the server.
        cuts: connections that were cut.
    """

    target: tuple[str, int]
    bits_s: float
    cut_every_s: float
    rng: random.Random
    up: int = 0
    down: int = 0
    cuts: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _listener: socket.socket = field(default_factory=socket.socket)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._listener.getsockname()[1]}"

    def open(self) -> None:
        # Small buffers, set before the handshake: what a kernel holds for us would not be on the link.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(16)
        self._listener.settimeout(0.1)
        self._start(self._accept)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _start(self, act: object, *arguments: object) -> None:
        thread = threading.Thread(target=act, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            server = socket.socket()
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            server.connect(self.target)
            lasts = self.cut_every_s * self.rng.uniform(0.7, 1.3) if self.cut_every_s else 1e9
            self._start(self._pass, client, server, time.monotonic() + lasts)

    def _pass(self, client: socket.socket, server: socket.socket, until: float) -> None:
        ended = threading.Event()
        for source, sink, up in ((client, server, True), (server, client, False)):
            source.settimeout(0.05)
            self._start(self._carry, source, sink, ended, up)
        while not ended.wait(0.02) and not self._stop.is_set():
            if time.monotonic() >= until:
                self.cuts += 1
                break
        ended.set()
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _carry(self, source: socket.socket, sink: socket.socket, ended: threading.Event, up: bool) -> None:
        free_at = time.monotonic()
        while not ended.is_set() and not self._stop.is_set():
            try:
                data = source.recv(_CHUNK)
                if not data:
                    break
                if up:
                    self.up += len(data)
                else:
                    self.down += len(data)
                sink.settimeout(5.0)
                sink.sendall(data)
            except TimeoutError:
                continue
            except OSError:
                break
            free_at = max(free_at, time.monotonic() - 0.01) + len(data) * 8 / self.bits_s
            ended.wait(max(0.0, free_at - time.monotonic()))
        ended.set()


@contextlib.contextmanager
def bad_link(port: int, *, bits_s: float, cut_every_s: float, seed: int = 1) -> Iterator[BadLink]:
    link = BadLink(("127.0.0.1", port), bits_s, cut_every_s, random.Random(seed))
    link.open()
    try:
        yield link
    finally:
        link.close()
