"""Ed25519 envelopes, publishers and join tokens. No disk, no network; time is an argument.

An envelope says who it is from and who it is for, so that a broker, a proxy or a bucket can lose it, keep it or
repeat it, but not write it nor redirect it. Repeating is harmless: everything inside is idempotent by order and digest.
"""

import base64
import hashlib
from dataclasses import dataclass

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedfleet_protocol.errors import Forged, Malformed, NewerSchema, TooLarge, Untrusted
from fedfleet_protocol.messages import MAX_MESSAGE_BYTES

SCHEMA = 1
HUB = "hub"
"""The coordinator, as sender or receiver of an envelope."""
MAX_ENVELOPE_BYTES = MAX_MESSAGE_BYTES + 1024
_CONTEXT = b"fedfleet envelope 1\0"
_BUNDLE_CONTEXT = b"fedfleet bundle 1\0"
_TOKEN_PREFIX = "fft1."  # noqa: S105 - what all join tokens begin with


class Envelope(msgspec.Struct, frozen=True):
    """A signed message: `sig` covers `sender`, `to` and `body`."""

    v: int
    sender: str
    to: str
    body: bytes
    sig: bytes


_decoder = msgspec.msgpack.Decoder(Envelope)


def seal(key: Ed25519PrivateKey, body: bytes, *, sender: str, to: str) -> bytes:
    """Return `body` in an envelope from `sender` to `to`, signed with the sender's key."""
    return msgspec.msgpack.encode(Envelope(SCHEMA, sender, to, body, key.sign(_covered(sender, to, body))))


def open_envelope(data: bytes, key: Ed25519PublicKey, *, sender: str, to: str) -> bytes:
    """Return the body of an envelope that `sender`, who owns `key`, addressed to `to`.

    Raises:
        Forged: the signature does not hold, or the envelope is from or for somebody else.
        Malformed, NewerSchema, TooLarge: not an envelope this side takes.
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise TooLarge(f"an envelope of {len(data)} bytes; at most {MAX_ENVELOPE_BYTES} are taken")
    try:
        envelope = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"not an envelope: {error}") from error
    if envelope.v > SCHEMA:
        raise NewerSchema(
            f"an envelope of schema {envelope.v}, this fedfleet understands up to {SCHEMA}: update this side"
        )
    if (envelope.sender, envelope.to) != (sender, to):
        raise Forged(
            f"an envelope from {envelope.sender[:40]!r} to {envelope.to[:40]!r} "
            f"where one from {sender!r} to {to!r} belongs"
        )
    try:
        key.verify(envelope.sig, _covered(sender, to, envelope.body))
    except InvalidSignature as error:
        raise Forged(f"the signature of an envelope from {sender!r} does not hold") from error
    return envelope.body


def fingerprint(public: bytes) -> str:
    """Return the name of a public key: the first 32 hexadecimal characters of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:32]


def sign_bundle(key: Ed25519PrivateKey, digest: str) -> bytes:
    """Return the publisher's signature of the bundle `digest`."""
    return key.sign(_BUNDLE_CONTEXT + digest.encode())


def check_bundle(digest: str, signature: bytes, publisher: bytes, trusted: dict[bytes, str]) -> str:
    """Return the name under which the publisher of a bundle is trusted.

    Args:
        publisher: the 32 bytes of the key that is said to have signed it.
        trusted: public keys and the names their owner gave them.

    Raises:
        Untrusted: nobody named that key as trusted.
        Forged: the signature does not hold.
    """
    name = trusted.get(publisher)
    if name is None:
        raise Untrusted(
            f"bundle {digest[:12]} is signed by key {fingerprint(publisher)}, which is not trusted here; "
            "add it to [trust] publishers"
        )
    try:
        Ed25519PublicKey.from_public_bytes(publisher).verify(signature, _BUNDLE_CONTEXT + digest.encode())
    except (InvalidSignature, ValueError) as error:
        raise Forged(f"bundle {digest[:12]} does not carry a signature of {name!r}") from error
    return name


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What a device needs to join: where, whom to believe, and a secret.

    Attributes:
        url: the coordinator's address, https.
        ca_fingerprint: SHA-256 (hex) of the services CA's certificate in DER: whom to believe at that address.
        secret: 32 random bytes; the coordinator keeps a hash.
    """

    url: str
    ca_fingerprint: str
    secret: bytes

    def spell(self) -> str:
        """Return the token as the text a person pastes."""
        body = msgspec.msgpack.encode([self.url, self.ca_fingerprint, self.secret])
        return _TOKEN_PREFIX + base64.urlsafe_b64encode(body).decode().rstrip("=")

    @property
    def hashed(self) -> str:
        """What the coordinator keeps of the secret."""
        return hashlib.sha256(b"fedfleet token 1\0" + self.secret).hexdigest()

    def __repr__(self) -> str:
        return f"JoinToken(url={self.url!r}, secret=<hidden>)"


def read_token(text: str) -> JoinToken:
    """Return the token spelled in `text`.

    Raises:
        Malformed: it is not a whole join token.
    """
    text = text.strip()
    if not text.startswith(_TOKEN_PREFIX):
        raise Malformed(f"a join token begins with {_TOKEN_PREFIX}; make one with: fedfleet token create")
    body = text[len(_TOKEN_PREFIX) :]
    try:
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        url, ca_fingerprint, secret = msgspec.msgpack.decode(raw, type=tuple[str, str, bytes])
    except (ValueError, msgspec.MsgspecError) as error:
        raise Malformed("the join token is cut off or mistyped; copy it whole") from error
    if not url.startswith("https://") or len(secret) != 32:
        raise Malformed("the join token does not hold an https address and a secret of 32 bytes")
    return JoinToken(url, ca_fingerprint, secret)


def _covered(sender: str, to: str, body: bytes) -> bytes:
    return _CONTEXT + msgspec.msgpack.encode([sender, to]) + body
