"""Who is who: three certificate authorities, the order key, and what a certificate says of its holder.

Agents, services and users have separate CAs. A role is the issuing CA together with the URI in the certificate, never
the common name alone: an agent whose certificate said CN=coordinator once took over the coordinator's session. A CSR
contributes a public key and nothing else. Time and serial numbers' randomness aside, nothing here reads a clock: `now`
is an argument. Extensions follow RFC 5280 §4.2.1 as Python 3.13 checks them (keyUsage, basicConstraints, SKI, AKI).
"""

import datetime
import ipaddress
import os
import ssl
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedfleet_coordinator.errors import BadRequest, CertificateRefused, Misconfigured
from fedfleet_protocol.ids import AgentId, RunId

AGENT_DAYS = 7.0
RUNNER_DAYS = 7.0
SERVICE_DAYS = 365.0
USER_DAYS = 365.0
CA_DAYS = 3650.0
MAX_CSR_BYTES = 8 << 10
_SKEW = datetime.timedelta(minutes=5)
CaName = Literal["agents", "services", "users"]
CAS: tuple[CaName, ...] = ("agents", "services", "users")
Role = Literal["agent", "service", "runner", "user"]
_ROLES: dict[CaName, tuple[Role, ...]] = {"agents": ("agent",), "services": ("service", "runner"), "users": ("user",)}


@dataclass(frozen=True, slots=True)
class Peer:
    """The holder of a certificate.

    Attributes:
        name: the agent's id, the run's id, or the service's or user's name.
        public_key: SubjectPublicKeyInfo in DER.
    """

    role: Role
    name: str
    serial: str
    not_after_wall: float
    public_key: bytes


@dataclass(frozen=True, slots=True)
class _Ca:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


class Pki:
    """The authorities of one coordinator, in memory.

    Attributes:
        order_key: signs what the coordinator says to agents.
        capability_key: 32 bytes for the capabilities of blobs.
    """

    def __init__(self, cas: dict[CaName, _Ca], order_key: Ed25519PrivateKey, capability_key: bytes) -> None:
        self._cas = cas
        self.order_key = order_key
        self.capability_key = capability_key

    # --- folders -----------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, folder: Path, *, now_wall: float) -> "Pki":
        """Make new authorities and keep them in `folder`, readable for their owner only.

        Raises:
            Misconfigured: there are some already.
        """
        if (folder / "order.pem").exists():
            raise Misconfigured(f"{folder} holds the keys of a fleet already; they are never overwritten")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in CAS:
            ca = _new_ca(name, now_wall)
            write_private(folder / f"{name}-ca.key", _private_pem(ca.key))
            (folder / f"{name}-ca.pem").write_bytes(ca.certificate.public_bytes(serialization.Encoding.PEM))
        write_private(folder / "capability.key", os.urandom(32))
        write_private(folder / "order.pem", _private_pem(Ed25519PrivateKey.generate()))
        return cls.load(folder)

    @classmethod
    def load(cls, folder: Path) -> "Pki":
        """Read the authorities in `folder`.

        Raises:
            Misconfigured: they are not there, cannot be read, or others may read them.
        """
        cas: dict[CaName, _Ca] = {}
        for name in CAS:
            file = folder / f"{name}-ca.pem"
            try:
                certificate = x509.load_pem_x509_certificate(_read(file))
            except ValueError as error:
                raise Misconfigured(f"{file} is no certificate; restore it from a backup") from error
            key = _private_key(folder / f"{name}-ca.key")
            if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
                raise Misconfigured(
                    f"{folder / name}-ca.key is not the key of {file.name}; restore both from one backup"
                )
            cas[name] = _Ca(certificate, key)
        order = _private_key(folder / "order.pem")
        if not isinstance(order, Ed25519PrivateKey):
            raise Misconfigured(f"{folder / 'order.pem'} is not an Ed25519 key; restore it from a backup")
        capability_key = _read_private(folder / "capability.key")
        if len(capability_key) != 32:
            raise Misconfigured(f"{folder / 'capability.key'} does not have 32 bytes; restore it from a backup")
        return cls(cas, order, capability_key)

    # --- certificates ------------------------------------------------------------------------------------------------

    def ca_pem(self, name: CaName) -> str:
        """Return a CA's certificate."""
        return self._cas[name].certificate.public_bytes(serialization.Encoding.PEM).decode()

    def ca_fingerprint(self, name: CaName) -> str:
        """Return the SHA-256 of a CA's certificate in DER, in hexadecimal: what join tokens carry."""
        return self._cas[name].certificate.fingerprint(hashes.SHA256()).hex()

    @property
    def order_public(self) -> bytes:
        """The 32 bytes by which agents check orders."""
        return self.order_key.public_key().public_bytes_raw()

    def issue_agent(self, public_key: Ed25519PublicKey, agent: AgentId, *, now_wall: float) -> x509.Certificate:
        """Return a certificate for a device's key under the id that the coordinator chose."""
        return self._issue("agents", public_key, agent, f"fedfleet:agent:{agent}", now_wall, AGENT_DAYS, client=True)

    def issue_service(self, name: str, hosts: Sequence[str], *, now_wall: float) -> tuple[bytes, bytes]:
        """Return certificate (with its CA) and key, in PEM, of a service that is reached under `hosts`."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._issue("services", key.public_key(), name, f"fedfleet:service:{name}", now_wall,
                                  SERVICE_DAYS, client=True, hosts=hosts)  # fmt: skip
        return _pem(certificate) + self.ca_pem("services").encode(), _private_pem(key)

    def issue_runner(self, run: RunId, *, now_wall: float) -> tuple[bytes, bytes]:
        """Return certificate and key, in PEM, of the runner of one run."""
        key = ec.generate_private_key(ec.SECP256R1())
        uri = f"fedfleet:runner:{run}"
        certificate = self._issue("services", key.public_key(), run, uri, now_wall, RUNNER_DAYS, client=True)
        return _pem(certificate), _private_pem(key)

    def issue_user(self, name: str, *, now_wall: float) -> tuple[bytes, bytes]:
        """Return certificate and key, in PEM, of a person."""
        key = ec.generate_private_key(ec.SECP256R1())
        uri = f"fedfleet:user:{name}"
        return _pem(self._issue("users", key.public_key(), name, uri, now_wall, USER_DAYS, client=True)), _private_pem(
            key
        )

    def crl(self, serials: Iterable[str], *, now_wall: float) -> bytes:
        """Return the list of revoked agents' certificates, in PEM."""
        ca, now = self._cas["agents"], _time(now_wall)
        builder = x509.CertificateRevocationListBuilder().issuer_name(ca.certificate.subject)
        builder = builder.last_update(now - _SKEW).next_update(now + datetime.timedelta(days=CA_DAYS))
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(now - _SKEW)
            builder = builder.add_revoked_certificate(revoked.build())
        builder = builder.add_extension(_authority(ca), critical=False)
        return builder.sign(ca.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def peer(self, certificate_der: bytes, *, now_wall: float) -> Peer:
        """Return who holds a certificate that one of our CAs issued.

        Raises:
            CertificateRefused: it is of another CA, expired, or says a role its CA may not give.
        """
        try:
            certificate = x509.load_der_x509_certificate(certificate_der)
        except ValueError as error:
            raise CertificateRefused("the certificate shown cannot be read; join again, or log in again") from error
        issued_by = next((n for n in CAS if _issued(certificate, self._cas[n])), None)
        if issued_by is None:
            raise CertificateRefused("this certificate was not issued by this coordinator")
        if now_wall < _at(certificate.not_valid_before_utc) - 300:
            raise CertificateRefused("this certificate is not valid yet; the clock of the coordinator is behind")
        if now_wall > _at(certificate.not_valid_after_utc):
            raise CertificateRefused("this certificate has expired; renew it, or join again")
        role, name = _named(certificate)
        if role not in _ROLES[issued_by]:
            raise CertificateRefused(f"the CA for {issued_by} does not make anybody a {role}")
        public = certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return Peer(role, name, f"{certificate.serial_number:x}", _at(certificate.not_valid_after_utc), public)

    def _issue(
        self, ca_name: CaName, public_key: ec.EllipticCurvePublicKey | Ed25519PublicKey, name: str, uri: str,
        now_wall: float, days: float, *, client: bool, hosts: Sequence[str] = (),
    ) -> x509.Certificate:  # fmt: skip
        ca, now = self._cas[ca_name], _time(now_wall)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
        names += [_host(host) for host in hosts]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH] if client else []
        if hosts:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(ca.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(_authority(ca), critical=False)
        )
        return builder.sign(ca.key, hashes.SHA256())


def key_of_csr(csr_pem: str) -> Ed25519PublicKey:
    """Return the public key in a CSR: all that a CSR contributes.

    Raises:
        BadRequest: it is no CSR, its signature does not hold, or the key is not Ed25519.
    """
    if len(csr_pem) > MAX_CSR_BYTES:
        raise BadRequest(f"a CSR of {len(csr_pem)} bytes; at most {MAX_CSR_BYTES} are taken")
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        key = csr.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadRequest(f"this is no certificate signing request: {error}") from error
    if not isinstance(key, Ed25519PublicKey) or not csr.is_signature_valid:
        raise BadRequest("a device's key is Ed25519, and its CSR is signed with it")
    return key


def public_der(key: Ed25519PublicKey) -> bytes:
    """Return a public key as SubjectPublicKeyInfo in DER."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def certificate_pem(certificate: x509.Certificate) -> str:
    """Return a certificate in PEM."""
    return _pem(certificate).decode()


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    aside = path.with_name(path.name + ".new")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def client_context(ca_pem: str, chain: Path) -> ssl.SSLContext:
    """Return the client's side of TLS 1.3: who is believed, and who we are (a PEM file with key and certificate)."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=ca_pem)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(chain)
    return context


def _new_ca(name: str, now_wall: float) -> _Ca:
    key, now = ec.generate_private_key(ec.SECP256R1()), _time(now_wall)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedfleet {name}")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _Ca(certificate, key)


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _authority(ca: _Ca) -> x509.AuthorityKeyIdentifier:
    identifier = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _issued(certificate: x509.Certificate, ca: _Ca) -> bool:
    try:
        certificate.verify_directly_issued_by(ca.certificate)
    except Exception:  # ValueError, TypeError or InvalidSignature: three ways to say no
        return False
    return True


def _named(certificate: x509.Certificate) -> tuple[Role, str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise CertificateRefused("this certificate names no role") from error
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        scheme, _, rest = uri.partition(":")
        role, _, name = rest.partition(":")
        if scheme == "fedfleet" and role in ("agent", "service", "runner", "user") and name:
            return role, name  # type: ignore[return-value]
    raise CertificateRefused("this certificate names no role")


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _time(wall: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(wall), datetime.UTC)


def _at(instant: datetime.datetime) -> float:
    return instant.timestamp()


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Misconfigured(f"{path} cannot be read: {error.strerror}; fedfleet-coordinator init makes it") from error


def _private_key(path: Path) -> object:
    try:
        return serialization.load_pem_private_key(_read_private(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Misconfigured(f"{path} holds no private key; restore it from a backup") from error


def _read_private(path: Path) -> bytes:
    data = _read(path)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise Misconfigured(f"{path} can be read by others; chmod 600 it, and ask yourself who has")
    return data
