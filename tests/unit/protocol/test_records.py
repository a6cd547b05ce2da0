"""Records: raw buffers in, views out; and no claim in a manifest makes this side allocate or read beyond the stream."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet_protocol import records
from fedfleet_protocol.errors import Malformed, NewerSchema, ProtocolError, TooLarge
from fedfleet_protocol.records import ALIGN, ArrayEntry, ArrayValue, Failure, Manifest, RecordEntry, RecordValue, Value

NAME = st.text(max_size=12)
SCALAR = (
    st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False) | NAME | st.binary(max_size=20)
)
LIST = (
    st.lists(st.booleans(), max_size=3)
    | st.lists(st.integers(-(1 << 63), (1 << 64) - 1), max_size=20)
    | st.lists(st.floats(allow_nan=False), max_size=3)
    | st.lists(NAME, max_size=3)
    | st.lists(st.binary(max_size=20), max_size=3)
)
ARRAY = st.builds(
    ArrayValue,
    name=NAME,
    dtype=st.sampled_from(["float32", "<U3", "unknown"]),
    shape=st.lists(st.integers(0, 1 << 40), max_size=4).map(tuple),
    stype=NAME,
    prefix=st.binary(max_size=130),
    buffer=st.binary(max_size=200).map(memoryview),
)
RECORD = st.builds(
    RecordValue, name=NAME, kind=st.just("arrays"), arrays=st.lists(ARRAY, max_size=4).map(tuple)
) | st.builds(
    RecordValue,
    name=NAME,
    kind=st.sampled_from(["metrics", "config"]),
    values=st.dictionaries(NAME, SCALAR | LIST, max_size=4),
)
RECORDS = st.lists(RECORD, max_size=4, unique_by=lambda record: record.name).map(tuple)


def bytes_of(*given: RecordValue, **options: Any) -> bytes:
    return b"".join(records.encode(given, **options).pieces())


def array(name: str, buffer: bytes | bytearray) -> ArrayValue:
    return ArrayValue(name, "float32", (len(buffer) // 4,), "numpy.ndarray", b"\x93NUMPY", memoryview(buffer))


def stream(manifest: Manifest | dict[str, Any], body: bytes = b"") -> bytes:
    """What a peer that follows no rules might send."""
    spelled = msgspec.msgpack.encode(manifest)
    head = (records.MAGIC + len(spelled).to_bytes(8, "little") + spelled).ljust(1024, b"\0")
    assert len(head) == 1024
    return head + body


def one_record(*entries: ArrayEntry) -> Manifest:
    return Manifest(records=(RecordEntry("model", "arrays", entries),))


def entry(name: str, offset: int, nbytes: int) -> ArrayEntry:
    return ArrayEntry(name, "float32", (nbytes // 4,), "numpy.ndarray", b"", offset, nbytes)


@given(RECORDS, NAME, NAME)
def test_records_come_back_as_they_went_in(given: tuple[RecordValue, ...], message_type: str, group_id: str) -> None:
    data = bytes_of(*given, message_type=message_type, group_id=group_id)
    found = records.decode(data)
    assert (found.message_type, found.group_id, found.failure) == (message_type, group_id, None)
    assert [(record.name, record.kind, record.values) for record in found.records] == [
        (record.name, record.kind, record.values) for record in given
    ]
    for record, sent in zip(found.records, given, strict=True):
        assert [value_of(data, item) for item in record.arrays] == list(sent.arrays)


def value_of(data: bytes, item: ArrayEntry) -> ArrayValue:
    buffer = memoryview(data)[item.offset : item.offset + item.nbytes]
    return ArrayValue(item.name, item.dtype, item.shape, item.stype, item.prefix, buffer)


@given(RECORDS)
def test_buffers_are_aligned_and_the_size_is_known_before_a_byte_is_written(given: tuple[RecordValue, ...]) -> None:
    content = records.encode(given)
    data = b"".join(content.pieces())
    assert len(data) == content.size
    assert records.decode(data) == content.manifest
    assert all(item.offset % ALIGN == 0 for record in content.manifest.records for item in record.arrays)
    assert content.manifest.nbytes == sum(len(item.buffer) for record in given for item in record.arrays)


@given(RECORDS)
def test_equal_contents_have_equal_bytes(given: tuple[RecordValue, ...]) -> None:
    assert bytes_of(*given) == bytes_of(*given)


@pytest.mark.parametrize(
    "value", [True, 1, 1.0, "1", b"1", [True, False], [1, 2], [1.0], ["a"], [b"a"], [], [7] * 70_000]
)
def test_a_value_keeps_its_type(value: Value) -> None:
    found = records.decode(bytes_of(RecordValue("r", "config", values={"x": value}))).records[0].values["x"]
    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    "values", [{"x": {"nested": 1}}, {"x": None}, {"x": [[1]]}, {"x": [None]}, {"x": [1, "a"]}, {"x": ["a", b"a"]}]
)
def test_a_value_that_flower_has_no_place_for_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(Malformed, match="cannot be read: Expected"):
        records.decode(stream(Manifest(records=(RecordEntry("r", "config", values=values),))))


@pytest.mark.parametrize("item", [b"\x90", b"\x80", b"\xc0"], ids=["lists", "maps", "nothings"])
def test_a_manifest_of_nothing_but_small_things_does_not_take_many_times_its_size(item: bytes) -> None:
    count = 4 << 20
    head = b"\x82\xa1v\x01\xa7records\x91\x83\xa4name\xa1x\xa4kind\xa6config\xa6values\x81\xa1x\xdd"
    data = stream_of(head + count.to_bytes(4, "big") + item * count)
    tracemalloc.start()
    try:
        with pytest.raises(Malformed):
            records.decode(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(data)


def test_a_failure_travels_in_place_of_records() -> None:
    data = bytes_of(message_type="train", failure=Failure(3, "the app raised ValueError"))
    assert records.decode(data).failure == Failure(3, "the app raised ValueError")


def test_a_large_tensor_is_not_copied_on_its_way_in() -> None:
    tensor = bytearray(64 << 20)
    tracemalloc.start()
    try:
        content = records.encode((RecordValue("m", "arrays", (array("w", tensor),)),))
        assert sum(len(piece) for piece in content.pieces()) == content.size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert content.manifest.nbytes == len(tensor)
    assert peak < 1 << 20


def test_a_large_tensor_is_not_copied_on_its_way_out() -> None:
    data = bytes_of(RecordValue("m", "arrays", (array("w", bytes(64 << 20)),)))
    tracemalloc.start()
    try:
        found = records.decode(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.nbytes == 64 << 20
    assert peak < 1 << 20


@given(RECORDS, st.data())
def test_a_stream_that_is_cut_off_anywhere_is_refused_or_lacks_nothing(
    given: tuple[RecordValue, ...], data: st.DataObject
) -> None:
    whole = bytes_of(*given)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        found = records.decode(cut)
    except Malformed:
        return
    assert found == records.decode(whole), "only padding was cut"
    assert all(item.offset + item.nbytes <= len(cut) for record in found.records for item in record.arrays)


def test_a_truncated_manifest_is_named_as_such() -> None:
    whole = bytes_of(RecordValue("r", "config", values={"x": "y" * 500}))
    with pytest.raises(Malformed, match="the stream is cut off"):
        records.decode(whole[:100])


@pytest.mark.parametrize(
    "hostile",
    [
        records.MAGIC + (10 << 30).to_bytes(8, "little") + b"\x80",
        records.MAGIC + ((1 << 64) - 1).to_bytes(8, "little"),
        stream(one_record(entry("w", 1024, 10 << 30))),
        stream(one_record(entry("w", 10 << 30, 64)), bytes(64)),
        stream(one_record(entry("w", 1024, (1 << 64) - 1))),
        stream({"v": 1, "records": [{"name": "m", "kind": "arrays", "arrays": [["w", "f", [], "", b"", 1024, -64]]}]}),
        records.MAGIC + (6).to_bytes(8, "little") + b"\xdf\xff\xff\xff\xff\x00",
        records.MAGIC + (20).to_bytes(8, "little") + b"\x81\xa7records\xdd\xff\xff\xff\xff".ljust(20, b"\0"),
        records.MAGIC + (1 << 16).to_bytes(8, "little") + b"\x91" * (1 << 16),
    ],
    ids=["manifest", "manifest64", "array", "offset", "array64", "negative", "map", "list", "nested"],
)
def test_a_claimed_length_of_10_gb_is_refused_and_allocates_nothing(hostile: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Malformed):
            records.decode(hostile)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (entry("a", 1024, 128), entry("b", 1024, 128)),
        (entry("a", 1024, 128), entry("b", 1088, 64)),
        (entry("a", 1152, 64), entry("b", 1024, 64)),
    ],
    ids=["same", "overlapping", "backwards"],
)
def test_buffers_that_overlap_or_run_backwards_are_refused(first: ArrayEntry, second: ArrayEntry) -> None:
    with pytest.raises(Malformed, match="after byte"):
        records.decode(stream(one_record(first, second), bytes(256)))


def test_a_buffer_that_reaches_into_the_manifest_is_refused() -> None:
    with pytest.raises(Malformed, match="after byte"):
        records.decode(stream(one_record(entry("w", 0, 64))))


def test_a_buffer_that_is_not_aligned_is_refused() -> None:
    with pytest.raises(Malformed):
        records.decode(stream(one_record(entry("w", 1025, 4)), bytes(64)))


def test_two_records_of_one_name_are_refused() -> None:
    record = RecordEntry("model", "arrays")
    with pytest.raises(Malformed, match="same name"):
        records.decode(stream(Manifest(records=(record, record))))


def test_a_later_schema_is_refused_in_words_whatever_else_it_holds() -> None:
    with pytest.raises(NewerSchema, match=r"schema 2, .* understands up to 1: update this side"):
        records.decode(stream({"v": 2, "records": "something else altogether"}))


def test_a_field_that_a_later_release_added_is_passed_over() -> None:
    assert records.decode(stream({"v": 1, "message_type": "train", "added": [1, 2]})).message_type == "train"


def test_a_manifest_that_the_other_side_would_not_take_is_not_written() -> None:
    with pytest.raises(TooLarge, match="names and values"):
        records.encode((RecordValue("r", "config", values={"x": bytes(records.MAX_MANIFEST_BYTES)}),))


def stream_of(manifest: bytes) -> bytes:
    return records.MAGIC + len(manifest).to_bytes(8, "little") + manifest


MANGLE: list[Callable[[bytes], bytes]] = [
    lambda data: data,
    lambda data: records.MAGIC + data,
    stream_of,
]


def test_text_that_is_not_utf8_is_malformed() -> None:
    with pytest.raises(Malformed, match="cannot be read"):
        records.decode(stream_of(b"\x81\xacmessage_type\xa1\xff"))


@given(st.binary(max_size=200), st.sampled_from(MANGLE))
def test_random_bytes_are_refused_and_nothing_worse(data: bytes, mangle: Callable[[bytes], bytes]) -> None:
    for read in (records.peek, records.decode):
        try:
            read(mangle(data))
        except ProtocolError:
            return
    assert mangle(data).startswith(records.MAGIC)


@given(RECORDS, st.data())
def test_a_stream_with_one_byte_changed_is_refused_or_stays_within_itself(
    given: tuple[RecordValue, ...], data: st.DataObject
) -> None:
    whole = bytearray(bytes_of(*given))
    where = data.draw(st.integers(0, len(whole) - 1))
    whole[where] ^= data.draw(st.integers(1, 255))
    try:
        found = records.decode(whole)
    except ProtocolError:
        return
    assert all(0 <= item.offset <= item.offset + item.nbytes <= len(whole) for r in found.records for item in r.arrays)
