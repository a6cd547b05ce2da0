"""Messages on their way out: each distinct content is encoded once, into a file, and its memory given back.

FedAvg sends N messages that share one record dict; an app may build N record dicts around one array record. Both are
one payload. Once the bytes are in the file, the large arrays that were sent are replaced, in the records the app
holds, by equal ones whose bytes stay in that file: a model that was sent takes no memory until somebody looks at it.
"""

from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, Message, RecordDict

from fedfleet_coordinator.runner.scratch import Scratch
from fedfleet_flower.arrays import Descriptor, FileArray
from fedfleet_flower.contents import StoredContent, from_records, write_content
from fedfleet_flower.mapping import COPY_BELOW
from fedfleet_protocol.blocks import BlockList
from fedfleet_protocol.messages import BlobRef
from fedfleet_protocol.records import Content


@dataclass(frozen=True, slots=True)
class Payload:
    """A content in a file of this process."""

    blob: BlobRef
    blocks: BlockList
    file: Descriptor
    stored: StoredContent


def pack(content: Content, scratch: Scratch) -> Payload:
    """Return `content` as a file; waits while the disk is full."""

    def written() -> tuple[Descriptor, BlockList]:
        file = Descriptor(scratch.file())
        return file, write_content(file.fd, content)

    file, blocks = scratch.write(written)
    return Payload(BlobRef(blocks.digest, blocks.size), blocks, file, StoredContent(file, content.manifest))


def spill(records: RecordDict, payload: Payload) -> None:
    """Replace the large arrays in `records`, which was packed as `payload`, by equal ones that lie in its file."""
    for entry in payload.stored.manifest.records:
        record = records.get(entry.name)
        if not isinstance(record, ArrayRecord):
            continue
        for array in entry.arrays:
            if array.nbytes >= COPY_BELOW and not isinstance(record[array.name], FileArray):
                record[array.name] = FileArray(
                    payload.file, dtype=array.dtype, shape=array.shape, stype=array.stype, prefix=array.prefix,
                    offset=array.offset, nbytes=array.nbytes,
                )  # fmt: skip


class Packer:
    """Packs the messages of one call of the Grid."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._packed: dict[Any, tuple[Payload, list[Array]]] = {}

    def payload(self, message: Message) -> Payload:
        """Return the message's content as a file, the same one for equal contents.

        Raises:
            Unsendable: the content cannot travel; the app's fault.
        """
        content, metadata = message.content, message.metadata
        found = self._packed.get(_key(message))
        if found is not None:
            return found[0]
        encoded = from_records(content, message_type=metadata.message_type, group_id=metadata.group_id)
        payload = pack(encoded, self._scratch)
        del encoded
        spill(content, payload)
        # The arrays are kept with the key: an id is given again once its object is gone.
        self._packed[_key(message)] = payload, _arrays(content)
        return payload


def _key(message: Message) -> Any:
    """Return what two messages have in common if their contents are equal.

    Arrays are told apart by identity; all else by value, because apps change a config between two messages.
    """
    parts: list[Any] = [message.metadata.message_type, message.metadata.group_id]
    for name, record in message.content.items():
        if isinstance(record, ArrayRecord):
            parts.append((name, tuple((key, id(array)) for key, array in record.items())))
        else:
            parts.append((name, type(record).__name__, tuple((key, _typed(value)) for key, value in record.items())))
    return tuple(parts)


def _typed(value: object) -> Any:
    """Return `value` so that 1, 1.0 and True differ."""
    if isinstance(value, list):
        return tuple(_typed(item) for item in value)
    return type(value).__name__, value


def _arrays(content: RecordDict) -> list[Array]:
    return [array for record in content.values() if isinstance(record, ArrayRecord) for array in record.values()]
