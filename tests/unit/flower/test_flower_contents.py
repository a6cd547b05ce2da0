"""What goes into a content comes out of it: every dtype, order and shape, byte for byte, nothing read unasked."""

import copy
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedfleet_flower import compat
from fedfleet_flower.arrays import FileArray, split
from fedfleet_flower.contents import from_failure, from_message, from_records, read_content, write_content
from fedfleet_flower.errors import BridgeError, Unsendable
from fedfleet_protocol.blocks import blocks_of
from fedfleet_protocol.errors import Malformed, ProtocolError

pytestmark = pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
BIG = 1 << 20
"""Bytes of an array that is certainly mapped and not read."""


def stored(records: RecordDict, folder: Path) -> RecordDict:
    path = folder / f"content-{len(os.listdir(folder))}"
    blocks = write_content(path, from_records(records))
    assert blocks == blocks_of([path.read_bytes()])
    return read_content(path).records()


def of_arrays(*arrays: Array) -> RecordDict:
    record = ArrayRecord()
    for index, array in enumerate(arrays):
        record[str(index)] = array
    return RecordDict({"arrays": record})


def assert_same(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    assert found.tobytes() == wanted.tobytes()
    assert found.flags.f_contiguous == wanted.flags.f_contiguous
    assert found.flags.writeable


SCALARS = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
    hnp.complex_number_dtypes(endianness="?"),
    hnp.datetime64_dtypes(endianness="?"),
    hnp.timedelta64_dtypes(endianness="?"),
    hnp.unicode_string_dtypes(endianness="?"),
    hnp.byte_string_dtypes(),
)
DTYPES = st.one_of(SCALARS, hnp.array_dtypes(SCALARS, max_size=3), st.just(np.dtype("V7")))
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)


@given(dtype=DTYPES, shape=SHAPES, fortran=st.booleans(), data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arrays_of_every_dtype_come_back_byte_for_byte(
    tmp_path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool, data: st.DataObject
) -> None:
    array = np.frombuffer(data.draw(st.binary(min_size=64, max_size=64)) * 100, np.uint8)
    count = int(np.prod(shape, dtype=int)) * dtype.itemsize
    whole = np.resize(array, count).tobytes()
    if dtype.kind == "U" or dtype.fields:
        whole = bytes(count)  # any four bytes are not a character
    wanted = np.ndarray(shape, dtype, whole) if count else np.zeros(shape, dtype)
    if fortran and wanted.ndim:
        wanted = np.asfortranarray(wanted)
    original = Array(wanted)
    found = stored(of_arrays(original), tmp_path)["arrays"]["0"]
    assert isinstance(found, FileArray)
    assert isinstance(found, Array)
    assert found.data == original.data
    assert found == original
    assert original == found
    assert_same(found.numpy(), original.numpy())


@pytest.mark.parametrize(
    "wanted",
    [
        np.array(3.5),
        np.array("zürich"),
        np.zeros((0, 4), "f4"),
        np.array(["a", "bcd", ""]),
        np.asfortranarray(np.arange(BIG // 4, dtype=">f4").reshape(512, -1)),
        np.arange(BIG, dtype=np.uint8).reshape(2, -1)[:, ::2],
        np.array([(1, 2.5, "x")], dtype=[("a", "<i2"), ("b", ">f8"), ("c", "<U3")]),
        np.array([(1, 2)], dtype=[("名", "i4"), ("b", "i4")]),
        np.zeros(3, dtype=[(f"field{i}", "f8", (2, 3)) for i in range(200)]),
        np.array([np.nan, np.inf, -0.0], np.float16),
    ],
    ids=[
        "0-d",
        "0-d text",
        "empty",
        "text",
        "big-endian Fortran",
        "strided",
        "structured",
        "utf-8 names",
        "long header",
        "half",
    ],
)
def test_odd_arrays_come_back_byte_for_byte(tmp_path: Path, wanted: np.ndarray[Any, Any]) -> None:
    original = Array(wanted)
    found = stored(of_arrays(original), tmp_path)["arrays"]["0"]
    assert found.data == original.data
    assert_same(found.numpy(), original.numpy())


def test_an_unknown_serialisation_travels_as_it_is(tmp_path: Path) -> None:
    original = Array("bfloat16", (2, 3), "ml.tensor", b"\x93NUMPY, but not really \x00\x01")
    found = stored(of_arrays(original), tmp_path)["arrays"]["0"]
    assert found == original
    assert isinstance(found, Array)
    assert split(found)[0] == b""
    with pytest.raises(TypeError, match="Unsupported serialization type"):
        found.numpy()


@pytest.mark.parametrize(
    "data", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff", b"no header at all", b"\x93NUMPY\x09\x00\x02\x00ab"]
)
def test_a_numpy_array_that_is_none_fails_as_it_would_in_flower(tmp_path: Path, data: bytes) -> None:
    original = Array("float32", (2,), "numpy.ndarray", data)
    found = stored(of_arrays(original), tmp_path)["arrays"]["0"]
    assert found.data == data
    with pytest.raises((ValueError, EOFError)):
        original.numpy()
    with pytest.raises((ValueError, EOFError)):
        found.numpy()


def test_an_object_array_is_not_unpickled(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    found = stored(of_arrays(Array("object", (1,), "numpy.ndarray", buffer.getvalue())), tmp_path)["arrays"]["0"]
    with pytest.raises(ValueError, match="allow_pickle"):
        found.numpy()


def test_two_calls_never_share_memory_and_the_file_is_never_written(tmp_path: Path) -> None:
    records = of_arrays(Array(np.zeros(BIG, np.uint8)), Array(np.zeros(8, np.uint8)))
    write_content(tmp_path / "content", from_records(records))
    before = (tmp_path / "content").read_bytes()
    for array in read_content(tmp_path / "content").records()["arrays"].values():
        one, two = array.numpy(), array.numpy()
        one[:] = 7
        assert not two.any()
        assert not array.numpy().any()
        assert not np.shares_memory(one, two)
    assert (tmp_path / "content").read_bytes() == before


def test_nothing_is_copied_on_the_way_in_or_out(tmp_path: Path) -> None:
    original = Array(np.arange(BIG // 8, dtype=np.int64))
    (piece,) = [p for p in from_records(of_arrays(original)).pieces() if len(p) == BIG]
    assert isinstance(piece, memoryview)
    assert piece.obj is original.data
    found = stored(of_arrays(original), tmp_path)
    mapped = found["arrays"]["0"].numpy()
    assert not mapped.flags.owndata
    # What came from a file goes out again from that file, and is not even read for it.
    again = from_records(found)
    assert [bytes(p) for p in again.pieces()] == [bytes(p) for p in from_records(of_arrays(original)).pieces()]


def test_a_view_outlives_everything_it_came_from(tmp_path: Path) -> None:
    view = stored(of_arrays(Array(np.arange(BIG, dtype=np.int64))), tmp_path)["arrays"]["0"].numpy()[-3:]
    for path in tmp_path.iterdir():
        path.unlink()
    np.testing.assert_array_equal(view, np.arange(BIG)[-3:])


def test_what_an_app_assigns_takes_the_place_of_the_file(tmp_path: Path) -> None:
    found = stored(of_arrays(Array(np.arange(3))), tmp_path)["arrays"]["0"]
    replacement = Array(np.ones(2))
    found.data, found.dtype, found.shape = replacement.data, replacement.dtype, replacement.shape
    assert found == replacement
    np.testing.assert_array_equal(found.numpy(), [1, 1])
    again = stored(of_arrays(found), tmp_path)["arrays"]["0"]
    assert again == replacement
    found.stype = "mine"
    assert stored(of_arrays(found), tmp_path)["arrays"]["0"].stype == "mine"


def test_copies_are_ordinary_arrays(tmp_path: Path) -> None:
    found = stored(of_arrays(Array(np.arange(3))), tmp_path)["arrays"]["0"]
    for twin in (copy.copy(found), copy.deepcopy(found), ArrayRecord({"a": found})["a"]):
        assert type(twin) is Array
        assert twin == found
    assert found != Array(np.arange(4))
    assert "bytes" not in repr(found)


def test_torch_reads_and_changes_a_state_dict_from_a_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    wanted = {"w": torch.arange(BIG, dtype=torch.float32).reshape(8, -1), "n": torch.tensor(3)}
    record = stored(RecordDict({"arrays": ArrayRecord(wanted)}), tmp_path)["arrays"]
    found = record.to_torch_state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    found["w"] += 1
    assert torch.equal(record.to_torch_state_dict()["w"], wanted["w"])
    assert [array.shape for array in record.to_numpy_ndarrays(keep_input=False)] == [(8, BIG // 8), ()]


VALUES = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    *(st.lists(kind, max_size=4) for kind in (st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))),
)
CONFIGS = st.one_of(
    VALUES,
    st.booleans(),
    st.text(max_size=5),
    st.binary(max_size=5),
    *(st.lists(kind, max_size=4) for kind in (st.booleans(), st.text(max_size=5), st.binary(max_size=5))),
)


@given(metrics=st.dictionaries(st.text(max_size=5), VALUES), config=st.dictionaries(st.text(max_size=5), CONFIGS))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_values_keep_their_types_and_their_order(
    tmp_path: Path, metrics: dict[str, Any], config: dict[str, Any]
) -> None:
    records = RecordDict({"z": ConfigRecord(config), "a": MetricRecord(metrics)})
    found = stored(records, tmp_path)
    assert repr(found) == repr(records)
    assert list(found) == ["z", "a"]


def test_kinds_of_numbers_that_flower_takes_become_plain_ones(tmp_path: Path) -> None:
    values: dict[str, Any] = {"a": np.float64(1.5), "b": [np.float64(2.0)]}
    found: dict[str, Any] = dict(stored(RecordDict({"m": MetricRecord(values)}), tmp_path)["m"])
    assert type(found["a"]) is float
    assert type(found["b"][0]) is float


@pytest.mark.parametrize(
    "records",
    [
        RecordDict({"c": ConfigRecord({"big": 2**70})}),
        RecordDict({"c": ConfigRecord({"text": "\ud800"})}),
        of_arrays(Array("float32", (-1,), "numpy.ndarray", b"")),
    ],
    ids=["huge integer", "half a character", "negative shape"],
)
def test_what_no_other_side_could_read_is_refused_in_words(records: RecordDict) -> None:
    with pytest.raises(Unsendable):
        from_records(records)


def test_a_message_keeps_its_type_and_group(tmp_path: Path) -> None:
    compat.identify(run=5, node=7)
    message = compat.instruction(RecordDict(), run=5, node=7, message_id="m", message_type="train.mine", group_id="3")
    write_content(tmp_path / "reply", from_message(Message(RecordDict(), reply_to=message)))
    manifest = read_content(tmp_path / "reply").manifest
    assert (manifest.message_type, manifest.group_id) == ("train.mine", "3")


def test_an_error_travels_as_a_failure_and_becomes_one_again(tmp_path: Path) -> None:
    compat.identify(run=5, node=7)
    message = compat.instruction(RecordDict(), run=5, node=7, message_id="m", message_type="train")
    write_content(tmp_path / "reply", from_message(Message(Error(6, "no \ud800 luck"), reply_to=message)))
    found = read_content(tmp_path / "reply").payload()
    assert isinstance(found, Error)
    assert (found.code, found.reason) == (6, "no ? luck")
    reply = compat.reply(
        found, run=5, node=7, message_id="r", reply_to=message.metadata.message_id, message_type="train"
    )
    assert reply.has_error()
    assert (reply.metadata.src_node_id, reply.metadata.reply_to_message_id) == (7, "m")


def test_a_record_with_values_that_flower_forbids_is_the_writers_fault(tmp_path: Path) -> None:
    from fedfleet_protocol.records import RecordValue, encode

    write_content(tmp_path / "content", encode((RecordValue("m", "metrics", (), {"a": "text"}),)))
    with pytest.raises(Malformed, match="Flower does not allow"):
        read_content(tmp_path / "content").records()


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_content_that_was_cut_off_is_refused(tmp_path: Path, size: int) -> None:
    write_content(tmp_path / "content", from_records(of_arrays(Array(np.arange(BIG)))))
    data = (tmp_path / "content").read_bytes()
    (tmp_path / "content").write_bytes(data[: size - 64 if size < 0 else size])
    with pytest.raises(ProtocolError):
        read_content(tmp_path / "content")


def test_a_file_cut_off_after_it_was_opened_is_noticed(tmp_path: Path) -> None:
    write_content(tmp_path / "content", from_records(of_arrays(Array(np.arange(BIG)), Array(np.arange(3)))))
    records = read_content(tmp_path / "content").records()
    os.truncate(tmp_path / "content", 4096)
    for array in records["arrays"].values():
        with pytest.raises(BridgeError, match="cut off"):
            array.numpy()


def test_a_content_that_could_not_be_written_leaves_no_file(tmp_path: Path) -> None:
    content = from_failure(2, "x")
    (tmp_path / "there").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write_content(tmp_path / "there", content)
    assert (tmp_path / "there").read_bytes() == b"mine"


def test_dropping_a_content_closes_its_file(tmp_path: Path) -> None:
    write_content(tmp_path / "content", from_records(of_arrays(Array(np.arange(3)))))
    before = len(os.listdir("/proc/self/fd"))
    records = read_content(tmp_path / "content").records()
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del records
    assert len(os.listdir("/proc/self/fd")) == before
