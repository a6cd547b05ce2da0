"""A real mosquitto with fresh authorities, for tests that need one: `with running_broker(folder) as site: ...`."""

import contextlib
import random
import selectors
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedfleet_agent import identity
from fedfleet_agent.identity import Credentials
from fedfleet_agent.link import Ack, Link
from fedfleet_coordinator.broker import SERVICE, Broker, BrokerFiles
from fedfleet_coordinator.pki import Pki, certificate_pem, client_context, write_private
from fedfleet_protocol.ids import AgentId, agent_id
from fedfleet_protocol.messages import Identity, ToAgent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Site:
    """A broker, its pki, and the means to be somebody there."""

    folder: Path
    pki: Pki
    files: BrokerFiles
    broker: Broker

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.files.agents_port}"

    def device(
        self, number: int, *, pki: Pki | None = None, cn: AgentId | None = None, age_s: float = 0.0
    ) -> Credentials:
        """An enrolled agent; with another `pki`, one that another fleet's CA made; enrolled `age_s` ago."""
        name = cn or agent_id(number.to_bytes(16, "big"))
        folder = self.folder / f"device-{number}-{random.randbytes(4).hex()}"
        folder.mkdir(mode=0o700)
        key = Ed25519PrivateKey.generate()
        certificate = (pki or self.pki).issue_agent(key.public_key(), name, now_wall=time.time() - age_s)
        told = Identity(
            agent=name,
            certificate_pem=certificate_pem(certificate),
            services_ca_pem=self.pki.ca_pem("services"),
            broker=self.address,
            data_url="https://127.0.0.1:1",
            order_key=self.pki.order_public,
        )
        return identity.store(folder, told, key, first=True)

    def service_tls(self, name: str = SERVICE) -> ssl.SSLContext:
        """The client's side of TLS of the coordinator, or of another service."""
        chain, key = self.pki.issue_service(name, ["localhost"], now_wall=time.time())
        file = self.folder / f"{name}.pem"
        write_private(file, key + chain)
        return client_context(self.pki.ca_pem("services"), file)


@contextlib.contextmanager
def running_broker(folder: Path) -> Iterator[Site]:
    pki = Pki.create(folder / "pki", now_wall=time.time())
    files = BrokerFiles(folder / "broker", agents_host="127.0.0.1", agents_port=free_port(), service_port=free_port())
    files.write(pki, ["127.0.0.1"], [], time.time())
    broker = Broker(files)
    try:
        broker.start()
        yield Site(folder, pki, files, broker)
    finally:
        broker.stop()


@dataclass
class Desk:
    """A selector loop that drives agents' links, as the agent's own loop does."""

    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    links: list[Link] = field(default_factory=list)

    def watch(self, fd: int, events: int, act: Callable[[int], None]) -> None:
        if fd in self.selector.get_map():
            self.selector.modify(fd, events, act)
        else:
            self.selector.register(fd, events, act)

    def unwatch(self, fd: int) -> None:
        if fd in self.selector.get_map():
            self.selector.unregister(fd)

    def turn(self, wait_s: float = 0.02) -> None:
        now = time.monotonic()
        waits = [link.tick(now) for link in self.links]
        for key, events in self.selector.select(min([wait_s, *waits])):
            key.data(events)

    def until(self, seen: Callable[[], object], timeout_s: float = 10.0) -> bool:
        """Turn until `seen()`; return whether that came in time."""
        ends_at = time.monotonic() + timeout_s
        while not seen():
            if time.monotonic() > ends_at:
                return False
            self.turn()
        return True

    def close(self) -> None:
        for link in self.links:
            link.close()
        self.selector.close()


class Ear:
    """One agent's link and what it heard."""

    def __init__(self, desk: Desk, credentials: Credentials, *, acks: bool = True, seed: int = 1) -> None:
        self.heard: list[ToAgent] = []
        self.acks: list[Ack] = []
        self.ups = 0
        self._acks = acks
        self.link = Link(credentials, desk, on_message=self._hear, on_up=self._up, rng=random.Random(seed))
        desk.links.append(self.link)

    def _hear(self, message: ToAgent, ack: Ack) -> None:
        self.heard.append(message)
        self.acks.append(ack)
        if self._acks:
            ack()

    def _up(self) -> None:
        self.ups += 1
