"""Flower's messages and record dicts <-> contents (`fedfleet_protocol.records`), no tensor copied on the way.

To bytes: `from_message` or `from_records`, then `write_content`, which computes the block digests in the same pass.
From bytes: `read_content`, whose arrays stay in the file until the app looks at them.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedfleet_flower.arrays import Descriptor, FileArray, split
from fedfleet_flower.errors import Unsendable
from fedfleet_flower.mapping import private_bytes
from fedfleet_protocol.blocks import BLOCK_BYTES, BlockHasher, BlockList
from fedfleet_protocol.errors import Malformed, TooLarge
from fedfleet_protocol.records import (
    ArrayEntry,
    ArrayValue,
    Content,
    Failure,
    Manifest,
    RecordEntry,
    RecordValue,
    Scalar,
    Value,
    decode,
    encode,
)

_Record = ArrayRecord | MetricRecord | ConfigRecord


def from_message(message: Message) -> Content:
    """Return the content of a Flower message, or of the error it carries.

    Raises:
        Unsendable: it holds what no other side could read; the app's fault.
    """
    kind, group = message.metadata.message_type, message.metadata.group_id
    if message.has_error():
        return from_failure(message.error.code, message.error.reason or "", message_type=kind, group_id=group)
    return from_records(message.content, message_type=kind, group_id=group)


def from_failure(code: int, reason: str, *, message_type: str = "", group_id: str = "") -> Content:
    """Return the content of a Flower `Error`."""
    clean = reason.encode("utf-8", "replace").decode()
    return encode(message_type=message_type, group_id=group_id, failure=Failure(code, clean))


def from_records(records: RecordDict, *, message_type: str = "", group_id: str = "") -> Content:
    """Return the content of a record dict: a message's, or an app's state.

    Raises:
        Unsendable: it holds what no other side could read; the app's fault.
    """
    values = tuple(_record_value(name, record) for name, record in records.items())
    try:
        return encode(values, message_type=message_type, group_id=group_id)
    except (OverflowError, UnicodeEncodeError, TypeError, msgspec.MsgspecError, TooLarge) as error:
        raise Unsendable(f"these records cannot be sent: {error}") from error


def write_content(target: Path | int, content: Content) -> BlockList:
    """Return the list of blocks of `content`, which is now written to a new file or to an open one.

    Nothing is synced. A new file that could not be written whole is removed.

    Raises:
        OSError: no space, over the file-size limit, or the file is there already.
    """
    if isinstance(target, int):
        return _write(target, content.pieces())
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        return _write(fd, content.pieces())
    except BaseException:
        with suppress(OSError):
            os.unlink(target)
        raise
    finally:
        os.close(fd)


class StoredContent:
    """A content in a file that is kept open as long as one of its arrays lives.

    Attributes:
        manifest: what is in it.
    """

    def __init__(self, file: Descriptor, manifest: Manifest) -> None:
        self.manifest = manifest
        self._file = file

    @property
    def failure(self) -> Failure | None:
        """The Flower `Error` that came in place of records."""
        return self.manifest.failure

    def records(self) -> RecordDict:
        """Return the record dict; its arrays are `FileArray`s and were not read.

        Raises:
            Malformed: a record holds values that Flower does not allow there; the writer's fault.
        """
        result = RecordDict()
        for entry in self.manifest.records:
            try:
                result[entry.name] = self._record(entry)
            except TypeError as error:
                raise Malformed(f"record {entry.name[:80]!r} holds what Flower does not allow: {error}") from error
        return result

    def payload(self) -> RecordDict | Error:
        """Return what a Flower message carries: records, or an error."""
        failure = self.failure
        return self.records() if failure is None else Error(failure.code, failure.reason)

    def _record(self, entry: RecordEntry) -> _Record:
        if entry.kind == "metrics":
            return MetricRecord(entry.values)
        if entry.kind == "config":
            return ConfigRecord(entry.values)
        # Item by item: the constructor copies `data` out of each Array.
        record = ArrayRecord()
        for array in entry.arrays:
            record[array.name] = self._array(array)
        return record

    def _array(self, entry: ArrayEntry) -> FileArray:
        return FileArray(
            self._file,
            dtype=entry.dtype,
            shape=entry.shape,
            stype=entry.stype,
            prefix=entry.prefix,
            offset=entry.offset,
            nbytes=entry.nbytes,
        )


def read_content(source: Path | int) -> StoredContent:
    """Return the content of a file; only its manifest was read.

    Args:
        source: a path, or a descriptor that now belongs to the content. The file must not change while it is in use.

    Raises:
        ProtocolError: the file does not hold a content; the writer's fault.
    """
    file = Descriptor(source if isinstance(source, int) else os.open(source, os.O_RDONLY | os.O_CLOEXEC))
    size = os.fstat(file.fd).st_size
    return StoredContent(file, decode(private_bytes(file.fd, 0, size).data))


def _record_value(name: str, record: _Record) -> RecordValue:
    if isinstance(record, ArrayRecord):
        return RecordValue(name, "arrays", tuple(_array_value(key, array) for key, array in record.items()))
    kind = "metrics" if isinstance(record, MetricRecord) else "config"
    return RecordValue(name, kind, (), {str(key): _value(item) for key, item in record.items()})  # type: ignore[arg-type]


def _array_value(name: str, array: Array) -> ArrayValue:
    shape = tuple(int(length) for length in array.shape)
    if any(length < 0 for length in shape):
        raise Unsendable(f"array {name!r} claims the shape {shape}")
    prefix, buffer = split(array)
    return ArrayValue(name, array.dtype, shape, array.stype, prefix, buffer)


def _value(item: object) -> Value:
    return [_scalar(part) for part in item] if isinstance(item, list) else _scalar(item)


def _scalar(item: object) -> Scalar:
    """Return `item` as the plain type it is a kind of: `np.float64` is a float to Flower, and to nobody else."""
    if isinstance(item, bool):
        return item
    for kind in (int, float, str, bytes):
        if isinstance(item, kind):
            return item if type(item) is kind else kind(item)  # type: ignore[arg-type]
    raise Unsendable(f"a value of type {type(item).__name__} is neither a number nor text nor bytes")


def _write(fd: int, pieces: Iterable[bytes | memoryview]) -> BlockList:
    hasher = BlockHasher()
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), BLOCK_BYTES):
            part = view[start : start + BLOCK_BYTES]
            hasher.update(part)
            while len(part):
                part = part[os.write(fd, part) :]
    return hasher.finish()
