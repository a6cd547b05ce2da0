"""Trust: an envelope can be lost, kept and repeated, but neither written nor redirected by who carries it."""

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given
from hypothesis import strategies as st

from fedfleet_protocol import trust
from fedfleet_protocol.errors import Forged, Malformed, NewerSchema, ProtocolError, TooLarge, Untrusted
from fedfleet_protocol.ids import agent_id
from fedfleet_protocol.trust import HUB, Envelope, JoinToken, check_bundle, open_envelope, read_token, seal, sign_bundle

HUB_KEY, OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32)), Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
AGENT, OTHER = agent_id(bytes(16)), agent_id(b"\1" * 16)
SEALED = seal(HUB_KEY, b"train", sender=HUB, to=AGENT)
DIGEST = "4f" * 32


def opened(data: bytes, *, sender: str = HUB, to: str = AGENT) -> bytes:
    return open_envelope(data, HUB_KEY.public_key(), sender=sender, to=to)


@given(st.binary(max_size=300))
def test_who_it_is_for_reads_what_was_written(body: bytes) -> None:
    assert opened(seal(HUB_KEY, body, sender=HUB, to=AGENT)) == body


def test_an_envelope_of_another_key_is_forged() -> None:
    with pytest.raises(Forged, match="does not hold"):
        opened(seal(OTHER_KEY, b"train", sender=HUB, to=AGENT))


def test_an_envelope_for_another_is_not_read_even_if_the_address_was_rewritten() -> None:
    with pytest.raises(Forged, match="belongs"):
        opened(SEALED, to=OTHER)
    envelope = msgspec.msgpack.decode(SEALED, type=Envelope)
    with pytest.raises(Forged, match="does not hold"):
        opened(msgspec.msgpack.encode(msgspec.structs.replace(envelope, to=OTHER)), to=OTHER)


def test_an_envelope_in_another_agents_name_is_forged() -> None:
    with pytest.raises(Forged, match="belongs"):
        opened(seal(HUB_KEY, b"reply", sender=OTHER, to=HUB), sender=AGENT, to=HUB)


def test_sender_and_receiver_cannot_be_shifted_into_one_another() -> None:
    one = msgspec.msgpack.decode(seal(HUB_KEY, b"x", sender="ab", to="c"), type=Envelope)
    with pytest.raises(Forged, match="does not hold"):
        opened(msgspec.msgpack.encode(msgspec.structs.replace(one, sender="a", to="bc")), sender="a", to="bc")


@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
@example(SEALED.index(AGENT.encode()), 0x80)  # text that is not UTF-8
@example(3, 1)  # version 0
def test_a_changed_byte_never_changes_what_is_read(where: int, change: int) -> None:
    changed = bytearray(SEALED)
    changed[where] ^= change
    try:
        found = opened(bytes(changed))
    except ProtocolError:
        return
    assert found == b"train", "a lower version number is the one byte that nothing depends on"


@given(st.integers(0, len(SEALED) - 1))
def test_an_envelope_that_is_cut_off_is_malformed(length: int) -> None:
    with pytest.raises(Malformed):
        opened(SEALED[:length])


def test_an_envelope_of_a_later_schema_is_refused_in_words() -> None:
    envelope = msgspec.structs.replace(msgspec.msgpack.decode(SEALED, type=Envelope), v=2)
    with pytest.raises(NewerSchema, match="update this side"):
        opened(msgspec.msgpack.encode(envelope))


def test_an_envelope_larger_than_any_message_is_refused_unread() -> None:
    with pytest.raises(TooLarge):
        opened(bytes(trust.MAX_ENVELOPE_BYTES + 1))


@given(st.binary(max_size=200))
def test_random_bytes_are_no_envelope_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        opened(data)


PUBLIC = HUB_KEY.public_key().public_bytes_raw()
TRUSTED = {PUBLIC: "lab-a"}


def test_a_bundle_of_a_trusted_publisher_is_taken_under_the_owners_name_for_it() -> None:
    assert check_bundle(DIGEST, sign_bundle(HUB_KEY, DIGEST), PUBLIC, TRUSTED) == "lab-a"


def test_a_bundle_of_an_unknown_publisher_is_untrusted_and_the_remedy_is_named() -> None:
    public = OTHER_KEY.public_key().public_bytes_raw()
    with pytest.raises(Untrusted, match=r"add it to \[trust\] publishers") as caught:
        check_bundle(DIGEST, sign_bundle(OTHER_KEY, DIGEST), public, TRUSTED)
    assert trust.fingerprint(public) in str(caught.value)


@pytest.mark.parametrize(
    "signature", [b"", bytes(64), bytes(65), sign_bundle(OTHER_KEY, DIGEST), sign_bundle(HUB_KEY, "00" * 32)]
)
def test_a_bundle_whose_signature_does_not_hold_is_forged(signature: bytes) -> None:
    with pytest.raises(Forged, match="lab-a"):
        check_bundle(DIGEST, signature, PUBLIC, TRUSTED)


def test_a_trusted_name_for_what_is_no_key_lets_nothing_in() -> None:
    with pytest.raises(Forged):
        check_bundle(DIGEST, bytes(64), b"short", {b"short": "typo"})


def test_a_signed_envelope_does_not_pass_for_a_signed_bundle() -> None:
    envelope = msgspec.msgpack.decode(seal(HUB_KEY, DIGEST.encode(), sender=HUB, to=AGENT), type=Envelope)
    with pytest.raises(Forged):
        check_bundle(DIGEST, envelope.sig, PUBLIC, TRUSTED)


TOKEN = JoinToken("https://hub.example:8443", "ab" * 32, bytes(range(32)))


def test_a_token_is_read_back_from_what_a_person_pastes() -> None:
    assert read_token(f"  {TOKEN.spell()}\n") == TOKEN


def test_neither_the_token_nor_its_hash_shows_the_secret() -> None:
    assert TOKEN.secret.hex() not in repr(TOKEN) + TOKEN.hashed
    assert str(TOKEN.secret) not in repr(TOKEN)


def test_a_token_that_is_cut_off_says_so() -> None:
    spelled = TOKEN.spell()
    for length in range(len("fft1."), len(spelled)):
        with pytest.raises(Malformed, match=r"copy it whole|does not hold"):
            read_token(spelled[:length])


@pytest.mark.parametrize("text", ["", "hello", "fft2.abc"])
def test_anything_else_is_no_token_and_the_remedy_is_named(text: str) -> None:
    with pytest.raises(Malformed, match="fedfleet token create"):
        read_token(text)


def test_a_token_for_an_address_without_tls_is_refused() -> None:
    with pytest.raises(Malformed, match="https"):
        read_token(JoinToken("http://hub.example", "ab" * 32, bytes(32)).spell())


@given(st.text(max_size=80))
def test_random_text_is_no_token_and_nothing_worse(text: str) -> None:
    for candidate in (text, f"fft1.{text}"):
        with pytest.raises(Malformed):
            read_token(candidate)
