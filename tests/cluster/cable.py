"""The cable between the operator and the API server: a TCP proxy of the tests' own, to be pulled or left hanging."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import yaml

State = Literal["whole", "pulled", "hanging"]


class Cable:
    """Carries bytes while it is whole.

    Attributes:
        state: pulled ends every connection and takes no new one, as when the API server is gone; hanging keeps all
            connections open and carries nothing, as when a router on the way forgets them.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self.state: State = "whole"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.1)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def port(self) -> int:
        """Where it begins, on this machine."""
        port: int = self._listener.getsockname()[1]
        return port

    def close(self) -> None:
        """End it."""
        self._stop.set()
        for thread in self._threads:
            thread.join(5)
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
            if self.state == "pulled":
                client.close()
                continue
            server = socket.create_connection(self._target)
            ended = threading.Event()
            self._start(self._carry, client, server, ended)
            self._start(self._carry, server, client, ended)

    def _is(self, state: State) -> bool:  # it changes in another thread, which mypy does not know
        return self.state == state

    def _carry(self, source: socket.socket, sink: socket.socket, ended: threading.Event) -> None:
        source.settimeout(0.05)
        while not ended.is_set() and not self._stop.is_set() and self.state != "pulled":
            if self.state == "hanging":
                ended.wait(0.05)
                continue
            try:
                data = source.recv(1 << 16)
                while self._is("hanging") and not self._stop.wait(0.05):
                    pass  # it came just before
                if not data or self._is("pulled"):
                    break
                sink.sendall(data)
            except TimeoutError:
                continue
            except OSError:
                break
        ended.set()
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


@contextlib.contextmanager
def cable_to(kubeconfig: str, folder: Path) -> Iterator[tuple[Cable, str]]:
    """Yield a cable to the API server of a kubeconfig, and the path of a kubeconfig that goes through it."""
    tree = yaml.safe_load(Path(kubeconfig).read_text())
    cluster = tree["clusters"][0]["cluster"]
    host, _, port = cluster["server"].removeprefix("https://").partition(":")
    cable = Cable((host, int(port or 443)))
    cluster |= {"server": f"https://127.0.0.1:{cable.port}", "tls-server-name": host}
    file = folder / f"kubeconfig-{cable.port}"
    file.write_text(yaml.safe_dump(tree))
    try:
        yield cable, str(file)
    finally:
        cable.close()
