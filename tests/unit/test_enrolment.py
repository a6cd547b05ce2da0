"""How a device becomes an agent and stays one: rules over an in-memory store, with real keys."""

import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from fedfleet_agent.enrol import request_for
from fedfleet_coordinator import enrolment
from fedfleet_coordinator.capabilities import Capabilities
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.enrolment import Addresses
from fedfleet_coordinator.errors import BadRequest, CertificateRefused, NotFound, TokenRefused
from fedfleet_coordinator.exchanges import Exchanges, Limits
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.pki import Peer, Pki, public_der
from fedfleet_coordinator.rows import Agent, Token
from fedfleet_coordinator.store.memory import MemoryStore
from fedfleet_protocol.ids import AgentId, agent_id
from fedfleet_protocol.messages import Enrol, Identity, Renew
from fedfleet_protocol.trust import JoinToken, read_token

NOW = Now(10.0, 1_800_000_000.0)
ADDRESSES = Addresses("hub.example:8883", "https://hub.example:8443")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.create(tmp_path_factory.mktemp("fleet") / "pki", now_wall=NOW.wall)


class Desk:
    """Enrolment over a store of its own."""

    def __init__(self, pki: Pki) -> None:
        self.pki, self.store, self.ids = pki, MemoryStore(), 0

    def token(self, *, uses: int = 1, lifetime_s: float = 3600.0) -> JoinToken:
        with self.store.transaction() as tx:
            return enrolment.create_token(
                tx, self.pki, ADDRESSES, labels={"site": "a"}, uses=uses, lifetime_s=lifetime_s, secret=b"s" * 32,
                created_by="ada", now=NOW,
            )  # fmt: skip

    def enrol(self, token: str, key: Ed25519PrivateKey, *, now: Now = NOW) -> Identity:
        self.ids += 1
        request = Enrol(token=token, csr_pem=request_for(key))
        with self.store.transaction() as tx:
            return enrolment.enrol(tx, request, self.pki, ADDRESSES, entropy=self.ids.to_bytes(16, "big"), now=now)

    def renew(self, peer: Peer, key: Ed25519PrivateKey) -> Identity:
        with self.store.transaction() as tx:
            return enrolment.renew(tx, peer, Renew(csr_pem=request_for(key)), self.pki, ADDRESSES, now=NOW)

    def revoke(self, agent: AgentId) -> None:
        exchanges = Exchanges(Capabilities(bytes(32)), Limits())
        with self.store.transaction() as tx:
            enrolment.revoke(tx, agent, exchanges, NOW, Outbox())

    def peer(self, told: Identity) -> Peer:
        der = x509.load_pem_x509_certificate(told.certificate_pem.encode()).public_bytes(Encoding.DER)
        return self.pki.peer(der, now_wall=NOW.wall)

    def row(self, agent: AgentId) -> Agent:
        with self.store.transaction() as tx:
            row = tx.get(Agent, agent)
        assert row is not None
        return row

    def keys(self, agent: AgentId) -> list[bytes]:
        with self.store.transaction() as tx:
            return [public_der(key) for key in enrolment.keys_of(tx, agent)]


@pytest.fixture
def desk(pki: Pki) -> Desk:
    return Desk(pki)


def test_token_makes_an_agent_with_the_tokens_labels(desk: Desk) -> None:
    key = Ed25519PrivateKey.generate()
    told = desk.enrol(desk.token().spell(), key)
    row, peer = desk.row(told.agent), desk.peer(told)
    assert told.agent == agent_id((1).to_bytes(16, "big"))
    assert (peer.role, peer.name, peer.serial) == ("agent", told.agent, row.serial)
    assert (row.labels, row.state) == ({"site": "a"}, "active")
    assert (told.broker, told.data_url) == (ADDRESSES.broker, ADDRESSES.data_url)
    assert desk.keys(told.agent) == [public_der(key.public_key())]


def test_secret_is_not_in_the_store(desk: Desk) -> None:
    token = desk.token()
    with desk.store.transaction() as tx:
        assert token.secret.hex() not in repr(tx.find(Token)) and repr(token.secret) not in repr(tx.find(Token))


def test_device_that_did_not_hear_the_answer_is_the_same_agent_and_costs_one_use(desk: Desk) -> None:
    token, key = desk.token().spell(), Ed25519PrivateKey.generate()
    assert desk.enrol(token, key).agent == desk.enrol(token, key).agent
    with pytest.raises(TokenRefused, match="used up"):
        desk.enrol(token, Ed25519PrivateKey.generate())


def test_one_use_for_fifty_devices_makes_one_agent(desk: Desk) -> None:
    token = desk.token().spell()
    made = []
    for _ in range(50):
        try:
            made.append(desk.enrol(token, Ed25519PrivateKey.generate()).agent)
        except TokenRefused:
            continue
    assert len(made) == 1


@pytest.mark.parametrize("again", [False, True])
def test_expired_token_is_refused_also_to_who_used_it_before(desk: Desk, again: bool) -> None:
    token, key = desk.token(lifetime_s=60.0, uses=2).spell(), Ed25519PrivateKey.generate()
    if again:
        desk.enrol(token, key)
    with pytest.raises(TokenRefused, match="expired"):
        desk.enrol(token, key, now=Now(NOW.up, NOW.wall + 61.0))


def test_guessed_and_mistyped_tokens_are_refused(desk: Desk) -> None:
    token = desk.token()
    guessed = JoinToken(token.url, token.ca_fingerprint, b"g" * 32).spell()
    for text in (guessed, token.spell()[:-4], "", "fft1.", "password"):
        with pytest.raises(TokenRefused):
            desk.enrol(text, Ed25519PrivateKey.generate())


def test_refused_request_costs_no_use(desk: Desk) -> None:
    token = desk.token().spell()
    with pytest.raises(BadRequest), desk.store.transaction() as tx:
        enrolment.enrol(tx, Enrol(token=token, csr_pem="no"), desk.pki, ADDRESSES, entropy=bytes(16), now=NOW)
    assert desk.enrol(token, Ed25519PrivateKey.generate()).agent


def test_token_says_where_to_go_and_whom_to_believe(desk: Desk) -> None:
    token = read_token(desk.token().spell())
    assert (token.url, token.ca_fingerprint) == (ADDRESSES.data_url, desk.pki.ca_fingerprint("services"))


@pytest.mark.parametrize("uses", [0, -1, 1_000_000])
def test_token_without_sensible_uses_is_refused(desk: Desk, uses: int) -> None:
    with pytest.raises(BadRequest):
        desk.token(uses=uses)


def test_renewal_takes_a_new_key_and_envelopes_of_the_old_one_still_hold(desk: Desk) -> None:
    old, new = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    told = desk.enrol(desk.token().spell(), old)
    again = desk.renew(desk.peer(told), new)
    assert again.agent == told.agent
    assert desk.keys(told.agent) == [public_der(new.public_key()), public_der(old.public_key())]
    assert set(desk.row(told.agent).serials) == {desk.peer(told).serial, desk.peer(again).serial}


def test_renewal_whose_answer_was_lost_is_answered_again(desk: Desk) -> None:
    old, new = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    told = desk.enrol(desk.token().spell(), old)
    desk.renew(desk.peer(told), new)
    desk.renew(desk.peer(told), new)
    assert desk.keys(told.agent) == [public_der(new.public_key()), public_der(old.public_key())]


def test_stolen_old_key_cannot_renew_to_a_key_of_the_thief(desk: Desk) -> None:
    told = desk.enrol(desk.token().spell(), Ed25519PrivateKey.generate())
    desk.renew(desk.peer(told), Ed25519PrivateKey.generate())
    with pytest.raises(CertificateRefused, match="replaced"):
        desk.renew(desk.peer(told), Ed25519PrivateKey.generate())


def test_renewal_with_the_key_it_has_is_refused(desk: Desk) -> None:
    key = Ed25519PrivateKey.generate()
    told = desk.enrol(desk.token().spell(), key)
    with pytest.raises(BadRequest, match="new key"):
        desk.renew(desk.peer(told), key)


def test_revoked_agent_gets_nothing_any_more(desk: Desk) -> None:
    token, key = desk.token(uses=2).spell(), Ed25519PrivateKey.generate()
    told = desk.enrol(token, key)
    desk.revoke(told.agent)
    assert desk.row(told.agent).state == "revoked" and desk.keys(told.agent) == []
    with pytest.raises(CertificateRefused, match="revoked"):
        desk.renew(desk.peer(told), Ed25519PrivateKey.generate())
    with pytest.raises(TokenRefused, match="revoked"):
        desk.enrol(token, key)
    with pytest.raises(NotFound):
        desk.revoke(agent_id(b"n" * 16))


def test_fingerprint_in_the_token_is_that_of_the_ca_file(pki: Pki, desk: Desk) -> None:
    ca = x509.load_pem_x509_certificate(pki.ca_pem("services").encode())
    assert desk.token().ca_fingerprint == hashlib.sha256(ca.public_bytes(Encoding.DER)).hexdigest()
