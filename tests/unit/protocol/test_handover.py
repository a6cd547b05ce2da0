"""The words between agent and trainer: whole frames out of any pieces, and nothing believed that is not one."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet_protocol import handover
from fedfleet_protocol.errors import Malformed, NewerSchema, ProtocolError, TooLarge
from fedfleet_protocol.ids import Digest, Order, RunId

FILE = handover.File("reply-1", Digest("0" * 64), 3, bytes(32))
TO_TRAINER = [
    handover.Load(run=RunId("r-x"), bundle="bundle", limits=handover.Limits(memory_bytes=1 << 30)),
    handover.Work(order=Order("1" * 64), message="m", state="s", node_config={"a": True, "b": 1, "c": 1.0, "d": "x"}),
    handover.Stop(),
]
TO_AGENT = [
    handover.Loaded(warnings=("x",)),
    handover.LoadFailed(code="packages", text="torch"),
    handover.Alive(cpu_s=1.5, memory_bytes=3),
    handover.Output(stream="stderr", lines=("a", "b"), dropped=7),
    handover.Done(order=Order("1" * 64), reply=FILE, state=FILE, failed=False),
    handover.Failed(order=Order("1" * 64), code="outside", text="killed"),
]


def unpack(data: bytes) -> bytes:
    (body,) = handover.FrameReader().feed(data)
    return body


def test_every_frame_comes_back_as_it_was() -> None:
    for frame in TO_TRAINER:
        assert handover.for_trainer(unpack(handover.pack(frame))) == frame
    for frame in TO_AGENT:
        assert handover.for_agent(unpack(handover.pack(frame))) == frame


def test_values_of_a_configuration_keep_their_types() -> None:
    found = handover.for_trainer(unpack(handover.pack(TO_TRAINER[1])))
    assert isinstance(found, handover.Work)
    assert [type(value) for value in found.node_config.values()] == [bool, int, float, str]


@given(st.lists(st.integers(1, 60), min_size=1))
def test_frames_come_whole_out_of_pieces_of_any_length(lengths: list[int]) -> None:
    data = b"".join(handover.pack(frame) for frame in TO_AGENT)
    reader, found, start = handover.FrameReader(), [], 0
    for length in [*lengths, len(data)]:
        found += reader.feed(data[start : start + length])
        start += length
    assert [handover.for_agent(body) for body in found] == TO_AGENT


def test_neither_side_takes_the_others_words_for_its_own() -> None:
    with pytest.raises(Malformed):
        handover.for_agent(unpack(handover.pack(TO_TRAINER[0])))
    with pytest.raises(Malformed):
        handover.for_trainer(unpack(handover.pack(TO_AGENT[0])))


def test_a_frame_of_a_later_schema_is_refused_in_words() -> None:
    body = msgspec.msgpack.encode({"v": 2, "kind": "stop"})
    with pytest.raises(NewerSchema, match="update this side"):
        handover.for_trainer(body)


def test_a_claimed_length_of_gigabytes_is_refused_before_anything_is_kept() -> None:
    with pytest.raises(TooLarge):
        handover.FrameReader().feed((10 << 30 & 0xFFFFFFFF | 0x80000000).to_bytes(4, "little"))
    with pytest.raises(TooLarge):
        handover.pack(handover.Output(lines=("x" * (handover.MAX_FRAME_BYTES + 1),)))


@given(st.binary(max_size=80))
def test_anything_else_is_malformed_and_nothing_worse(body: bytes) -> None:
    for read in (handover.for_agent, handover.for_trainer):
        with pytest.raises(ProtocolError):
            read(body)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../key", "a/b", "/etc/passwd", ".hidden", "a\0b", "x" * 101, "A", "a\n"]
)
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(Malformed):
        handover.check_file_name(name)


def test_a_plain_name_is_taken() -> None:
    assert handover.check_file_name("reply-17.part") == "reply-17.part"
