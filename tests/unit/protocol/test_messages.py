"""Messages: all kinds have golden files that stay readable; later versions are refused in words, nothing else is."""

from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet_protocol import handover, messages, records
from fedfleet_protocol.errors import Malformed, NewerSchema, ProtocolError, TooLarge
from fedfleet_protocol.messages import AnyMessage, FromAgent, ToAgent, decode, decode_as, encode
from tests.unit.protocol.samples import CONTENT, HANDOVER, MESSAGES, kind_of
from tests.unit.protocol.write_golden import GOLDEN, said

REMEDY = "run: .venv/bin/python -m tests.unit.protocol.write_golden"
FILES = sorted(GOLDEN.glob("*.msgpack"))
FRAMES = get_args(handover.ToTrainer) + get_args(handover.ToAgent)


def family(name: str) -> list[Path]:
    return [path for path in FILES if path.name.startswith(f"{name}.")]


def contains(now: Any, then: Any) -> bool:
    """Whether all that was said then is still said now; fields may have been added."""
    if isinstance(then, dict) and isinstance(now, dict):
        return all(key in now and contains(now[key], value) for key, value in then.items())
    if isinstance(then, list) and isinstance(now, list):
        return len(now) == len(then) and all(map(contains, now, then))
    return bool(now == then) and (type(now) is type(then) or (type(then), type(now)) == (int, float))


def test_there_is_a_sample_of_every_kind_of_message_and_frame() -> None:
    assert {type(message) for message in MESSAGES} == set(get_args(AnyMessage))
    assert {type(frame) for frame in HANDOVER} == set(FRAMES)


@pytest.mark.parametrize("sample", [*MESSAGES, *HANDOVER], ids=kind_of)
def test_a_sample_leaves_no_field_at_its_default(sample: msgspec.Struct) -> None:
    left = [
        field.name
        for field in msgspec.structs.fields(sample)
        if field.name != "v" and getattr(sample, field.name) == field.default
    ]
    assert not left, "give them values in samples.py"


@pytest.mark.parametrize("name", [name for name, _ in said()])
def test_every_kind_has_a_golden_file_of_how_it_is_said_now(name: str) -> None:
    expected = dict(said())[name]
    assert any(path.read_bytes() == expected for path in FILES if path.name.startswith(f"{name}.")), REMEDY


@pytest.mark.parametrize("path", family("messages"), ids=lambda path: path.name)
def test_what_an_earlier_version_said_is_understood_in_full(path: Path) -> None:
    found = decode(path.read_bytes())
    assert kind_of(found) == path.name.split(".")[1]
    assert contains(msgspec.msgpack.decode(encode(found)), msgspec.msgpack.decode(path.read_bytes()))


@pytest.mark.parametrize("path", family("handover"), ids=lambda path: path.name)
def test_what_an_earlier_agent_or_trainer_said_is_understood_in_full(path: Path) -> None:
    body, kind = path.read_bytes(), path.name.split(".")[1]
    to_trainer = kind in {frame.__name__.lower() for frame in get_args(handover.ToTrainer)}
    found = handover.for_trainer(body) if to_trainer else handover.for_agent(body)
    assert kind_of(found) == kind
    assert contains(msgspec.msgpack.decode(msgspec.msgpack.encode(found)), msgspec.msgpack.decode(body))


@pytest.mark.parametrize("path", family("records"), ids=lambda path: path.name)
def test_a_content_of_an_earlier_version_is_read_in_full(path: Path) -> None:
    found = records.decode(path.read_bytes())
    assert contains(
        msgspec.msgpack.decode(msgspec.msgpack.encode(found)),
        msgspec.msgpack.decode(msgspec.msgpack.encode(CONTENT.manifest)),
    )


@pytest.mark.parametrize("message", MESSAGES, ids=kind_of)
def test_a_message_comes_back_as_it_was(message: messages.Message) -> None:
    assert decode(encode(message)) == message
    assert decode_as(type(message), memoryview(encode(message))) == message


@pytest.mark.parametrize("message", MESSAGES, ids=kind_of)
def test_a_message_of_a_later_schema_is_refused_in_words(message: messages.Message) -> None:
    later = {**msgspec.msgpack.decode(encode(message)), "v": 2}
    with pytest.raises(NewerSchema, match=rf"'{kind_of(message)}' has schema 2.*: update this side"):
        decode(msgspec.msgpack.encode(later))


def test_a_kind_that_only_a_later_schema_has_is_newer_and_one_that_none_has_is_malformed() -> None:
    with pytest.raises(NewerSchema):
        decode(msgspec.msgpack.encode({"v": 2, "kind": "teleport"}))
    with pytest.raises(Malformed):
        decode(msgspec.msgpack.encode({"v": 1, "kind": "teleport"}))


@pytest.mark.parametrize("message", MESSAGES, ids=kind_of)
def test_a_field_that_a_later_release_added_is_passed_over(message: messages.Message) -> None:
    more = {**msgspec.msgpack.decode(encode(message)), "added_later": [1, {"x": None}]}
    assert decode(msgspec.msgpack.encode(more)) == message


def test_a_message_that_is_too_large_is_refused_unread() -> None:
    with pytest.raises(TooLarge, match="at most"):
        decode(bytes(messages.MAX_MESSAGE_BYTES + 1))
    with pytest.raises(TooLarge, match="at most 10"):
        decode(encode(MESSAGES[0]), limit=10)


def test_another_kind_than_the_expected_one_is_refused_by_name() -> None:
    with pytest.raises(Malformed, match="expected Reply, got Over"):
        decode_as(messages.Reply, encode(messages.Over()))


def test_what_an_agent_may_say_and_what_it_may_be_told_have_nothing_in_common() -> None:
    assert not set(get_args(FromAgent)) & set(get_args(ToAgent))


def test_text_that_is_not_utf8_is_malformed() -> None:
    with pytest.raises(Malformed):
        decode(b"\x83\xa1v\x01\xa4kind\xa4over\xa3run\xa1\xff")
    with pytest.raises(Malformed):
        handover.for_trainer(b"\x83\xa1v\x01\xa4kind\xa4load\xa6bundle\xa1\xff")


@pytest.mark.parametrize(
    "body", [b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
)
def test_what_nests_deeply_or_claims_gigabytes_is_malformed(body: bytes) -> None:
    for data in (body, b"\x83\xa1v\x01\xa4kind\xa3ask\xa4held" + body, b"\x83\xa1v\x01\xa4kind\xa3ask\xa1z" + body):
        with pytest.raises(Malformed):
            decode(data)
        with pytest.raises(Malformed):
            handover.for_agent(data)


@given(st.binary(max_size=200))
def test_random_bytes_are_no_message_and_nothing_worse(data: bytes) -> None:
    for read in (decode, handover.for_agent, handover.for_trainer):
        with pytest.raises(ProtocolError):
            read(data)


@given(st.sampled_from([encode(message) for message in MESSAGES]), st.data())
def test_a_message_with_one_byte_changed_is_refused_or_is_a_message(body: bytes, data: st.DataObject) -> None:
    changed = bytearray(body)
    changed[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = decode(bytes(changed))
    except ProtocolError:
        return
    assert isinstance(found, get_args(AnyMessage))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(MESSAGES), st.data())
def test_a_field_of_any_other_type_is_refused_or_fits(message: messages.Message, data: st.DataObject) -> None:
    fields = msgspec.msgpack.decode(encode(message))
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(JSON)
    try:
        found = decode(msgspec.msgpack.encode(fields))
    except ProtocolError:
        return
    assert type(found) is type(message)
