"""A thousand agents' worth of the real task machine and control link, in one process, against a real hub and broker.

Each has its own key, certificate, TLS connection and machine; only the trainer is a function. The exchange is one of
the echo app's, so its time is what a ServerApp waits. `python -m benchmarks.thousand FOLDER COUNT` is the agents.
"""

import json
import os
import random
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ArrayRecord, MetricRecord, RecordDict

from benchmarks.processes import wait_until
from fedfleet_agent import core, identity
from fedfleet_agent.link import Ack, Link
from fedfleet_coordinator.cli.localfleet import LocalFleet
from fedfleet_coordinator.pki import Pki, certificate_pem, public_der
from fedfleet_coordinator.rows import Agent
from fedfleet_coordinator.settings import Exchange as ExchangeSettings
from fedfleet_coordinator.settings import Runner, load
from fedfleet_coordinator.store.sql import SqlStore
from fedfleet_flower.contents import from_records
from fedfleet_protocol.blocks import blocks_of
from fedfleet_protocol.ids import Digest, RunId, agent_id
from fedfleet_protocol.messages import Ask, BlobRef, Identity, Reply, Status, ToAgent
from tests.e2e.fleet import submit

ECHO = Path(__file__).parent / "echo"
COUNT = 1000
VALUES = 1000
"""Four kilobytes of float32."""


def seconds(count: int = COUNT) -> tuple[list[float], int]:
    """Return what exchanges of 4 KB with `count` agents took, and how many replies each had."""
    exchange = ExchangeSettings(settle_s=1.0)
    with (
        tempfile.TemporaryDirectory() as scratch,
        LocalFleet(agents=0, exchange=exchange, runner=Runner(writable=(scratch,))) as fleet,
    ):
        fleet.coordinator.hold()
        folder = fleet.state / "thousand"
        _enrol(fleet.hub, folder, count)
        fleet.coordinator.release()
        command = [sys.executable, "-m", "benchmarks.thousand", str(folder), str(count)]
        agents = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
        try:
            with fleet.client() as client:
                wait_until(lambda: _online(fleet) >= count, 120)
                del client
            saved = Path(scratch) / "seconds.json"
            options = {"megabytes": VALUES * 4 / 1e6, "exchanges": 3, "min-nodes": count}
            arguments = [text for key, value in options.items() for text in ("-c", f"{key}={value}")]
            ended = submit(fleet, ECHO, *arguments, "-c", f'save="{saved}"').wait(120)
            assert ended.snapshot["state"] == "finished", ended
            return json.loads(saved.read_text()), ended.snapshot["exchange"]["accepted"]
        finally:
            agents.terminate()
            agents.wait()


def _online(fleet: LocalFleet) -> int:
    try:
        with fleet.client() as client:
            return fleet.online(client)
    except Exception:  # the coordinator is on its way back
        return 0


def _enrol(hub: Path, folder: Path, count: int) -> None:
    """Make identities as enrolment does, all in one transaction."""
    pki, settings = Pki.load(hub / "pki"), load(hub)
    store = SqlStore(settings.store.url or f"sqlite:///{hub / 'hub.sqlite'}")
    now = time.time()
    with store.transaction() as tx:
        for number in range(count):
            agent, key = agent_id(random.Random(number).randbytes(16)), Ed25519PrivateKey.generate()
            certificate = pki.issue_agent(key.public_key(), agent, now_wall=now)
            told = Identity(
                agent=agent, certificate_pem=certificate_pem(certificate), services_ca_pem=pki.ca_pem("services"),
                broker=settings.broker.address, data_url=settings.api.url, order_key=pki.order_public,
            )  # fmt: skip
            home = folder / str(number)
            home.mkdir(mode=0o700, parents=True)
            identity.store(home, told, key, first=True)
            serial = f"{certificate.serial_number:x}"
            tx.put(Agent(agent=agent, public_key=public_der(key.public_key()), serial=serial, serials=(serial,)))
    store.close()


class Desk:
    """Waits for a thousand sockets."""

    def __init__(self) -> None:
        self._selector = selectors.EpollSelector()

    def watch(self, fd: int, events: int, act: Callable[[int], None]) -> None:
        """Call `act` when the descriptor is ready."""
        if fd in self._selector.get_map():
            self._selector.modify(fd, events, act)
        else:
            self._selector.register(fd, events, act)

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def turn(self, wait_s: float) -> None:
        """Call who is ready."""
        for key, events in self._selector.select(wait_s):
            key.data(events)


class Seat:
    """One agent: link and machine; its journal is memory, its trainer a function."""

    def __init__(self, home: Path, number: int, desk: Desk) -> None:
        credentials = identity.load(home)
        rng = random.Random(number)
        self.number = number
        self.core = core.Core(Ask(agent=credentials.agent), rng)
        self.link = Link(credentials, desk, on_message=self._heard, on_up=self._up, rng=rng)
        self._reply = b""

    def _up(self) -> None:
        self.link.publish(Status(version="bench"))

    def _heard(self, message: ToAgent, ack: Ack) -> None:
        self._happen(message)
        ack()

    def _happen(self, event: core.AnyEvent) -> None:
        for instruction in self.core.handle(event, time.monotonic()):
            match instruction:
                case core.Judge(entry):
                    self._happen(core.Judged(entry.order))
                case core.Fetch(entry):
                    self._happen(core.Fetched(entry.order))
                case core.Train(entry, _):
                    self._reply, digest = _work(self.number)
                    self._happen(core.Worked(entry.order, BlobRef(digest, len(self._reply)), None))
                case core.Announce(entry):
                    self._announce(entry)

    def _announce(self, entry: core.Entry) -> None:
        notice, reply = entry.notice, entry.reply
        assert reply is not None
        self.link.publish(
            Reply(run=RunId(notice.run), n=notice.n, order=entry.order, digest=reply.digest, size=reply.size,
                  attempt=notice.attempt, inline=self._reply)
        )  # fmt: skip


def _work(number: int) -> tuple[bytes, Digest]:
    """Return a reply that differs from every other agent's."""
    arrays = ArrayRecord([np.full(VALUES, number, np.float32)])
    content = from_records(
        RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), message_type="train"
    )
    data = b"".join(content.pieces())
    return data, blocks_of([data]).digest


def _serve(folder: Path, count: int) -> None:
    desk = Desk()
    seats = [Seat(folder / str(number), number, desk) for number in range(count)]
    while True:
        now = time.monotonic()
        waits = [seat.link.tick(now) for seat in seats]
        until = now + max(0.0, min(waits))
        while True:
            desk.turn(max(0.0, min(1.0, until - time.monotonic())))
            if time.monotonic() >= until:
                break


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
