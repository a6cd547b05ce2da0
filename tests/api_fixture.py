"""A real API server with real certificates in a thread: `with running_api(folder) as api: ...`."""

import asyncio
import contextlib
import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import urllib3
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedfleet_coordinator.api.app import build_app
from fedfleet_coordinator.api.server import ApiServer, tls_context
from fedfleet_coordinator.api.services import Services
from fedfleet_coordinator.api.uploads import Admission, Uploads
from fedfleet_coordinator.blobs import BlobFolder
from fedfleet_coordinator.capabilities import Capabilities
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.engine import Engine
from fedfleet_coordinator.enrolment import Addresses
from fedfleet_coordinator.exchanges import Exchanges
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.pki import CAS, Pki, certificate_pem, public_der, write_private
from fedfleet_coordinator.rows import Agent, Blob, Exchange, Run, Task
from fedfleet_coordinator.store.memory import MemoryStore
from fedfleet_coordinator.store.port import Store, Tx
from fedfleet_protocol.blocks import BlockList, blocks_of
from fedfleet_protocol.exchange import TaskState
from fedfleet_protocol.ids import AgentId, RunId, agent_id, run_id
from fedfleet_protocol.messages import BlobRef, Grant

T = TypeVar("T")


@dataclass
class Device:
    """An enrolled agent's identity on disk."""

    agent: AgentId
    key: Ed25519PrivateKey
    certificate: Path
    key_file: Path


@dataclass
class Answer:
    """What came back."""

    status: int
    body: bytes
    headers: urllib3.HTTPHeaderDict

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def unpacked(self) -> Any:
        return msgspec.msgpack.decode(self.body)


@dataclass
class Api:
    """A server, and the means to be somebody there."""

    folder: Path
    pki: Pki
    services: Services
    server: ApiServer
    loop: asyncio.AbstractEventLoop
    pools: list[urllib3.PoolManager] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server.port}"

    def do(self, work: Callable[[Tx, Now, Outbox], T]) -> T:
        return asyncio.run_coroutine_threadsafe(self.services.engine.do(work), self.loop).result(10)

    def device(self, number: int, *, pki: Pki | None = None, life_s: float = 0.0) -> Device:
        """An agent; with another `pki`, one that another fleet's CA made."""
        name, key, now = agent_id(number.to_bytes(16, "big")), Ed25519PrivateKey.generate(), time.time()
        issued = (pki or self.pki).issue_agent(
            key.public_key(), name, now_wall=now - (7 * 86400 - life_s if life_s else 0)
        )
        row = Agent(
            agent=name, public_key=public_der(key.public_key()), serial=f"{issued.serial_number:x}",
            serials=(f"{issued.serial_number:x}",), not_after_wall=issued.not_valid_after_utc.timestamp(),
        )  # fmt: skip
        if pki is None:
            self.do(lambda tx, now, out: tx.put(row))
        certificate, key_file = self.folder / f"{name}-{os.urandom(3).hex()}.pem", self.folder / f"{name}.key"
        certificate.write_text(certificate_pem(issued))
        write_private(key_file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return Device(name, key, certificate, key_file)

    def tls(self, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.pki.ca_pem("services"))
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        return context

    def client(self, who: Device | tuple[bytes, bytes] | None = None) -> "Client":
        """A client as a device, as who holds a certificate and key in PEM, or as nobody."""
        if isinstance(who, tuple):
            name = self.folder / os.urandom(4).hex()
            name.with_suffix(".pem").write_bytes(who[0])
            write_private(name.with_suffix(".key"), who[1])
            context = self.tls(name.with_suffix(".pem"), name.with_suffix(".key"))
        else:
            context = self.tls(who.certificate, who.key_file) if who is not None else self.tls()
        pool = urllib3.PoolManager(ssl_context=context, retries=False, timeout=20.0)
        self.pools.append(pool)
        return Client(self.url, pool)

    def user(self, name: str = "ada") -> "Client":
        return self.client(self.pki.issue_user(name, now_wall=time.time()))

    def run(self, number: int = 1, **fields: Any) -> Run:
        """A run in the store, running under epoch "e1"."""
        row = Run(
            run=run_id(number.to_bytes(16, "big")), state="running", epoch="e1", created_wall=time.time(), **fields
        )
        self.do(lambda tx, now, out: tx.put(row))
        return row

    def runner(self, run: RunId) -> "Client":
        return self.client(self.pki.issue_runner(run, now_wall=time.time()))

    def stored(self, data: bytes) -> BlockList:
        """Make a blob, as if it had been uploaded."""
        blocks, folder = blocks_of([data]), self.services.blobs
        folder.begin(blocks.digest, blocks.size, blocks.digests)
        for at in range(0, len(data), 1 << 18):
            folder.append(blocks.digest, at, data[at : at + (1 << 18)])
        row = Blob(digest=blocks.digest, size=blocks.size, file=folder.complete(blocks.digest))
        self.do(lambda tx, now, out: tx.put(row))
        return blocks

    def grant(self, method: str, blocks: BlockList, agent: AgentId, *, expires_in_s: float = 600.0) -> Grant:
        blob, run = BlobRef(blocks.digest, blocks.size), run_id(bytes(16))
        if method == "PUT":
            self.do(
                lambda tx, now, out: tx.put(
                    Run(run=run, state="running"), Exchange(run=run, n=1, expected=99, deadline_at=1e9),
                    Task(run=run, n=1, agent=agent, state=TaskState.PUBLISHED),
                )
            )  # fmt: skip
        proof = self.services.capabilities.grant(
            method=method, blob=blob, agent=agent, run=run, n=1, expires_wall=time.time() + expires_in_s
        )
        return Grant(blob, f"/v1/{'blobs' if method == 'GET' else 'uploads'}/{blocks.digest}", proof)


@dataclass
class Client:
    """Somebody who asks."""

    url: str
    pool: urllib3.PoolManager

    def ask(
        self, method: str, path: str, body: Any = None, *, data: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        headers = dict(headers or {})
        if body is not None:
            data = json.dumps(body)
            headers["Content-Type"] = "application/json"
        answer = self.pool.request(method, self.url + path, body=data, headers=headers)
        return Answer(answer.status, answer.data, answer.headers)


@contextlib.contextmanager
def running_api(
    folder: Path, *, pki: Pki | None = None, store: Store | None = None, port: int = 0, at_once: int = 16,
    quota_bytes: int = 1 << 40, wait_s: float = 5.0,
) -> Iterator[Api]:  # fmt: skip
    folder.mkdir(exist_ok=True)
    pki = pki or Pki.create(folder / "pki", now_wall=time.time())
    chain, key = pki.issue_service("api", ["127.0.0.1", "localhost"], now_wall=time.time())
    (folder / "api.pem").write_bytes(chain)
    write_private(folder / "api.key", key)
    started = threading.Event()
    made: list[Api] = []
    failed: list[BaseException] = []
    done = asyncio.Event()

    async def serve() -> None:
        engine = Engine(store or MemoryStore())
        blobs = BlobFolder(folder / "blobs", quota_bytes=quota_bytes)
        capabilities = Capabilities(pki.capability_key)
        services = Services(
            engine=engine, exchanges=Exchanges(capabilities), blobs=blobs, capabilities=capabilities, pki=pki,
            uploads=Uploads(blobs, Admission(at_once=at_once, wait_s=wait_s)),
            addresses=Addresses("127.0.0.1:8883", "https://127.0.0.1:8443"),
        )  # fmt: skip
        tls = tls_context(
            chain=folder / "api.pem", key=folder / "api.key", client_cas_pem=[pki.ca_pem(name) for name in CAS]
        )
        server = ApiServer(build_app(services), host="127.0.0.1", port=port, tls=tls, stopping=services.stopping)
        await server.start()
        made.append(Api(folder, pki, services, server, asyncio.get_running_loop()))
        started.set()
        await done.wait()
        await server.stop()
        await engine.close()
        services.uploads.close()
        blobs.close()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve())
        except BaseException as error:
            failed.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="api")
    thread.start()
    started.wait(20)
    if not made:
        thread.join()
        raise failed[0]
    try:
        yield made[0]
    finally:
        made[0].loop.call_soon_threadsafe(done.set)
        thread.join(30)
        for pool in made[0].pools:
            pool.clear()
        if failed:
            raise failed[0]
