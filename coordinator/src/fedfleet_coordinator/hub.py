"""The coordinator as a whole: makes the parts, starts them in order, and stops them in the reverse one.

This is the composition root of the service: nothing here decides anything, it only says who talks to whom.
"""

import asyncio
import contextlib
import logging
import os
import signal
import ssl
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedfleet_coordinator import broker, enrolment, fleet, garbage, restored, runs
from fedfleet_coordinator.api.app import build_app
from fedfleet_coordinator.api.reservations import TaskKey
from fedfleet_coordinator.api.server import ApiServer, tls_context
from fedfleet_coordinator.api.services import Services
from fedfleet_coordinator.api.uploads import Uploads
from fedfleet_coordinator.blobs import BlobFolder
from fedfleet_coordinator.broker import BrokerFiles
from fedfleet_coordinator.capabilities import Capabilities
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.engine import Engine
from fedfleet_coordinator.enrolment import Addresses
from fedfleet_coordinator.errors import Misconfigured, StoreUnavailable
from fedfleet_coordinator.exchanges import Exchanges, Limits
from fedfleet_coordinator.launcher import Launcher
from fedfleet_coordinator.link import Link
from fedfleet_coordinator.managed import Reviewer
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.pki import CAS, Pki, client_context, write_private
from fedfleet_coordinator.rows import Agent, Blob, UpTime
from fedfleet_coordinator.settings import Settings, load, spell
from fedfleet_coordinator.store.port import Tx
from fedfleet_coordinator.store.sql import SqlStore
from fedfleet_protocol.ids import AgentId, RunId
from fedfleet_protocol.messages import Decline, FromAgent, Log, Presence, Progress, Reply, Status

_TICK_S = 0.25
_UPTIME_S = 5.0
_GARBAGE_S = 30.0
_SWEEP_S = 3600.0
_ABANDONED_S = 24 * 3600.0
_log = logging.getLogger(__name__)


def init(state: Path, settings: Settings, *, user: str = "admin") -> Path:
    """Make a coordinator's state folder: authorities, broker files, a first user; return that user's context file.

    Raises:
        Misconfigured: the folder holds a coordinator already.
    """
    if (state / "hub.toml").exists():
        raise Misconfigured(f"{state} holds a coordinator already; it is never overwritten")
    now = time.time()
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    pki = Pki.create(state / "pki", now_wall=now)
    _broker_files(state, settings).write(pki, list(settings.hosts), [], now)
    context = add_user(state, pki, settings, user, now)
    write_private(state / "hub.toml", spell(settings).encode())
    return context


def add_user(state: Path, pki: Pki, settings: Settings, user: str, now_wall: float) -> Path:
    """Make certificate, publisher key and context file of a person; return the context file."""
    folder = state / "users" / user
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    certificate, key = pki.issue_user(user, now_wall=now_wall)
    publisher = Ed25519PrivateKey.generate()
    write_private(folder / "user.pem", certificate)
    write_private(folder / "user.key", key)
    write_private(folder / "ca.pem", pki.ca_pem("services").encode())
    pem = publisher.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(folder / "publisher.pem", pem)
    write_private(folder / "publisher.pub", (publisher.public_key().public_bytes_raw().hex() + "\n").encode())
    lines = [f'url = "{settings.api.url}"', 'ca = "ca.pem"', 'cert = "user.pem"', 'key = "user.key"']
    write_private(folder / "context.toml", "\n".join([*lines, 'publisher_key = "publisher.pem"', ""]).encode())
    return folder / "context.toml"


class Hub:
    """One coordinator, serving.

    Args:
        state: its folder, made by `init`.
        restored: its store came back from a backup; see `restored`.

    Raises:
        Misconfigured: something in the folder cannot be used.
    """

    def __init__(self, state: Path, *, restored: bool = False) -> None:
        self._state, self._restored = state, restored
        self._settings = load(state)
        self._pki = Pki.load(state / "pki")
        self._keys: dict[AgentId, tuple[Ed25519PublicKey, ...]] = {}
        self._silencing: set[asyncio.Task[None]] = set()
        self._broker_lock = asyncio.Lock()

    async def serve(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            _log.info("serving", extra={"url": self._settings.api.url, "broker": self._settings.broker.address})
            await stop.wait()
            _log.info("stopping")

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        settings, state = self._settings, self._state
        store = SqlStore(settings.store.url or f"sqlite:///{state / 'hub.sqlite'}")
        stack.callback(store.close)
        await asyncio.to_thread(store.migrate)
        engine = Engine(store, settle_s=settings.exchange.settle_s)
        stack.push_async_callback(engine.close)
        capabilities = Capabilities(self._pki.capability_key)
        limits = Limits(lease_s=settings.exchange.lease_s, max_reply_bytes=int(settings.exchange.max_reply_mb * 1e6))
        exchanges = Exchanges(capabilities, limits)
        blobs = BlobFolder(state / "blobs", quota_bytes=int(settings.blobs.quota_mb * 1e6))
        stack.callback(blobs.close)
        uploads = Uploads(blobs)
        stack.callback(uploads.close)
        self._engine, self._exchanges, self._blobs, self._uploads = engine, exchanges, blobs, uploads
        if self._restored:
            await engine.do(self._recover_restored)
        await engine.do(self._recover)
        await self._sweep()
        await self._write_revoked()
        launcher = Launcher(
            engine=engine, exchanges=exchanges, credentials=_Credentials(self._pki), folder=state / "runners",
            url=settings.api.url, blob_path=blobs.path, confined=settings.runner.sandbox,
            readable=settings.runner.readable, writable=settings.runner.writable,
            memory_bytes=int(settings.runner.memory_mb * 1e6), file_bytes=int(settings.runner.file_mb * 1e6),
        )  # fmt: skip
        link = self._link()
        services = Services(
            engine=engine, exchanges=exchanges, blobs=blobs, uploads=uploads, capabilities=capabilities,
            pki=self._pki, addresses=Addresses(settings.broker.address, settings.api.url), on_submit=launcher.wake,
            reviewer=self._reviewer(), on_revoke=self._revoked,
            ready=lambda: "" if link.ready.is_set() else "the MQTT broker cannot be reached",
        )  # fmt: skip
        api = ApiServer(
            build_app(services), host=settings.api.host, port=settings.api.port, tls=self._api_tls(),
            stopping=services.stopping,
        )  # fmt: skip
        await api.start()
        stack.push_async_callback(api.stop)
        engine.publish = link.publish
        await link.start()
        stack.push_async_callback(link.close)
        for work in (self._tick, self._write_uptime, self._collect, launcher.follow):
            self._keep(stack, work)
        stack.push_async_callback(launcher.close)

    def _keep(self, stack: contextlib.AsyncExitStack, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` until the end; what it raises is logged and it begins again."""

        async def forever() -> None:
            while True:
                try:
                    await work()
                except StoreUnavailable as error:
                    _log.error("%s", error)
                except Exception:  # a bug of ours must not silently end deadlines, garbage collection or launches
                    _log.exception("a part of the coordinator failed; it begins again")
                await asyncio.sleep(1.0)

        task = asyncio.create_task(forever())

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        stack.push_async_callback(end)

    # --- what goes on by itself --------------------------------------------------------------------------------------

    def _recover(self, tx: Tx, now: Now, out: Outbox) -> None:
        fleet.forget_presence(tx, now)
        self._exchanges.recover(tx, now)

    def _recover_restored(self, tx: Tx, now: Now, out: Outbox) -> None:
        revoked = _broker_files(self._state, self._settings).revoked_serials()
        here = {entry.name for entry in os.scandir(self._blobs.folder)}
        restored.recover(tx, lambda blob: blob.file in here, revoked, self._exchanges, now, out)

    async def _sweep(self) -> None:
        """Remove files that no row names, and uploads that nobody went on with for a day."""
        named = await self._engine.do(lambda tx, now, out: {blob.file for blob in tx.find(Blob, inline=None)})
        gone = await asyncio.to_thread(self._blobs.sweep, named, older_than_s=_ABANDONED_S)
        if gone:
            _log.info("removed %d files that no row names", gone)

    async def _tick(self) -> None:
        while True:
            await self._engine.do(self._exchanges.tick)
            await asyncio.sleep(_TICK_S)

    async def _write_uptime(self) -> None:
        while True:
            await self._engine.do(lambda tx, now, out: tx.put(UpTime(uptime_s=now.up)))
            await asyncio.sleep(_UPTIME_S)

    async def _collect(self) -> None:
        swept_at = time.monotonic()
        while True:
            await asyncio.sleep(_GARBAGE_S)
            await self._engine.do(self._collect_once)
            await self._uploads.settle(self._awaited)
            if time.monotonic() - swept_at > _SWEEP_S:
                swept_at = time.monotonic()
                await self._sweep()

    async def _awaited(self, tasks: Collection[TaskKey]) -> list[TaskKey]:
        return await self._engine.do(lambda tx, now, out: [task for task in tasks if self._exchanges.awaits(tx, *task)])

    def _collect_once(self, tx: Tx, now: Now, out: Outbox) -> None:
        for name in garbage.collect(tx, now, self._settings.blobs.grace_s):
            out.after_commit(lambda name=name: self._blobs.unlink(name))  # type: ignore[misc]

    # --- agents ------------------------------------------------------------------------------------------------------

    def _link(self) -> Link:
        folder, now = self._state / "broker", time.time()
        chain, key = self._pki.issue_service(broker.SERVICE, ["localhost"], now_wall=now)
        write_private(folder / "coordinator.pem", key + chain)
        tls = client_context(self._pki.ca_pem("services"), folder / "coordinator.pem")
        return Link(
            name=broker.SERVICE, host="127.0.0.1", port=self._settings.broker.service_port, tls=tls,
            order_key=self._pki.order_key, keys=self._keys_of, handler=self._heard,
            forget=lambda agent: self._keys.pop(agent, None),
        )  # fmt: skip

    async def _keys_of(self, agent: AgentId) -> tuple[Ed25519PublicKey, ...]:
        if agent not in self._keys:
            self._keys[agent] = await self._engine.do(lambda tx, now, out: enrolment.keys_of(tx, agent))
            asyncio.get_running_loop().call_later(60.0, self._keys.pop, agent, None)
        return self._keys[agent]

    async def _heard(self, agent: AgentId, message: FromAgent) -> None:
        await self._engine.do(lambda tx, now, out: self._take(tx, agent, message, now, out))

    def _take(self, tx: Tx, agent: AgentId, message: FromAgent, now: Now, out: Outbox) -> None:
        match message:
            case Reply():
                self._exchanges.reply(tx, agent, message, now, out)
            case Decline():
                self._exchanges.decline(tx, agent, message, now, out)
            case Progress():
                self._exchanges.progress(tx, agent, message, now, out)
            case Presence():
                fleet.presence(tx, agent, message, now, out)
            case Status():
                fleet.status(tx, agent, message, now, out)
            case Log():
                runs.device_log(tx, agent, message, now, out)

    def _revoked(self, agent: AgentId) -> None:
        """Silence a revoked agent at the broker."""
        self._keys.pop(agent, None)
        task = asyncio.create_task(self._silence(agent))
        self._silencing.add(task)
        task.add_done_callback(self._silenced)

    def _silenced(self, task: asyncio.Task[None]) -> None:
        self._silencing.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a revocation did not reach the broker; it does at the next start", exc_info=task.exception())

    async def _silence(self, agent: AgentId) -> None:
        if await self._write_revoked():
            await asyncio.sleep(0.2)  # the broker reads its files first
            port, folder = self._settings.broker.port, self._state / "broker"
            await asyncio.to_thread(broker.take_over, self._pki, agent, port=port, folder=folder, now_wall=time.time())

    async def _write_revoked(self) -> bool:
        """Write who is revoked into the broker's files, one after the other; return whether a broker was told.

        Done at each start as well: a hub that was killed between a revocation's commit and this forgets nobody.
        """
        async with self._broker_lock:
            rows = await self._engine.do(lambda tx, now, out: tx.find(Agent, state="revoked"))
            files = _broker_files(self._state, self._settings)
            revoked = [(row.agent, row.serials) for row in rows]
            await asyncio.to_thread(files.write_revoked, self._pki, revoked, time.time())
            told = broker.reload(files.folder)
            if not told and rows:
                _log.warning("no broker runs on %s to be told who is revoked", files.folder)
            return told

    def _reviewer(self) -> Reviewer | None:
        """Give the operator its certificate, and return who knows runners' tokens; None outside of clusters."""
        if not self._settings.kubernetes.enabled:
            return None
        from fedfleet_coordinator.operator.tokens import token_reviews

        folder = self._state / "operator"
        folder.mkdir(mode=0o700, exist_ok=True)
        chain, key = self._pki.issue_service("operator", ["operator"], now_wall=time.time())
        write_private(folder / "operator.key", key)
        write_private(folder / "ca.pem", self._pki.ca_pem("services").encode())
        write_private(folder / "operator.pem", chain)
        return token_reviews()

    def _api_tls(self) -> ssl.SSLContext:
        folder, now = self._state / "pki", time.time()
        chain, key = self._pki.issue_service("api", self._settings.hosts, now_wall=now)
        write_private(folder / "api.pem", chain)
        write_private(folder / "api.key", key)
        cas = [self._pki.ca_pem(name) for name in CAS]
        return tls_context(chain=folder / "api.pem", key=folder / "api.key", client_cas_pem=cas)


class _Credentials:
    """What runners prove their runs with."""

    def __init__(self, pki: Pki) -> None:
        self._pki = pki

    def runner_files(self, run: RunId) -> dict[str, bytes]:
        """Return certificate, key and whom to believe."""
        certificate, key = self._pki.issue_runner(run, now_wall=time.time())
        return {"runner.pem": certificate, "runner.key": key, "ca.pem": self._pki.ca_pem("services").encode()}


def prepare_broker(state: Path) -> Path:
    """Give the broker its ports as they are set now, and a certificate for another year; return its files' folder.

    Raises:
        Misconfigured: `state` is no coordinator's state folder.
    """
    settings = load(state)
    files = _broker_files(state, settings)
    files.write_certificate(Pki.load(state / "pki"), list(settings.hosts), time.time())
    files.write_configuration()
    return files.folder


def _broker_files(state: Path, settings: Settings) -> BrokerFiles:
    broker_settings = settings.broker
    return BrokerFiles(
        state / "broker", agents_host=broker_settings.host, agents_port=broker_settings.port,
        service_port=broker_settings.service_port,
    )  # fmt: skip
