"""Who this device is, on its disk.

    identity.pem     private key and certificate, replaced together by one rename; for the agent's user only
    identity.json    agent id and where the hub is
    services-ca.pem  who may speak as the hub
    order.pub        the key that signs orders, 64 hexadecimal digits
    pending.pem      a key whose certificate was asked for: a lost answer is asked for again with the same key

`identity.pem` is written last: where it is, the rest is.
"""

import base64
import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedfleet_agent.errors import HubRefused, NotEnrolled
from fedfleet_protocol.errors import Malformed
from fedfleet_protocol.ids import AgentId, parse_agent_id
from fedfleet_protocol.messages import Identity

_KEY_AND_CERTIFICATE: Final = "identity.pem"
_ABOUT: Final = "identity.json"
_CA: Final = "services-ca.pem"
_ORDER: Final = "order.pub"
_PENDING: Final = "pending.pem"
MAX_FILE_BYTES: Final = 64 << 10
_KEY: Final = re.compile(rb"-----BEGIN PRIVATE KEY-----([A-Za-z0-9+/=\s]+)-----END PRIVATE KEY-----")
_PKCS8_ED25519: Final = bytes.fromhex("302e020100300506032b657004220420")
"""What comes before the key's 32 bytes (RFC 8410 §7)."""


class About(msgspec.Struct, frozen=True):
    """What `identity.json` holds: what the resident process would otherwise need X.509 for, 1.5 MB of memory.

    Attributes:
        begins_wall, expires_wall: of the certificate in `identity.pem`.
    """

    agent: AgentId
    broker: str
    data_url: str
    begins_wall: float
    expires_wall: float


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the agent needs to speak, and to know who speaks to it.

    Attributes:
        folder: where the files are that TLS reads.
        key: signs this agent's envelopes, and its certificate is for this key.
        order_key: whose signature makes something an order.
    """

    folder: Path
    about: About
    key: Ed25519PrivateKey
    order_key: Ed25519PublicKey

    @property
    def agent(self) -> AgentId:
        """This agent's id."""
        return self.about.agent

    @property
    def broker(self) -> tuple[str, int]:
        """Host and port of the broker."""
        return host_and_port(self.about.broker)

    @property
    def expires_wall(self) -> float:
        """When the certificate ends."""
        return self.about.expires_wall

    @property
    def renew_at_wall(self) -> float:
        """When to ask for the next certificate: at two thirds of this one's life."""
        return self.about.begins_wall + (self.about.expires_wall - self.about.begins_wall) * 2 / 3

    def tls_context(self) -> ssl.SSLContext:
        """Return TLS 1.3 that shows this agent's certificate and believes the services CA alone.

        Raises:
            NotEnrolled: the files are gone or damaged.
        """
        try:
            context = trusting((self.folder / _CA).read_text())
            context.load_cert_chain(self.folder / _KEY_AND_CERTIFICATE)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise _damaged(self.folder, error) from error
        return context


def trusting(ca_pem: str) -> ssl.SSLContext:
    """Return the client's side of TLS 1.3 that believes servers of this CA and no other. Raises `ssl.SSLError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and host name
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ca_pem)
    return context


def enrolled(folder: Path) -> bool:
    """Whether this folder holds an identity."""
    return (folder / _KEY_AND_CERTIFICATE).exists()


def load(folder: Path) -> Credentials:
    """Return the identity kept in `folder`.

    Raises:
        NotEnrolled: there is none, it is damaged, or others may read its key.
    """
    file = folder / _KEY_AND_CERTIFICATE
    if not file.exists():
        raise NotEnrolled(f"this device has not joined a fleet ({folder}); do: fedfleet-agent join TOKEN")
    if file.stat().st_mode & 0o077:
        raise NotEnrolled(f"{file} can be read by others; do: chmod 600 {file}, or join again if somebody has")
    try:
        key = _key_in(_read(file))
        about = msgspec.json.decode(_read(folder / _ABOUT), type=About)
        order_key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(_read(folder / _ORDER).decode()))
        parse_agent_id(about.agent)
        host_and_port(about.broker)
    except (OSError, ValueError, TypeError, msgspec.MsgspecError, Malformed) as error:
        raise _damaged(folder, error) from error
    return Credentials(folder, about, key, order_key)


def store(folder: Path, told: Identity, key: Ed25519PrivateKey, *, first: bool) -> Credentials:
    """Keep what the hub told; from here on `load` returns it.

    Args:
        first: on joining. A renewal brings a certificate and addresses; whom to believe it leaves as it is.

    Raises:
        HubRefused: what it told does not fit this device's key, or makes no sense.
    """
    certificate_pem, begins_wall, expires_wall = _checked(told, key)
    if first:
        write_file(folder / _CA, told.services_ca_pem.encode())
        write_file(folder / _ORDER, told.order_key.hex().encode())
    about = About(told.agent, told.broker, told.data_url, begins_wall, expires_wall)
    files = [(_ABOUT, msgspec.json.encode(about)), (_KEY_AND_CERTIFICATE, _key_pem(key) + certificate_pem)]
    # A renewal goes the other way: if the power fails between the two, the times are the old ones and it renews again.
    for name, data in files if first else reversed(files):
        write_file(folder / name, data)
    (folder / _PENDING).unlink(missing_ok=True)
    return load(folder)


def pending_key(folder: Path, current: Ed25519PrivateKey | None) -> Ed25519PrivateKey:
    """Return the key to ask a certificate for: the one asked for before if no answer came, else a new one."""
    file = folder / _PENDING
    try:
        key = _key_in(_read(file))
    except (OSError, ValueError):
        pass  # not there, or cut off by a power failure before it was ever used
    else:
        if current is None or key.public_key() != current.public_key():
            return key
    fresh = Ed25519PrivateKey.generate()
    write_file(file, _key_pem(fresh))
    return fresh


def host_and_port(address: str) -> tuple[str, int]:
    """Return the parts of `host:port`; an IPv6 host stands in brackets. Raises `ValueError`."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{address[:80]!r} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def write_file(file: Path, data: bytes) -> None:
    """Replace a file, for its owner only, whole or not at all, also when the power fails."""
    aside = file.with_name(file.name + ".new")
    aside.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(aside, flags, 0o600), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(file)
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _checked(told: Identity, key: Ed25519PrivateKey) -> tuple[bytes, float, float]:
    """Return the certificate that was told, and the time for which it is valid."""
    from cryptography import x509  # joining and renewing need it, being an agent does not
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    try:
        certificate = x509.load_pem_x509_certificate(told.certificate_pem.encode())
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        host_and_port(told.broker)
        parse_agent_id(told.agent)
        Ed25519PublicKey.from_public_bytes(told.order_key)
        trusting(told.services_ca_pem)
    except (OSError, ValueError, Malformed) as error:
        raise HubRefused(f"the hub's answer cannot be used: {error}; is the hub of the same version?") from error
    if certificate.public_key() != key.public_key() or [name.value for name in names] != [told.agent]:
        raise HubRefused("the hub's answer cannot be used: the certificate is not for this device's key and name")
    if not told.data_url.startswith("https://"):
        raise HubRefused("the hub's answer cannot be used: its data address is no https URL")
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return certificate.public_bytes(Encoding.PEM), begins.timestamp(), ends.timestamp()


def _read(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(MAX_FILE_BYTES)


def _key_pem(key: Ed25519PrivateKey) -> bytes:
    """Return the key as PKCS 8 in PEM, for TLS reads it from the file."""
    body = base64.b64encode(_PKCS8_ED25519 + key.private_bytes_raw())
    return b"-----BEGIN PRIVATE KEY-----\n" + body + b"\n-----END PRIVATE KEY-----\n"


def _key_in(pem: bytes) -> Ed25519PrivateKey:
    """Return the key in a file of ours; cryptography's own reader knows every kind of key and costs 2 MB of memory.

    Raises:
        ValueError: there is no Ed25519 key in it.
    """
    found = _KEY.search(pem)
    der = base64.b64decode(found[1]) if found else b""
    if not der.startswith(_PKCS8_ED25519) or len(der) != len(_PKCS8_ED25519) + 32:
        raise ValueError("it holds no Ed25519 key")
    return Ed25519PrivateKey.from_private_bytes(der[len(_PKCS8_ED25519) :])


def _damaged(folder: Path, error: Exception) -> NotEnrolled:
    return NotEnrolled(
        f"this device's identity in {folder} is damaged ({error}); restore the folder, "
        "or remove identity.pem and do: fedfleet-agent join TOKEN"
    )
