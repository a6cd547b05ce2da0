"""Both links over a real mosquitto with real certificates: who hears what, and what survives what."""

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedfleet_agent.identity import Credentials
from fedfleet_coordinator import link
from fedfleet_coordinator.broker import SERVICE, reload, take_over
from fedfleet_coordinator.errors import StoreUnavailable
from fedfleet_coordinator.link import Handler, Link
from fedfleet_coordinator.pki import Pki
from fedfleet_protocol import messages, topics
from fedfleet_protocol.ids import AgentId, RunId, agent_id
from fedfleet_protocol.messages import FromAgent, Log, Over, Presence, Progress, Status
from fedfleet_protocol.trust import HUB, seal
from tests.broker_fixture import Desk, Ear, Site, running_broker

pytestmark = pytest.mark.integration


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with running_broker(tmp_path) as site:
        yield site


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.close()


class Hub:
    """A coordinator's link and what it heard."""

    def __init__(self, site: Site, *devices: Credentials, handler: Handler | None = None) -> None:
        self.heard: list[tuple[AgentId, FromAgent]] = []
        self.keys: dict[AgentId, tuple[Ed25519PublicKey, ...]] = {
            device.agent: (device.key.public_key(),) for device in devices
        }
        self.asked = 0
        self.link = Link(
            name=SERVICE, host="127.0.0.1", port=site.files.service_port, tls=site.service_tls(),
            order_key=site.pki.order_key, keys=self._keys, handler=handler or self._hear,
        )  # fmt: skip

    async def _keys(self, agent: AgentId) -> tuple[Ed25519PublicKey, ...]:
        self.asked += 1
        return self.keys.get(agent, ())

    async def _hear(self, agent: AgentId, message: FromAgent) -> None:
        self.heard.append((agent, message))

    def of(self, kind: type[FromAgent]) -> list[FromAgent]:
        return [message for _, message in self.heard if isinstance(message, kind)]

    async def __aenter__(self) -> Self:
        await self.link.start()
        await asyncio.wait_for(self.link.ready.wait(), 10)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.link.close()


async def until(desk: Desk, seen: Callable[[], object], timeout_s: float = 10.0) -> bool:
    """Turn both loops until `seen()`."""
    ends_at = time.monotonic() + timeout_s
    while not seen():
        if time.monotonic() > ends_at:
            return False
        desk.turn(0.0)
        await asyncio.sleep(0.002)
    return True


def over(number: int) -> Over:
    return Over(run=RunId(f"r-{number}"))


# --- the ordinary -------------------------------------------------------------------------------------------------


async def both_ways(site: Site, desk: Desk) -> None:
    device = site.device(1)
    async with Hub(site, device) as hub:
        ear = Ear(desk, device)
        assert await until(desk, lambda: ear.link.up and hub.of(Presence))
        assert hub.heard[0] == (device.agent, Presence(online=True))
        hub.link.publish([(device.agent, over(1))])
        assert ear.link.publish(Status(version="1"))
        assert await until(desk, lambda: ear.heard and hub.of(Status))
        assert ear.heard == [over(1)]
        ear.link.close()
        assert await until(desk, lambda: len(hub.of(Presence)) == 2)
        assert hub.heard[-1] == (device.agent, Presence(online=False))


def test_order_and_answer_arrive_and_presence_is_known(site: Site, desk: Desk) -> None:
    asyncio.run(both_ways(site, desk))


async def several_in_one_record(site: Site, desk: Desk) -> None:
    """Many small messages share a TLS record: what is decrypted already must be read without a new wake-up."""
    device = site.device(1)
    async with Hub(site, device) as hub:
        ear = Ear(desk, device)
        assert await until(desk, lambda: ear.link.up)
        hub.link.publish([(device.agent, over(i)) for i in range(500)])
        for i in range(500):
            ear.link.publish(Progress(n=i))
        assert await until(desk, lambda: len(ear.heard) == 500 and len(hub.of(Progress)) == 500)
        assert [m.n for m in hub.of(Progress) if isinstance(m, Progress)] == list(range(500))
        assert ear.heard == [over(i) for i in range(500)]


def test_five_hundred_messages_each_way_arrive_in_order(site: Site, desk: Desk) -> None:
    asyncio.run(several_in_one_record(site, desk))


async def thousand(site: Site, desk: Desk) -> float:
    devices = [site.device(1)]
    async with Hub(site, *devices) as hub:
        ear = Ear(desk, devices[0])
        assert await until(desk, lambda: ear.link.up)
        # A thousand agents' worth of envelopes, published by the one name that may write everywhere.
        me = devices[0]
        for i in range(2, 1002):
            name = agent_id(i.to_bytes(16, "big"))
            hub.keys[name] = (me.key.public_key(),)
            data = seal(me.key, messages.encode(Status(version="x" * 400)), sender=name, to=HUB)
            hub.link._client.publish(topics.up(name), data, qos=1)
        begins = time.perf_counter()
        assert await until(desk, lambda: len(hub.of(Status)) == 1000)
        return time.perf_counter() - begins


def test_thousand_agents_messages_are_taken_in_a_second(site: Site, desk: Desk) -> None:
    took = asyncio.run(thousand(site, desk))
    assert took < 3.0  # 0.5 s on an idle machine; this one is shared


# --- who may what ---------------------------------------------------------------------------------------------------


async def foreign_topics(site: Site, desk: Desk) -> None:
    mallory, victim = site.device(1), site.device(2)
    async with Hub(site, mallory, victim) as hub:
        bad, good = Ear(desk, mallory), Ear(desk, victim)
        assert await until(desk, lambda: len(hub.of(Presence)) == 2)
        raw: list[str] = []
        client = bad.link._client
        client.on_message = lambda c, u, m: raw.append(m.topic)
        client.subscribe(
            [(topics.down(victim.agent), 1), ("#", 1), (topics.ALL_UP, 1), (topics.PROBE, 1), ("$SYS/#", 1)]
        )
        sealed = seal(mallory.key, messages.encode(Status(version="evil")), sender=victim.agent, to=HUB)
        for topic in (topics.up(victim.agent), topics.presence(victim.agent), topics.down(victim.agent), topics.PROBE):
            client.publish(topic, sealed, qos=1, retain=True)
        before = len(hub.heard)
        hub.link.publish([(victim.agent, over(1))])
        good.link.publish(Status(version="good"))
        assert await until(desk, lambda: good.heard and hub.of(Status))
        await until(desk, lambda: False, 0.5)
        assert [m for _, m in hub.heard[before:]] == [Status(version="good")]
        assert raw == [] and hub.link.dropped == 0 and good.link.dropped == 0


def test_agent_can_neither_read_nor_write_foreign_topics(site: Site, desk: Desk) -> None:
    asyncio.run(foreign_topics(site, desk))


async def in_anothers_name(site: Site, desk: Desk) -> None:
    mallory, victim = site.device(1), site.device(2)
    async with Hub(site, mallory, victim) as hub:
        bad = Ear(desk, mallory)
        assert await until(desk, lambda: bad.link.up)
        body = messages.encode(Status(version="evil"))
        for data in (
            seal(mallory.key, body, sender=victim.agent, to=HUB),  # as the victim, in an own topic
            seal(victim.key, body, sender=mallory.agent, to=HUB),  # with another's key
            seal(mallory.key, body, sender=mallory.agent, to=victim.agent),  # for somebody else
            seal(mallory.key, messages.encode(over(1)), sender=mallory.agent, to=HUB),  # what only a hub says
            b"", b"\xc1", b"x" * 300_000,
        ):  # fmt: skip
            bad.link._client.publish(topics.up(mallory.agent), data, qos=1)
        bad.link.publish(Status(version="honest"))
        assert await until(desk, lambda: hub.of(Status))
        assert hub.of(Status) == [Status(version="honest")] and hub.link.dropped == 7


def test_envelope_in_another_agents_name_is_let_go_and_the_link_goes_on(site: Site, desk: Desk) -> None:
    asyncio.run(in_anothers_name(site, desk))


async def forged_order(site: Site, desk: Desk, other: Pki) -> None:
    device = site.device(1)
    async with Hub(site, device) as hub:
        ear = Ear(desk, device)
        assert await until(desk, lambda: ear.link.up)
        down, body = topics.down(device.agent), messages.encode(over(1))
        for data in (
            seal(other.order_key, body, sender=HUB, to=device.agent),
            seal(site.pki.order_key, body, sender=HUB, to=agent_id(bytes(16))),
            seal(site.pki.order_key, messages.encode(Status()), sender=HUB, to=device.agent),
            b"garbage",
        ):
            hub.link._client.publish(down, data, qos=1)
        hub.link.publish([(device.agent, over(2))])
        assert await until(desk, lambda: ear.heard)
        assert ear.heard == [over(2)] and ear.link.dropped == 4


def test_order_that_the_order_key_did_not_sign_is_let_go(site: Site, desk: Desk, tmp_path: Path) -> None:
    asyncio.run(forged_order(site, desk, Pki.create(tmp_path / "other", now_wall=time.time())))


def test_certificate_of_another_fleet_is_refused(site: Site, desk: Desk, tmp_path: Path) -> None:
    other = Pki.create(tmp_path / "other", now_wall=time.time())
    ear, good = Ear(desk, site.device(1, pki=other)), Ear(desk, site.device(2))
    assert desk.until(lambda: good.link.up)
    desk.until(lambda: ear.link.up, 1.5)
    assert not ear.link.up and ear.link.trouble


def test_agent_whose_certificate_has_expired_is_refused_and_knows_why(site: Site, desk: Desk) -> None:
    ear = Ear(desk, site.device(1, age_s=8 * 86_400.0))
    assert desk.until(lambda: "expired" in ear.link.trouble)
    desk.until(lambda: ear.link.up, 1.0)
    assert not ear.link.up and "join again" in ear.link.trouble


def test_agent_whose_certificate_says_coordinator_may_do_nothing(site: Site, desk: Desk) -> None:
    """The CN trick, with a certificate that the right CA would have made by mistake."""
    trick = site.device(1, cn=AgentId("a-" + "0" * 26))
    asyncio.run(cn_trick(site, desk, trick))


async def cn_trick(site: Site, desk: Desk, device: Credentials) -> None:
    victim = site.device(2)
    async with Hub(site, victim) as hub:
        good = Ear(desk, victim)
        assert await until(desk, lambda: good.link.up and hub.heard)
        key = device.key
        file = device.folder / "trick.pem"
        from fedfleet_coordinator.pki import certificate_pem, client_context, write_private

        certificate = site.pki.issue_agent(key.public_key(), AgentId(SERVICE), now_wall=time.time())
        private = (device.folder / "identity.pem").read_bytes().split(b"-----BEGIN CERTIFICATE")[0]
        write_private(file, private + certificate_pem(certificate).encode())
        tls = client_context(site.pki.ca_pem("services"), file)
        # At the agents' door it is an agent called "coordinator": it hears nothing.
        trick = Link(
            name=SERVICE, host="127.0.0.1", port=site.files.agents_port, tls=tls, order_key=site.pki.order_key,
            keys=hub._keys, handler=hub._hear,
        )  # fmt: skip
        await trick.start()
        await until(desk, lambda: False, 1.0)
        assert not trick.ready.is_set()
        await trick.close()
        # At the services' door its CA is not known.
        assert await asyncio.to_thread(_refused, site.files.service_port, tls)
        # It may have ended the coordinator's session; the coordinator is back by itself.
        assert await until(desk, hub.link.ready.is_set)
        hub.link.publish([(victim.agent, over(1))])
        assert await until(desk, lambda: good.heard)


def _refused(port: int, tls: ssl.SSLContext) -> bool:
    try:
        plain = socket.create_connection(("127.0.0.1", port), 5)
        with plain, tls.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
            sock.sendall(b"\x10\x00")
            return sock.recv(1) == b""
    except (ssl.SSLError, ConnectionError):  # TLS 1.3 tells it with the first answer
        return True


# --- revocation -----------------------------------------------------------------------------------------------------


async def revoked(site: Site, desk: Desk) -> None:
    device, other = site.device(1), site.device(2)
    async with Hub(site, device, other) as hub:
        ear, good = Ear(desk, device), Ear(desk, other)
        assert await until(desk, lambda: len(hub.of(Presence)) == 2)
        serial = f"{_serial(device):x}"
        site.files.write_revoked(site.pki, [(device.agent, (serial,))], time.time())
        assert reload(site.files.folder)
        take_over(
            site.pki, device.agent, port=site.files.agents_port, folder=site.files.folder, now_wall=time.time()
        )  # fmt: skip
        assert await until(desk, lambda: not ear.link.up, 5.0)
        before, ups = len(hub.heard), ear.ups
        ear.link.connect()
        good.link.publish(Status(version="still here"))
        await until(desk, lambda: ear.link.up, 3.0)
        assert not ear.link.up and ear.ups == ups
        assert [agent for agent, _ in hub.heard[before:]] == [other.agent]


def test_revocation_ends_a_live_session_and_keeps_it_out(site: Site, desk: Desk) -> None:
    asyncio.run(revoked(site, desk))


def _serial(device: Credentials) -> int:
    from cryptography import x509

    return x509.load_pem_x509_certificate((device.folder / "identity.pem").read_bytes()).serial_number


# --- what survives --------------------------------------------------------------------------------------------------


async def broker_restarts(site: Site, desk: Desk) -> None:
    device = site.device(1)
    async with Hub(site, device) as hub:
        ear = Ear(desk, device)
        assert await until(desk, lambda: ear.link.up)
        pid = site.broker.pid
        assert pid is not None
        site.broker.stop()
        assert await until(desk, lambda: not ear.link.up and not hub.link.ready.is_set())
        assert ear.link.trouble and hub.link.trouble
        hub.link.publish([(device.agent, over(1))])  # waits
        assert not ear.link.publish(Status())  # dropped: the agent knows and asks later
        site.broker.start()
        assert await until(desk, lambda: ear.link.up and hub.link.ready.is_set(), 30.0)
        assert await until(desk, lambda: ear.heard)
        assert ear.heard == [over(1)] and ear.ups == 2
        ear.link.publish(Status(version="back"))
        assert await until(desk, lambda: hub.of(Status))


def test_both_links_come_back_after_a_broker_restart(site: Site, desk: Desk) -> None:
    asyncio.run(broker_restarts(site, desk))


async def not_acknowledged(site: Site, desk: Desk) -> None:
    device = site.device(1)
    async with Hub(site, device) as hub:
        forgetful = Ear(desk, device, acks=False)
        assert await until(desk, lambda: forgetful.link.up)
        hub.link.publish([(device.agent, over(1))])
        assert await until(desk, lambda: forgetful.heard)
        stale = forgetful.acks[0]
        forgetful.link.close(gone=False)  # killed before its journal's commit, say
        desk.links.clear()
        again = Ear(desk, device)
        assert await until(desk, lambda: again.heard)
        assert again.heard == [over(1)]
        stale()  # of a connection that is no more: does nothing


def test_order_that_was_not_acknowledged_comes_again(site: Site, desk: Desk) -> None:
    asyncio.run(not_acknowledged(site, desk))


async def hub_dies_before_the_commit(site: Site, desk: Desk) -> None:
    device = site.device(1)
    never = asyncio.Event()

    async def stuck(agent: AgentId, message: FromAgent) -> None:
        if isinstance(message, Status):
            await never.wait()

    async with Hub(site, device, handler=stuck):
        ear = Ear(desk, device)
        assert await until(desk, lambda: ear.link.up)
        ear.link.publish(Status(version="precious"))
        await until(desk, lambda: False, 0.3)
    async with Hub(site, device) as hub:
        assert await until(desk, lambda: hub.of(Status))
        assert hub.of(Status) == [Status(version="precious")]


def test_message_that_was_not_committed_is_given_to_the_next_coordinator(site: Site, desk: Desk) -> None:
    asyncio.run(hub_dies_before_the_commit(site, desk))


async def store_away(site: Site, desk: Desk) -> None:
    device, tries = site.device(1), 0
    taken: list[FromAgent] = []

    async def handler(agent: AgentId, message: FromAgent) -> None:
        nonlocal tries
        tries += 1
        if tries <= 3:
            raise StoreUnavailable("the database is away")
        taken.append(message)

    async with Hub(site, device, handler=handler):
        ear = Ear(desk, device)
        assert await until(desk, lambda: taken)
        assert taken == [Presence(online=True)] and tries == 4
        assert ear.link.up


def test_what_the_store_cannot_take_now_is_tried_again(site: Site, desk: Desk) -> None:
    asyncio.run(store_away(site, desk))


async def bug_in_handler(site: Site, desk: Desk) -> None:
    device = site.device(1)
    taken: list[FromAgent] = []

    async def handler(agent: AgentId, message: FromAgent) -> None:
        if isinstance(message, Log):
            raise KeyError("a bug")
        taken.append(message)

    async with Hub(site, device, handler=handler) as hub:
        ear = Ear(desk, device)
        assert await until(desk, lambda: ear.link.up)
        ear.link.publish(Log())
        ear.link.publish(Status(version="after"))
        assert await until(desk, lambda: Status(version="after") in taken)
        assert hub.link.dropped == 1


def test_bug_in_the_handler_does_not_stop_what_follows(site: Site, desk: Desk) -> None:
    asyncio.run(bug_in_handler(site, desk))


async def order_per_agent(site: Site, desk: Desk) -> None:
    """What was said first is handled first, however long a look-up takes."""
    device = site.device(1)
    async with Hub(site, device) as hub:
        slow = hub._keys
        waits = iter([0.2, 0.0, 0.1])

        async def lazy(agent: AgentId) -> tuple[Ed25519PublicKey, ...]:
            await asyncio.sleep(next(waits, 0.0))
            return await slow(agent)

        hub.link._keys = lazy
        ear = Ear(desk, device)
        assert await until(desk, lambda: ear.link.up)
        for i in range(5):
            ear.link.publish(Progress(n=i))
        assert await until(desk, lambda: len(hub.of(Progress)) == 5)
        assert hub.heard == [(device.agent, Presence(online=True)), *((device.agent, Progress(n=i)) for i in range(5))]


def test_messages_of_one_agent_are_handled_in_order(site: Site, desk: Desk) -> None:
    asyncio.run(order_per_agent(site, desk))


async def renewed(site: Site, desk: Desk) -> None:
    old, new = site.device(1), site.device(1)
    async with Hub(site, old) as hub:
        hub.link._forget = lambda agent: hub.keys.update({agent: (new.key.public_key(), old.key.public_key())})
        ear = Ear(desk, old)
        assert await until(desk, lambda: ear.link.up and hub.of(Presence))
        ear.link.renew(new)
        assert await until(desk, lambda: ear.ups == 2)
        ear.link.publish(Status(version="renewed"))
        assert await until(desk, lambda: hub.of(Status))
        assert hub.of(Presence) == [Presence(online=True), Presence(online=True)]  # no absence in between
        hub.link.publish([(old.agent, over(1))])
        assert await until(desk, lambda: ear.heard)


def test_renewed_certificate_takes_over_without_an_absence(site: Site, desk: Desk) -> None:
    asyncio.run(renewed(site, desk))


async def too_large(site: Site, desk: Desk) -> None:
    device = site.device(1)
    async with Hub(site, device) as hub:
        ear = Ear(desk, device)
        assert await until(desk, lambda: ear.link.up)
        hub.link.publish([(device.agent, Over(run=RunId("r" * 300_000)))])
        assert not ear.link.publish(Log(lines=("x" * 300_000,)))
        hub.link.publish([(device.agent, over(1))])
        assert await until(desk, lambda: ear.heard)
        assert hub.link.lost == 1 and ear.ups == 1


def test_message_too_large_for_the_broker_is_not_sent(site: Site, desk: Desk) -> None:
    asyncio.run(too_large(site, desk))


async def cut_off(site: Site, desk: Desk, seen: Callable[[Hub, Ear], Awaitable[None]]) -> None:
    device = site.device(1)
    async with Hub(site, device) as hub:
        ear = Ear(desk, device)
        assert await until(desk, lambda: ear.link.up and hub.of(Presence))
        await seen(hub, ear)


def test_agent_that_is_cut_off_is_gone_after_the_will_delay(site: Site, desk: Desk) -> None:
    async def story(hub: Hub, ear: Ear) -> None:
        desk.links.clear()
        ear.link._client._sock_close()  # no word of farewell
        begins = time.monotonic()
        assert await until(desk, lambda: Presence(online=False) in hub.of(Presence), 15.0)
        assert time.monotonic() - begins > 4.0

    asyncio.run(cut_off(site, desk, story))


async def flood(site: Site, desk: Desk) -> None:
    device, gate, taken = site.device(1), asyncio.Event(), 0

    async def handler(agent: AgentId, message: FromAgent) -> None:
        nonlocal taken
        await gate.wait()
        taken += 1

    async with Hub(site, device, handler=handler) as hub:
        ear = Ear(desk, device)
        assert await until(desk, lambda: ear.link.up)
        for i in range(400):
            ear.link.publish(Progress(n=i))
        await until(desk, lambda: False, 0.5)
        assert hub.link._unhandled == link.MAX_UNHANDLED
        gate.set()
        assert await until(desk, lambda: taken == 401)


def test_coordinator_takes_no_more_than_it_can_handle(site: Site, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "MAX_UNHANDLED", 20)
    asyncio.run(flood(site, desk))


async def flood_of_one(site: Site, desk: Desk) -> None:
    loud, quiet, gate = site.device(1), site.device(2), asyncio.Event()
    taken: list[AgentId] = []

    async def handler(agent: AgentId, message: FromAgent) -> None:
        await gate.wait()
        taken.append(agent)

    async with Hub(site, loud, quiet, handler=handler) as hub:
        ears = [Ear(desk, loud), Ear(desk, quiet)]
        assert await until(desk, lambda: all(ear.link.up for ear in ears))
        for i in range(200):
            ears[0].link.publish(Progress(n=i))
        assert await until(desk, lambda: hub.link.dropped >= 180)
        ears[1].link.publish(Progress(n=1))
        assert await until(desk, lambda: len(hub.link._queues[quiet.agent]) == 1)
        assert hub.link._unhandled < link.MAX_UNHANDLED
        gate.set()
        assert await until(desk, lambda: taken.count(quiet.agent) == 2)
        assert taken.count(loud.agent) + hub.link.dropped == 201


@pytest.mark.parametrize(("name", "most"), [("MAX_OF_ONE", 10), ("MAX_OF_ONE_BYTES", 2000)])
def test_flood_of_one_agent_leaves_room_for_the_others(
    site: Site, desk: Desk, monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    monkeypatch.setattr(link, "MAX_UNHANDLED", 40)
    monkeypatch.setattr(link, name, most)
    asyncio.run(flood_of_one(site, desk))


async def offline(site: Site, desk: Desk) -> None:
    device = site.device(1)
    async with Hub(site, device) as hub:
        ear = Ear(desk, device)
        assert await until(desk, lambda: ear.link.up)
        ear.link.close()
        desk.links.clear()
        hub.link.publish([(device.agent, over(1))])
        await until(desk, lambda: False, 0.3)
        site.broker.stop()
        site.broker.start()
        again = Ear(desk, device)
        assert await until(desk, lambda: again.heard, 20.0)
        assert again.heard == [over(1)]


def test_hint_for_an_agent_that_is_away_outlives_the_broker(site: Site, desk: Desk) -> None:
    asyncio.run(offline(site, desk))


async def no_broker(site: Site) -> None:
    site.broker.stop()
    hub = Hub(site)
    await hub.link.start()
    await asyncio.sleep(0.3)
    assert not hub.link.ready.is_set() and "cannot be reached" in hub.link.trouble
    await hub.link.close()


def test_coordinator_without_a_broker_says_so_and_ends_cleanly(site: Site) -> None:
    asyncio.run(no_broker(site))


async def wrong_acl(site: Site) -> None:
    (site.files.folder / "services.acl").write_text("topic read nothing\n")
    assert reload(site.files.folder)
    hub = Hub(site)
    await hub.link.start()
    await asyncio.sleep(2.0)
    assert not hub.link.ready.is_set() and "ACL" in hub.link.trouble
    await hub.link.close()


def test_broker_whose_acl_is_not_ours_is_found_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Granted subscriptions show nothing; the probe that does not come back does."""
    monkeypatch.setattr(link, "PROBE_S", 0.5)
    asyncio.run(wrong_acl(site))
