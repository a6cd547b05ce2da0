"""Who may be who: certificates, roles, keys on disk."""

import ssl
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedfleet_coordinator.errors import BadRequest, CertificateRefused, Misconfigured
from fedfleet_coordinator.pki import MAX_CSR_BYTES, Pki, key_of_csr, public_der
from fedfleet_protocol.ids import RunId, agent_id

NOW = 1_800_000_000.0
WEEK_S = 7 * 86_400.0
ALICE = agent_id(b"a" * 16)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.create(tmp_path_factory.mktemp("fleet") / "pki", now_wall=NOW)


def der_of(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def request(key: Ed25519PrivateKey, *extensions: x509.ExtensionType, name: str = "") -> str:
    names = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, None).public_bytes(Encoding.PEM).decode()


def test_each_role_is_told_by_its_ca_and_its_uri(pki: Pki) -> None:
    key = Ed25519PrivateKey.generate().public_key()
    agent = pki.issue_agent(key, ALICE, now_wall=NOW).public_bytes(Encoding.DER)
    service, _ = pki.issue_service("coordinator", ["hub.example", "10.0.0.1"], now_wall=NOW)
    runner, _ = pki.issue_runner(RunId("r-1"), now_wall=NOW)
    user, _ = pki.issue_user("ada", now_wall=NOW)
    peers = [pki.peer(der, now_wall=NOW) for der in (agent, der_of(service), der_of(runner), der_of(user))]
    assert [(peer.role, peer.name) for peer in peers] == [
        ("agent", ALICE), ("service", "coordinator"), ("runner", "r-1"), ("user", "ada"),
    ]  # fmt: skip
    assert peers[0].public_key == public_der(key)
    assert peers[0].not_after_wall == NOW + WEEK_S


def test_certificate_of_another_fleet_is_refused(pki: Pki, tmp_path: Path) -> None:
    other = Pki.create(tmp_path / "pki", now_wall=NOW)
    key = Ed25519PrivateKey.generate().public_key()
    der = other.issue_agent(key, ALICE, now_wall=NOW).public_bytes(Encoding.DER)
    with pytest.raises(CertificateRefused, match="not issued by this coordinator"):
        pki.peer(der, now_wall=NOW)


def test_expired_certificate_is_refused(pki: Pki) -> None:
    der = pki.issue_agent(Ed25519PrivateKey.generate().public_key(), ALICE, now_wall=NOW).public_bytes(Encoding.DER)
    with pytest.raises(CertificateRefused, match="expired"):
        pki.peer(der, now_wall=NOW + WEEK_S + 1)


def test_certificate_from_the_future_says_whose_clock_is_wrong(pki: Pki) -> None:
    der = pki.issue_agent(Ed25519PrivateKey.generate().public_key(), ALICE, now_wall=NOW).public_bytes(Encoding.DER)
    with pytest.raises(CertificateRefused, match="not valid yet; the clock of the coordinator"):
        pki.peer(der, now_wall=NOW - 3600)


def test_agents_ca_makes_nobody_a_service_or_a_user(pki: Pki) -> None:
    """An agent's certificate with CN and URI of the coordinator, as a broken hub might make it."""
    ca = pki._cas["agents"]
    for uri in (
        "fedfleet:service:coordinator",
        "fedfleet:user:ada",
        "fedfleet:runner:r-1",
        "fedfleet:admin:x",
        "https:x",
    ):
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "coordinator")]))
            .issuer_name(ca.certificate.subject)
            .public_key(Ed25519PrivateKey.generate().public_key())
            .serial_number(7)
            .not_valid_before(ca.certificate.not_valid_before_utc)
            .not_valid_after(ca.certificate.not_valid_after_utc)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
            .sign(ca.key, hashes.SHA256())
        )
        with pytest.raises(CertificateRefused):
            pki.peer(certificate.public_bytes(Encoding.DER), now_wall=NOW)


@pytest.mark.parametrize("der", [b"", b"no certificate", b"0\x82\xff\xff" + bytes(70)], ids=["none", "text", "cut"])
def test_bytes_that_are_no_certificate_are_refused_in_words(pki: Pki, der: bytes) -> None:
    with pytest.raises(CertificateRefused):
        pki.peer(der, now_wall=NOW)


def test_csr_contributes_its_key_and_nothing_else(pki: Pki) -> None:
    key = Ed25519PrivateKey.generate()
    wishes = request(
        key,
        x509.BasicConstraints(ca=True, path_length=3),
        x509.SubjectAlternativeName(
            [x509.UniformResourceIdentifier("fedfleet:service:coordinator"), x509.DNSName("hub")]
        ),
        name="coordinator",
    )
    certificate = pki.issue_agent(key_of_csr(wishes), ALICE, now_wall=NOW)
    peer = pki.peer(certificate.public_bytes(Encoding.DER), now_wall=NOW)
    assert (peer.role, peer.name) == ("agent", ALICE)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert [n.value for n in certificate.subject] == [ALICE]


def test_csr_that_another_key_signed_is_refused() -> None:
    mine, theirs = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    der = x509.load_pem_x509_csr(request(mine).encode()).public_bytes(Encoding.DER)
    forged = der.replace(_raw(mine), _raw(theirs))
    assert forged != der
    with pytest.raises(BadRequest):
        key_of_csr(x509.load_der_x509_csr(forged).public_bytes(Encoding.PEM).decode())


def test_csr_of_another_kind_of_key_is_refused() -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    pem = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(Encoding.PEM).decode()
    with pytest.raises(BadRequest, match="Ed25519"):
        key_of_csr(pem)


@pytest.mark.parametrize("pem", ["", "x" * (MAX_CSR_BYTES + 1), "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END"])
def test_text_that_is_no_csr_is_refused(pem: str) -> None:
    with pytest.raises(BadRequest):
        key_of_csr(pem)


def test_chains_pass_strict_verification(tmp_path: Path) -> None:
    """What Python 3.13 does by default: RFC 5280's extensions must all be there."""
    pki = Pki.create(tmp_path / "pki", now_wall=time.time())  # OpenSSL has its own clock
    pem, key = pki.issue_service("api", ["localhost"], now_wall=time.time())
    (tmp_path / "server.pem").write_bytes(key + pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "server.pem")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(cadata=pki.ca_pem("services"))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    done = [False, False]
    for _ in range(10):
        for i, end in enumerate(ends):
            try:
                end.do_handshake()
                done[i] = True
            except ssl.SSLWantReadError:
                pass
    assert done == [True, True]


def test_crl_names_the_revoked_and_is_signed_by_the_agents_ca(pki: Pki) -> None:
    crl = x509.load_pem_x509_crl(pki.crl(["ff", "1a2b"], now_wall=NOW))
    assert sorted(entry.serial_number for entry in crl) == [0xFF, 0x1A2B]
    ca_key = x509.load_pem_x509_certificate(pki.ca_pem("agents").encode()).public_key()
    assert isinstance(ca_key, ec.EllipticCurvePublicKey)
    assert crl.is_signature_valid(ca_key)


def test_pki_is_the_same_after_a_restart_and_is_never_overwritten(tmp_path: Path) -> None:
    first = Pki.create(tmp_path / "pki", now_wall=NOW)
    again = Pki.load(tmp_path / "pki")
    assert again.order_public == first.order_public and again.capability_key == first.capability_key
    assert again.ca_fingerprint("services") == first.ca_fingerprint("services")
    with pytest.raises(Misconfigured, match="never overwritten"):
        Pki.create(tmp_path / "pki", now_wall=NOW)


@pytest.mark.parametrize("name", ["agents-ca.key", "order.pem", "capability.key"])
def test_key_that_others_can_read_stops_the_start(tmp_path: Path, name: str) -> None:
    Pki.create(tmp_path / "pki", now_wall=NOW)
    (tmp_path / "pki" / name).chmod(0o640)
    with pytest.raises(Misconfigured, match="read by others"):
        Pki.load(tmp_path / "pki")


@pytest.mark.parametrize("name", ["agents-ca.key", "agents-ca.pem", "order.pem", "capability.key"])
@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_damaged_pki_is_told_in_words(tmp_path: Path, name: str, damage: str) -> None:
    Pki.create(tmp_path / "pki", now_wall=NOW)
    file = tmp_path / "pki" / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(Misconfigured, match=name):
        Pki.load(tmp_path / "pki")


def _raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
