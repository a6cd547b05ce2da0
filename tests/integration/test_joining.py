"""A device joins and renews over real HTTPS, and believes nobody but the hub that its token names."""

import asyncio
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fedfleet_agent import enrol, identity
from fedfleet_agent.errors import AlreadyEnrolled, HubRefused, HubUnreachable, NotEnrolled
from fedfleet_coordinator import enrolment
from fedfleet_coordinator.api.app import build_app
from fedfleet_coordinator.api.server import ApiServer, tls_context
from fedfleet_coordinator.api.services import Services
from fedfleet_coordinator.api.uploads import Uploads
from fedfleet_coordinator.blobs import BlobFolder
from fedfleet_coordinator.capabilities import Capabilities
from fedfleet_coordinator.engine import Engine
from fedfleet_coordinator.enrolment import Addresses
from fedfleet_coordinator.exchanges import Exchanges, Limits
from fedfleet_coordinator.pki import CAS, Pki, write_private
from fedfleet_coordinator.rows import Agent, Token
from fedfleet_coordinator.store.memory import MemoryStore
from fedfleet_protocol.messages import Enrol, Identity
from fedfleet_protocol.trust import JoinToken
from tests.broker_fixture import free_port

pytestmark = pytest.mark.integration


@dataclass
class Door:
    """A hub's API, and its store."""

    services: Services
    port: int

    @property
    def pki(self) -> Pki:
        return self.services.pki

    async def token(self, *, uses: int = 1, lifetime_s: float = 60.0) -> JoinToken:
        return await self.services.engine.do(
            lambda tx, now, out: enrolment.create_token(
                tx,
                self.pki,
                self.services.addresses,
                labels={},
                uses=uses,
                lifetime_s=lifetime_s,
                secret=os.urandom(32),
                created_by="ada",
                now=now,
            )
        )

    async def agents(self) -> list[Agent]:
        return await self.services.engine.do(lambda tx, now, out: tx.find(Agent))

    async def uses_left(self, token: JoinToken) -> int:
        row = await self.services.engine.do(lambda tx, now, out: tx.get(Token, token.hashed))
        assert row is not None
        return row.uses_left


@asynccontextmanager
async def door(folder: Path, *, pki: Pki | None = None, port: int | None = None) -> AsyncIterator[Door]:
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    pki, port = pki or Pki.create(folder / "pki", now_wall=time.time()), port or free_port()
    chain, key = pki.issue_service("api", ["127.0.0.1"], now_wall=time.time())
    write_private(folder / "api.pem", chain)
    write_private(folder / "api.key", key)
    engine, blobs = Engine(MemoryStore()), BlobFolder(folder / "blobs", quota_bytes=1 << 20)
    capabilities = Capabilities(pki.capability_key)
    services = Services(
        engine=engine, exchanges=Exchanges(capabilities, Limits()), blobs=blobs, uploads=Uploads(blobs),
        capabilities=capabilities, pki=pki, addresses=Addresses("127.0.0.1:1", f"https://127.0.0.1:{port}"),
    )  # fmt: skip
    tls = tls_context(
        chain=folder / "api.pem", key=folder / "api.key", client_cas_pem=[pki.ca_pem(name) for name in CAS]
    )
    server = ApiServer(build_app(services), host="127.0.0.1", port=port, tls=tls)
    await server.start()
    try:
        yield Door(services, port)
    finally:
        await server.stop()
        await engine.close()
        blobs.close()


def play(folder: Path, story: Callable[[Door], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with door(folder / "hub") as opened:
            await story(opened)

    asyncio.run(whole())


async def join(token: JoinToken, folder: Path) -> str:
    return await asyncio.to_thread(enrol.join, token, folder)


def test_device_joins_and_keeps_its_key_to_itself(tmp_path: Path) -> None:
    async def story(hub: Door) -> None:
        agent = await join(await hub.token(), tmp_path / "device")
        known = identity.load(tmp_path / "device")
        (row,) = await hub.agents()
        assert agent == known.agent == row.agent
        assert known.order_key.public_bytes_raw() == hub.pki.order_public
        assert known.renew_at_wall == pytest.approx(time.time() + 7 * 86_400 * 2 / 3, abs=3600)
        assert (tmp_path / "device" / "identity.pem").stat().st_mode & 0o777 == 0o600
        assert not (tmp_path / "device" / "pending.pem").exists()
        known.tls_context()
        with pytest.raises(AlreadyEnrolled):
            await join(await hub.token(), tmp_path / "device")

    play(tmp_path, story)


def test_device_that_died_before_the_answer_joins_again_as_the_same_agent(tmp_path: Path) -> None:
    async def story(hub: Door) -> None:
        token, folder = await hub.token(), tmp_path / "device"
        folder.mkdir()
        key = identity.pending_key(folder, None)  # as far as it came: the key is there, the answer was lost
        request = enrol.request_for(key)
        told = await hub.services.engine.do(
            lambda tx, now, out: enrolment.enrol(
                tx,
                Enrol(token=token.spell(), csr_pem=request),
                hub.pki,
                hub.services.addresses,
                entropy=bytes(16),
                now=now,
            )
        )
        assert await join(token, folder) == told.agent
        assert len(await hub.agents()) == 1 and await hub.uses_left(token) == 0

    play(tmp_path, story)


def test_fifty_devices_with_one_use_make_one_agent(tmp_path: Path) -> None:
    async def story(hub: Door) -> None:
        token = await hub.token()
        tries = [join(token, tmp_path / f"device-{i}") for i in range(50)]
        done = await asyncio.gather(*tries, return_exceptions=True)
        assert len([one for one in done if isinstance(one, str)]) == 1
        assert all("used up" in str(one) for one in done if isinstance(one, HubRefused))
        assert len(await hub.agents()) == 1

    play(tmp_path, story)


def test_expired_and_guessed_tokens_are_refused_in_words(tmp_path: Path) -> None:
    async def story(hub: Door) -> None:
        with pytest.raises(HubRefused, match="expired"):
            await join(await hub.token(lifetime_s=-1.0), tmp_path / "device")
        good = await hub.token()
        guessed = JoinToken(good.url, good.ca_fingerprint, os.urandom(32))
        with pytest.raises(HubRefused, match="did not make this join token"):
            await join(guessed, tmp_path / "device")
        with pytest.raises(NotEnrolled):
            identity.load(tmp_path / "device")

    play(tmp_path, story)


def test_hub_with_another_fingerprint_never_sees_the_secret(tmp_path: Path) -> None:
    async def story(hub: Door) -> None:
        token = await hub.token()
        liar = JoinToken(token.url, "0" * 64, token.secret)
        with pytest.raises(HubRefused, match="another fingerprint"):
            await join(liar, tmp_path / "device")
        assert not (tmp_path / "device").exists() and await hub.agents() == []

    play(tmp_path, story)


def test_somebody_in_between_who_shows_the_right_ca_has_no_key_of_it(tmp_path: Path) -> None:
    """The CA's certificate is public: a liar can show it, but not serve TLS under it."""

    async def story(hub: Door) -> None:
        token = await hub.token()
        liar_pki = Pki.create(tmp_path / "liar-pki", now_wall=time.time())
        right_ca = hub.pki.ca_pem("services")
        async with door(tmp_path / "liar", pki=liar_pki) as liar:
            liar_pki.ca_pem = lambda name: right_ca  # type: ignore[method-assign]
            aimed = JoinToken(f"https://127.0.0.1:{liar.port}", token.ca_fingerprint, token.secret)
            with pytest.raises(HubRefused, match="TLS"):
                await join(aimed, tmp_path / "device")
            assert await liar.agents() == []

    play(tmp_path, story)


def test_renewal_brings_a_new_key_and_the_old_certificate_cannot_renew_again(tmp_path: Path) -> None:
    async def story(hub: Door) -> None:
        folder = tmp_path / "device"
        agent = await join(await hub.token(), folder)
        before, old_pem = identity.load(folder), (folder / "identity.pem").read_bytes()
        after = await asyncio.to_thread(enrol.renew, before)
        assert after.agent == agent and after.key.public_key() != before.key.public_key()
        key = load_pem_private_key((folder / "identity.pem").read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((folder / "identity.pem").read_bytes())
        assert isinstance(key, Ed25519PrivateKey) and certificate.public_key() == key.public_key()
        again = await asyncio.to_thread(enrol.renew, after)
        assert again.key.public_key() != after.key.public_key()
        thief = tmp_path / "thief"
        thief.mkdir()
        for file in folder.iterdir():
            identity.write_file(thief / file.name, file.read_bytes())
        identity.write_file(thief / "identity.pem", old_pem)
        with pytest.raises(HubRefused, match="replaced"):
            await asyncio.to_thread(enrol.renew, identity.load(thief))

    play(tmp_path, story)


def test_renewal_whose_answer_was_lost_goes_on_with_the_same_key(tmp_path: Path) -> None:
    async def story(hub: Door) -> None:
        # As if the power had failed before the answer was written down: the files are those from before.
        folder = tmp_path / "device"
        await join(await hub.token(), folder)
        old = {file.name: file.read_bytes() for file in folder.iterdir()}
        before = identity.load(folder)
        first = await asyncio.to_thread(enrol.renew, before)
        lost = (folder / "identity.pem").read_bytes()
        for name, data in old.items():
            identity.write_file(folder / name, data)
        identity.write_file(folder / "pending.pem", lost)
        second = await asyncio.to_thread(enrol.renew, before)
        assert second.key.public_key() == first.key.public_key()
        assert len(await hub.agents()) == 1

    play(tmp_path, story)


def test_revoked_agent_cannot_renew(tmp_path: Path) -> None:
    async def story(hub: Door) -> None:
        await join(await hub.token(), tmp_path / "device")
        known = identity.load(tmp_path / "device")
        await hub.services.engine.do(
            lambda tx, now, out: enrolment.revoke(tx, known.agent, hub.services.exchanges, now, out)
        )
        with pytest.raises(HubRefused, match="revoked"):
            await asyncio.to_thread(enrol.renew, known)

    play(tmp_path, story)


def test_hub_that_is_not_there_is_told_as_such(tmp_path: Path) -> None:
    token = JoinToken(f"https://127.0.0.1:{free_port()}", "0" * 64, bytes(32))
    with pytest.raises(HubUnreachable, match="cannot be reached"):
        enrol.join(token, tmp_path / "device")


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda folder: (folder / "identity.pem").chmod(0o644), "read by others"),
        (lambda folder: (folder / "identity.pem").write_bytes(b""), "damaged"),
        (lambda folder: (folder / "identity.json").write_bytes(b"{}"), "damaged"),
        (lambda folder: (folder / "order.pub").unlink(), "damaged"),
    ],
)
def test_damaged_identity_is_told_in_words(tmp_path: Path, damage: Callable[[Path], object], match: str) -> None:
    async def story(hub: Door) -> None:
        await join(await hub.token(), tmp_path / "device")
        damage(tmp_path / "device")
        with pytest.raises(NotEnrolled, match=match):
            identity.load(tmp_path / "device")

    play(tmp_path, story)


def test_answer_for_another_key_is_refused(tmp_path: Path) -> None:
    async def story(hub: Door) -> None:
        folder = tmp_path / "device"
        await join(await hub.token(), folder)
        pem = (folder / "identity.pem").read_text()
        told = Identity(
            agent=identity.load(folder).agent,
            certificate_pem=pem[pem.index("-----BEGIN CERTIFICATE") :],
            services_ca_pem=hub.pki.ca_pem("services"),
            broker="h:1",
            data_url="https://h:1",
            order_key=hub.pki.order_public,
        )
        key = identity.load(folder).key
        for wrong in (
            {"services_ca_pem": "no"}, {"broker": "h"}, {"data_url": "http://h"}, {"order_key": b"1"}, {"agent": "a"},
            {"certificate_pem": ""},
        ):  # fmt: skip
            with pytest.raises(HubRefused):
                identity.store(folder, msgspec.structs.replace(told, **wrong), key, first=False)
        with pytest.raises(HubRefused, match="key and name"):
            identity.store(folder, told, Ed25519PrivateKey.generate(), first=False)
        assert (folder / "identity.pem").read_text() == pem

    play(tmp_path, story)


def test_server_of_tls_1_2_is_not_spoken_to(tmp_path: Path) -> None:
    pki = Pki.create(tmp_path / "pki", now_wall=time.time())
    assert identity.trusting(pki.ca_pem("services")).minimum_version == ssl.TLSVersion.TLSv1_3
