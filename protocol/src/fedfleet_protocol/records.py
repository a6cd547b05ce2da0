"""A Flower message's content <-> bytes, without copying a tensor and without knowing Flower or numpy.

Layout of the bytes, all little-endian:

    0   8   magic "FFRECORD"
    8   8   length of the manifest, u64
    16  m   manifest, msgpack of `Manifest`
    ..      zeros to the next multiple of 64
    ..      the arrays' buffers, each at a multiple of 64, in the manifest's order

An array's buffer is what its serialisation holds after a short prefix (numpy's .npy header, kept in the manifest), so
a numpy array lies there raw, aligned, ready to be mapped. A serialisation we do not know travels as opaque bytes with
an empty prefix. Two contents that are equal have equal bytes, so equal digests.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec

from fedfleet_protocol.errors import Malformed, NewerSchema, TooLarge

MAGIC = b"FFRECORD"
SCHEMA = 1
ALIGN = 64
MAX_MANIFEST_BYTES = 64 << 20
_HEAD = 16
_PAD = bytes(ALIGN)

Buffer = bytes | bytearray | memoryview | mmap.mmap
Scalar = bool | int | float | str | bytes
Value = Scalar | list[Scalar]
"""What Flower's metrics and configs hold. The items of a list are all numbers, all text or all bytes."""
Int = Annotated[int, msgspec.Meta(ge=0)]


class ArrayEntry(msgspec.Struct, frozen=True, array_like=True):
    """One array in a manifest.

    Attributes:
        dtype, shape, stype: as Flower's `Array` has them.
        prefix: bytes of the serialisation before the raw buffer; empty for an unknown `stype`.
        offset, nbytes: where the buffer is, in bytes from the start of the content.
    """

    name: str
    dtype: str
    shape: tuple[Int, ...]
    stype: str
    prefix: bytes
    offset: Int
    nbytes: Int


class RecordEntry(msgspec.Struct, frozen=True):
    """One record in a manifest: arrays, or values (metrics, configs)."""

    name: str
    kind: Literal["arrays", "metrics", "config"]
    arrays: tuple[ArrayEntry, ...] = ()
    values: dict[str, Any] = {}


class Failure(msgspec.Struct, frozen=True):
    """A Flower `Error` in place of records."""

    code: int
    reason: str


class Manifest(msgspec.Struct, frozen=True):
    """All of a content but the raw buffers.

    Attributes:
        message_type, group_id: of the Flower message; empty for a record dict on its own (an app's state).
    """

    v: int = SCHEMA
    message_type: str = ""
    group_id: str = ""
    records: tuple[RecordEntry, ...] = ()
    failure: Failure | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all raw buffers, padding left out."""
        return sum(array.nbytes for record in self.records for array in record.arrays)


@dataclass(frozen=True, slots=True)
class ArrayValue:
    """One array on its way in: its serialisation split into prefix and raw buffer, not copied."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stype: str
    prefix: bytes
    buffer: memoryview


@dataclass(frozen=True, slots=True)
class RecordValue:
    """One record on its way in."""

    name: str
    kind: Literal["arrays", "metrics", "config"]
    arrays: tuple[ArrayValue, ...] = ()
    values: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Content:
    """A content as pieces to be written one after the other: nothing was copied but the manifest."""

    manifest: Manifest
    head: bytes
    buffers: tuple[memoryview, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self.head) + sum(_padded(len(buffer)) for buffer in self.buffers)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes, in order."""
        yield self.head
        for buffer in self.buffers:
            yield buffer
            yield _PAD[: _padded(len(buffer)) - len(buffer)]


def encode(
    records: tuple[RecordValue, ...] = (),
    *,
    message_type: str = "",
    group_id: str = "",
    failure: Failure | None = None,
) -> Content:
    """Return the content made of `records`, or of a failure.

    The manifest names absolute offsets, whose own spelling changes its length; they are found by repetition.
    """
    start = _HEAD + ALIGN
    while True:
        manifest = _layout(records, start, message_type=message_type, group_id=group_id, failure=failure)
        body = msgspec.msgpack.encode(manifest)
        needed = _padded(_HEAD + len(body))
        if needed <= start:
            break
        start = needed
    if len(body) > MAX_MANIFEST_BYTES:
        raise TooLarge(f"the records' names and values take {len(body)} bytes; at most {MAX_MANIFEST_BYTES} are taken")
    head = (MAGIC + len(body).to_bytes(8, "little") + body).ljust(start, b"\0")
    buffers = tuple(array.buffer for record in records for array in record.arrays)
    return Content(manifest, head, buffers)


def decode(data: Buffer) -> Manifest:
    """Return the manifest of the content in `data`; the buffers are the slices it names.

    Nothing is allocated that `data` does not already hold, whatever lengths it claims.

    Raises:
        Malformed: `data` is not a content, or a buffer lies outside it; the writer's fault.
        TooLarge: the manifest is larger than this side takes.
        NewerSchema: a later version of fedfleet wrote it.
    """
    view = memoryview(data)
    body = _body(view)
    try:
        _check_values(body)
        manifest = _manifest.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"the manifest of a record stream cannot be read: {error}") from error
    _check(manifest, _HEAD + len(body), len(view))
    return manifest


def peek(data: Buffer) -> "Head":
    """Return what the content in `data` is about, in little memory: the rest is not looked at. Raises as `decode`."""
    return _peek.decode(_body(memoryview(data)))


class Head(msgspec.Struct, frozen=True):
    """The first fields of a manifest."""

    v: int
    message_type: str = ""
    group_id: str = ""


_peek = msgspec.msgpack.Decoder(Head)
_manifest = msgspec.msgpack.Decoder(Manifest)


def _body(view: memoryview) -> memoryview:
    """Return the bytes of the manifest, if they are all there and of a version that we understand."""
    if len(view) < _HEAD or bytes(view[:8]) != MAGIC:
        raise Malformed("these bytes are not a record stream: the first eight are not FFRECORD")
    length = int.from_bytes(view[8:16], "little")
    if length > MAX_MANIFEST_BYTES:
        raise TooLarge(f"a manifest of {length} bytes; at most {MAX_MANIFEST_BYTES} are taken")
    if _HEAD + length > len(view):
        raise Malformed(f"the manifest claims {length} bytes, {len(view) - _HEAD} are there: the stream is cut off")
    body = view[_HEAD : _HEAD + length]
    try:
        version = _peek.decode(body).v
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"the manifest of a record stream cannot be read: {error}") from error
    if version > SCHEMA:
        raise NewerSchema(f"records of schema {version}, this fedfleet understands up to {SCHEMA}: update this side")
    return body


class _Values(msgspec.Struct):
    values: dict[str, msgspec.Raw] = {}


class _AllValues(msgspec.Struct):
    records: tuple[_Values, ...] = ()


_all_values = msgspec.msgpack.Decoder(_AllValues)
_scalar = msgspec.msgpack.Decoder(bool | int | float | str)
_lists = tuple(msgspec.msgpack.Decoder(list[kind]) for kind in (bool | int | float, str, bytes))  # type: ignore[valid-type]
_BYTES = range(0xC4, 0xC7)
_TEXT = (*range(0xA0, 0xC0), *range(0xD9, 0xDC))
_LIST = {0xDC: 3, 0xDD: 5} | dict.fromkeys(range(0x90, 0xA0), 1)
"""First bytes of msgpack's arrays, and how many bytes come before the first item."""


def _check_values(body: memoryview) -> None:
    """Check that values are scalars and lists of scalars, before any is made: 64 MiB of empty lists would take 4 GB.

    msgspec has no type for it, for a union holds `str` or `bytes`.
    """
    for record in _all_values.decode(body).records:
        for raw in record.values.values():
            _check_value(memoryview(raw))


def _check_value(raw: memoryview) -> None:
    before = _LIST.get(raw[0])
    if before is not None and len(raw) > before:
        item = raw[before]
        _lists[1 if item in _TEXT else 2 if item in _BYTES else 0].decode(raw)
    elif before is None and raw[0] not in _BYTES:
        _scalar.decode(raw)


def _padded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def _layout(
    records: tuple[RecordValue, ...], start: int, *, message_type: str, group_id: str, failure: Failure | None
) -> Manifest:
    offset, entries = start, []
    for record in records:
        arrays = []
        for array in record.arrays:
            size = len(array.buffer)
            arrays.append(ArrayEntry(array.name, array.dtype, array.shape, array.stype, array.prefix, offset, size))
            offset += _padded(size)
        entries.append(RecordEntry(record.name, record.kind, tuple(arrays), record.values))
    return Manifest(SCHEMA, message_type, group_id, tuple(entries), failure)


def _check(manifest: Manifest, floor: int, ceiling: int) -> None:
    names = [record.name for record in manifest.records]
    if len(set(names)) != len(names):
        raise Malformed("two records have the same name")
    end = floor
    for record in manifest.records:
        for array in record.arrays:
            if array.offset % ALIGN or array.offset < end or array.offset + array.nbytes > ceiling:
                raise Malformed(
                    f"array {array.name[:80]!r} claims bytes {array.offset} to {array.offset + array.nbytes} "
                    f"of a stream of {ceiling}, after byte {end}"
                )
            end = array.offset + array.nbytes
