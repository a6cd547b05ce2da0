"""How a device becomes an agent, keeps being one, and ceases to be one: join tokens, certificates, revocation.

A use of a token and the certificate it buys are one transaction, idempotent by token and public key: a device that did
not hear the answer asks again and is the same agent.
"""

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.errors import BadRequest, CertificateRefused, NotFound, TokenRefused
from fedfleet_coordinator.exchanges import Exchanges
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.pki import Peer, Pki, certificate_pem, key_of_csr, public_der
from fedfleet_coordinator.rows import Agent, Token
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.errors import Malformed
from fedfleet_protocol.ids import AgentId, agent_id
from fedfleet_protocol.messages import Enrol, Identity, Renew
from fedfleet_protocol.trust import JoinToken, read_token


class Addresses(msgspec.Struct, frozen=True):
    """Where agents find this hub: the broker as host:port, the API as an https URL."""

    broker: str
    data_url: str


def create_token(
    tx: Tx, pki: Pki, addresses: Addresses, *, labels: dict[str, str], uses: int, lifetime_s: float, secret: bytes,
    created_by: str, now: Now,
) -> JoinToken:  # fmt: skip
    """Return a new join token; the store keeps only a hash of its secret."""
    if not 1 <= uses <= 100_000:
        raise BadRequest(f"a token for {uses} devices; between 1 and 100000 are possible")
    token = JoinToken(addresses.data_url, pki.ca_fingerprint("services"), secret)
    tx.put(
        Token(
            hashed=token.hashed,
            labels=labels,
            uses_left=uses,
            expires_wall=now.wall + lifetime_s,
            created_by=created_by,
        )
    )
    return token


def enrol(tx: Tx, request: Enrol, pki: Pki, addresses: Addresses, *, entropy: bytes, now: Now) -> Identity:
    """Make the holder of a token an agent, under an id the coordinator chooses.

    Raises:
        TokenRefused: unknown, expired or used up. BadRequest: no usable key.
    """
    key = key_of_csr(request.csr_pem)
    try:
        hashed = read_token(request.token).hashed
    except Malformed as error:
        raise TokenRefused(str(error)) from error
    token, public = tx.get(Token, hashed), public_der(key)
    if token is None:
        raise TokenRefused("this coordinator did not make this join token, or has withdrawn it")
    # Also for a device that asks again: a token that has expired must not renew certificates for ever.
    if now.wall > token.expires_wall:
        raise TokenRefused("this join token has expired; ask for a new one: fedfleet token create")
    known = next((row for row in tx.find(Agent, token=hashed) if row.public_key == public), None)
    if known is None:
        if token.uses_left < 1:
            raise TokenRefused("this join token was used up; ask for a new one: fedfleet token create")
        known = Agent(
            agent=agent_id(entropy), labels=token.labels, token=hashed, enrolled_wall=now.wall, seen_at=now.up
        )
        tx.put(msgspec.structs.replace(token, uses_left=token.uses_left - 1))
    if known.state != "active":
        raise TokenRefused("this device was revoked")
    return _certified(tx, known, key, pki, addresses, now)


def renew(tx: Tx, peer: Peer, request: Renew, pki: Pki, addresses: Addresses, *, now: Now) -> Identity:
    """Give an agent its next certificate, for a new key.

    Raises:
        CertificateRefused: the agent is revoked or unknown, or this certificate was replaced before.
        BadRequest: the key is the one it has.
    """
    row = tx.get(Agent, peer.name)
    key = key_of_csr(request.csr_pem)
    if row is None or row.state != "active":
        raise CertificateRefused("this agent is revoked or unknown; it must join again")
    if public_der(key) == peer.public_key:
        raise BadRequest("a renewal takes a new key; update fedfleet-agent")
    if public_der(key) == row.public_key:
        return _certified(tx, row, key, pki, addresses, now)  # asked again by a device that did not hear the answer
    if peer.public_key != row.public_key:
        raise CertificateRefused("this certificate was replaced by a newer one")
    return _certified(tx, row, key, pki, addresses, now)


def revoke(tx: Tx, agent: AgentId, exchanges: Exchanges, now: Now, out: Outbox) -> Agent:
    """Make an agent's certificates worthless, for good, and settle its open tasks.

    Raises:
        NotFound: there is no such agent.
    """
    row = tx.get(Agent, agent)
    if row is None:
        raise NotFound(f"there is no agent {agent}; fedfleet agents lists them")
    exchanges.withdraw(tx, agent, now, out)
    row = msgspec.structs.replace(row, state="revoked", online=False)
    tx.put(row)
    return row


def keys_of(tx: Tx, agent: AgentId) -> tuple[Ed25519PublicKey, ...]:
    """Return the keys whose envelopes are taken as this agent's: the current one, and the one before."""
    row = tx.get(Agent, agent)
    if row is None or row.state != "active":
        return ()
    keys = []
    for der in (row.public_key, row.previous_key):
        key = serialization.load_der_public_key(der) if der else None
        if isinstance(key, Ed25519PublicKey):
            keys.append(key)
    return tuple(keys)


def _certified(tx: Tx, row: Agent, key: Ed25519PublicKey, pki: Pki, addresses: Addresses, now: Now) -> Identity:
    certificate = pki.issue_agent(key, row.agent, now_wall=now.wall)
    public = public_der(key)
    tx.put(
        msgspec.structs.replace(
            row,
            public_key=public,
            previous_key=row.previous_key if public == row.public_key else row.public_key,
            serial=f"{certificate.serial_number:x}",
            serials=(*row.serials, f"{certificate.serial_number:x}")[-64:],
            not_after_wall=certificate.not_valid_after_utc.timestamp(),
        )
    )
    return Identity(
        agent=row.agent,
        certificate_pem=certificate_pem(certificate),
        services_ca_pem=pki.ca_pem("services"),
        broker=addresses.broker,
        data_url=addresses.data_url,
        order_key=pki.order_public,
    )
