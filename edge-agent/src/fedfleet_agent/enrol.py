"""Joining a fleet and staying in it: the device makes its keys, the hub makes the certificates.

Whom to believe at first comes from the join token, which names the services CA by the SHA-256 of its certificate. The
CA's certificate is fetched without trust, for it is public, and compared; from then on TLS is verified against it. The
token's secret and the request go out over verified TLS only.
"""

import hashlib
import http.client
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
import urllib3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from urllib3.util import Timeout

from fedfleet_agent import identity
from fedfleet_agent.errors import AlreadyEnrolled, HubRefused, HubUnreachable
from fedfleet_agent.identity import Credentials
from fedfleet_protocol import messages
from fedfleet_protocol.errors import ProtocolError
from fedfleet_protocol.ids import AgentId
from fedfleet_protocol.messages import Enrol, Identity, Message, Renew
from fedfleet_protocol.trust import JoinToken

MAX_ANSWER_BYTES: Final = 64 << 10
_CONNECT_S: Final = 10.0
_TIMEOUT: Final = Timeout(connect=_CONNECT_S, read=30.0)


class _Problem(msgspec.Struct):
    code: str = ""
    text: str = ""


def join(token: JoinToken, folder: Path, *, version: str = "") -> AgentId:
    """Make this device an agent of the fleet that the token belongs to; asked again, it becomes the same agent.

    Raises:
        AlreadyEnrolled: it is one already.
        HubUnreachable: try again later. HubRefused: the hub says no, or it is not the hub that the token names.
    """
    if identity.enrolled(folder):
        known = identity.load(folder)
        raise AlreadyEnrolled(
            f"this device is agent {known.agent} of {known.about.data_url} already; use another --state folder, "
            "or remove identity.pem there to leave that fleet"
        )
    ca_pem = _authority(token)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = identity.pending_key(folder, None)
    request = Enrol(token=token.spell(), csr_pem=request_for(key), version=version)
    told = _ask(identity.trusting(ca_pem), f"{token.url.rstrip('/')}/v1/enrol", request)
    # What the token named is believed, not what the answer says should be.
    return identity.store(folder, msgspec.structs.replace(told, services_ca_pem=ca_pem), key, first=True).agent


def renew(credentials: Credentials) -> Credentials:
    """Replace key and certificate by new ones; asked again after a lost answer, with the same new key.

    Raises:
        HubUnreachable: try again later. HubRefused: the agent is revoked, or its certificate has expired.
    """
    key = identity.pending_key(credentials.folder, credentials.key)
    url = f"{credentials.about.data_url.rstrip('/')}/v1/renew"
    told = _ask(credentials.tls_context(), url, Renew(csr_pem=request_for(key)))
    if told.agent != credentials.agent:
        raise HubRefused(f"the hub answered agent {credentials.agent} with the identity of {told.agent[:40]!r}")
    return identity.store(credentials.folder, told, key, first=False)


def request_for(key: Ed25519PrivateKey) -> str:
    """Return a certificate request that says nothing but the public key."""
    from cryptography import x509  # not needed to be an agent: it would cost the resident process 1.5 MB

    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, None)
    return request.public_bytes(Encoding.PEM).decode()


def _authority(token: JoinToken) -> str:
    """Return the services CA's certificate, which is the one the token names."""
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.minimum_version = ssl.TLSVersion.TLSv1_3
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE  # public bytes are fetched, nothing is sent, and what comes is compared
    pem = _fetched(blind, token.url)
    try:
        der = ssl.PEM_cert_to_DER_cert(pem.decode("ascii").strip())
    except ValueError as error:
        raise HubRefused(f"{token.url} does not answer like a fedfleet hub; check the token's address") from error
    if hashlib.sha256(der).hexdigest() != token.ca_fingerprint:
        raise HubRefused(
            f"the hub at {token.url} is not the one this join token was made by: its CA has another fingerprint; "
            "ask for a new token, and if this one is new, somebody is in between"
        )
    return ssl.DER_cert_to_PEM_cert(der)


def _ask(tls: ssl.SSLContext, url: str, request: Message) -> Identity:
    answer = _exchange(tls, url, messages.encode(request))
    try:
        return messages.decode_as(Identity, answer)
    except ProtocolError as error:
        raise HubRefused(f"the hub's answer cannot be read: {error}") from error


def _fetched(blind: ssl.SSLContext, url: str) -> bytes:
    """Return what a server that is not believed yet gives as its CA. Raises `HubUnreachable` and `HubRefused`."""
    try:
        address = urlsplit(url)
        host, port = address.hostname or "", address.port
    except ValueError as error:
        raise HubRefused(f"the join token's address {url[:200]!r} is no address; ask for a new one") from error
    connection = http.client.HTTPSConnection(host, port, timeout=_CONNECT_S, context=blind)
    try:
        connection.request("GET", f"{address.path.rstrip('/')}/v1/ca")
        response = connection.getresponse()
        pem = response.read(MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise HubUnreachable(f"the hub at {url} cannot be reached: {error}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise _no(url, response.status, pem, response.headers.get("Retry-After", ""))
    return pem


def _exchange(tls: ssl.SSLContext, url: str, body: bytes) -> bytes:
    """Return the body of the hub's answer. Raises `HubUnreachable` and `HubRefused`."""
    pool = urllib3.PoolManager(1, ssl_context=tls, retries=False, timeout=_TIMEOUT)
    headers = {"Content-Type": "application/msgpack"}
    try:
        response = pool.request("POST", url, body=body, headers=headers, preload_content=False, redirect=False)
        answer = response.read(MAX_ANSWER_BYTES + 1)
        response.close()
    except urllib3.exceptions.SSLError as error:
        raise HubRefused(
            f"TLS with {url} failed ({error}): the server there is not this fleet's hub, this agent's certificate "
            "was refused (expired or revoked: join again), or a clock is wrong"
        ) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise HubUnreachable(f"the hub at {url} cannot be reached: {error}") from error
    finally:
        pool.clear()
    if response.status == 200 and len(answer) <= MAX_ANSWER_BYTES:
        return answer
    raise _no(url, response.status, answer, response.headers.get("Retry-After", ""))


def _no(url: str, status: int, answer: bytes, retry_after: str) -> HubRefused | HubUnreachable:
    try:
        problem = msgspec.json.decode(answer, type=_Problem)
    except msgspec.MsgspecError:
        problem = _Problem()
    if status >= 500 or status in {408, 429}:
        wait = float(retry_after) if retry_after.isascii() and retry_after.isdecimal() else 0.0
        return HubUnreachable(f"the hub at {url} answers {status}: {problem.text[:500] or 'try again later'}", wait)
    return HubRefused(f"the hub refuses: {problem.text[:500] or f'{url} answers {status}'}")
