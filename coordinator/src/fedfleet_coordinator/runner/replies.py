"""Replies on their way in: a sequence of known length whose items load when somebody looks.

Apps use what a Grid returns as a list: they take its length, go through it twice, and change what is in it. A message
here is therefore the same object each time it is asked for, and costs little, because its arrays stay in their file.
Where even that would add up (thousands of agents times hundreds of layers) a message lives only as long as somebody
holds it, and the memory of an exchange stays flat.
"""

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from numpy.typing import NDArray

from fedfleet_coordinator.runner import gate
from fedfleet_flower import compat
from fedfleet_flower.arrays import Descriptor
from fedfleet_flower.contents import StoredContent
from fedfleet_flower.errors import BridgeError
from fedfleet_flower.mapping import private_bytes
from fedfleet_protocol.errors import ProtocolError, TooLarge
from fedfleet_protocol.ids import AgentId, RunId, flower_number
from fedfleet_protocol.records import MAX_MANIFEST_BYTES, decode

KEEP_ARRAYS = 50_000
"""About 40 MB of Python objects; with more arrays in one exchange a message is made anew for each reader."""
_PLAIN_MANIFEST_BYTES = 4 << 20
_MAX_CONTAINERS = 8 << 20
_TOLD_CHARS = 500
_ERRORS = {
    "bundle": compat.INVALID_FAB,
    "packages": compat.LOAD_CLIENT_APP_EXCEPTION,
    "killed": compat.CLIENT_APP_CRASHED,
    "too_large": compat.REPLY_MESSAGE_UNAVAILABLE,
    "egress": compat.REPLY_MESSAGE_UNAVAILABLE,
    "digest": compat.REPLY_MESSAGE_UNAVAILABLE,
}


@dataclass(frozen=True, slots=True)
class Task:
    """One message that was sent, as its sender remembers it.

    Attributes:
        n: its exchange; 0 if it went to nobody.
        node: what Flower knows the agent by.
        message_id: what the app knows the message by.
    """

    run: RunId
    n: int
    agent: AgentId
    node: int
    message_id: str
    message_type: str
    group_id: str


@dataclass(slots=True)
class Arrival:
    """A settled task: its reply in a file, or an error.

    Attributes:
        file: the reply's content; None if there is none.
        error: what came, or what we say, in place of a content.
        arrays: how many arrays it holds.
        finding: what the gate found.
        left_out: why a reply that came does not count; None if it does, or if none came.
    """

    task: Task
    file: Descriptor | None = None
    error: Error | None = None
    arrays: int = 0
    finding: gate.Finding = field(default_factory=gate.Finding)
    left_out: gate.Refusal | None = None

    def message(self, against: gate.Sent) -> Message:
        """Return the reply as Flower's message."""
        task = self.task
        payload: RecordDict | Error
        if self.error is not None:
            payload = self.error
        else:
            assert self.file is not None
            payload = _read(self.file).records()
            _cast(payload, self.finding.casts, against)
        return compat.reply(
            payload, run=flower_number(task.run), node=task.node, message_id=f"{task.message_id}/reply",
            reply_to=task.message_id, message_type=task.message_type, group_id=task.group_id,
        )  # fmt: skip

    @property
    def error_text(self) -> str:
        """What the error says; empty for a reply with a content."""
        return "" if self.error is None else self.error.reason or f"error {self.error.code}"

    def fail(self, code: int, text: str) -> None:
        """Let an error stand for the reply."""
        self.error = Error(code, text)
        self.file = None


def arrived(task: Task, fd: int, against: gate.Sent, settings: gate.Settings) -> Arrival:
    """Return the reply in an open file, which belongs to it from now on, measured by the gate."""
    arrival = Arrival(task, Descriptor(fd))
    assert arrival.file is not None
    try:
        stored = _read(arrival.file)
        if (failure := stored.failure) is not None:
            arrival.fail(failure.code, failure.reason)
            arrival.left_out = gate.Refusal("app_error", failure.reason[:_TOLD_CHARS])
            return arrival
        records = stored.records()
        arrival.arrays = sum(len(entry.arrays) for entry in stored.manifest.records)
        arrival.finding = gate.measure(records, against, settings)
    except (ProtocolError, BridgeError, ValueError) as error:
        arrival.finding = gate.Finding(gate.Refusal("unreadable", f"it is not a readable record stream: {error}"))
    return arrival


def declined(task: Task, code: str, text: str) -> Arrival:
    """Return what stands for the reply of an agent that declined."""
    return Arrival(
        task, error=Error(_ERRORS.get(code, compat.NODE_UNAVAILABLE), f"agent {task.agent}: {text} ({code})")
    )


def close(arrivals: Sequence[Arrival], against: gate.Sent, settings: gate.Settings) -> list[Arrival]:
    """Let the gate judge the replies of a closed exchange; return those that it refused now."""
    judged = [arrival for arrival in arrivals if arrival.error is None]
    verdicts = gate.judge([arrival.finding for arrival in judged], against, settings)
    refused = []
    for arrival, verdict in zip(judged, verdicts, strict=True):
        if verdict is not None:
            arrival.left_out = gate.Refusal(verdict.code, verdict.text[:_TOLD_CHARS])
            arrival.fail(
                compat.REPLY_MESSAGE_UNAVAILABLE,
                f"the update gate left out the reply of agent {arrival.task.agent}: {verdict.text} ({verdict.code})",
            )
            refused.append(arrival)
    return refused


class Replies(Sequence[Message]):
    """The replies of one call of the Grid, in the order of node ids.

    Args:
        arrivals: in that order, each with what it is held against.
    """

    def __init__(self, arrivals: Sequence[tuple[Arrival, gate.Sent]]) -> None:
        self._arrivals = list(arrivals)
        few = sum(arrival.arrays for arrival, _ in arrivals) <= KEEP_ARRAYS
        self._made: Any = {} if few else weakref.WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._arrivals)

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> list[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | list[Message]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError("there are not so many replies")
        made: Message | None = self._made.get(index)
        if made is None:
            arrival, against = self._arrivals[index]
            made = arrival.message(against)
            self._made[index] = made
        return made

    def __repr__(self) -> str:
        failed = sum(arrival.error is not None for arrival, _ in self._arrivals)
        return f"<{len(self)} replies, {failed} of them errors>"


class CastArray(Array):
    """An array that was sent in one float dtype, came back in another, and is the first again when looked at."""

    def __init__(self, inner: Array, dtype: np.dtype[Any]) -> None:
        self.__dict__.update(dtype=str(dtype), shape=inner.shape, stype=inner.stype, _is_dirty=True)
        self.__dict__["_inner"] = inner
        self.__dict__["_own"] = None

    def numpy(self) -> NDArray[Any]:
        """Return the array in the dtype that was sent."""
        if self.__dict__["_own"] is not None:
            return super().numpy()
        with np.errstate(over="ignore"):
            return self.__dict__["_inner"].numpy().astype(self.dtype)  # type: ignore[no-any-return]

    @property
    def data(self) -> bytes:
        """The serialised array."""
        own: bytes | None = self.__dict__["_own"]
        return Array(self.numpy()).data if own is None else own

    @data.setter
    def data(self, value: bytes) -> None:
        self.__dict__["_own"] = value

    def __reduce__(self) -> tuple[Any, ...]:
        return Array, (self.dtype, self.shape, self.stype, self.data)


def _cast(records: RecordDict, names: frozenset[str], against: gate.Sent) -> None:
    if not names or against.arrays is None:
        return
    for record in records.values():
        if isinstance(record, ArrayRecord):
            for name in names & record.keys():
                record[name] = CastArray(record[name], against.arrays[name][1])


def _read(file: Descriptor) -> StoredContent:
    """Return the content of a file that a device wrote, without the memory that a hostile manifest could ask for.

    A msgpack byte can stand for a Python object of 64 bytes: an empty list or map. No honest manifest is full of them.
    """
    size = os.fstat(file.fd).st_size
    head = private_bytes(file.fd, 0, min(size, 16)).tobytes()
    length = min(int.from_bytes(head[8:16], "little"), size) if len(head) == 16 else 0
    if length > _PLAIN_MANIFEST_BYTES:
        if length > MAX_MANIFEST_BYTES:
            raise TooLarge(f"its manifest has {length} bytes; at most {MAX_MANIFEST_BYTES} are taken")
        body = private_bytes(file.fd, 0, length)
        if int(np.count_nonzero((body & 0xE0) == 0x80)) > _MAX_CONTAINERS:
            raise TooLarge(f"its manifest of {length} bytes is made of too many lists and maps")
    return StoredContent(file, decode(private_bytes(file.fd, 0, size).data))
