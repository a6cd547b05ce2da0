"""What agent and trainer say to each other, over a Unix socket; tensors go by files in a folder they share.

A frame is a length (u32, little-endian) and that many bytes of msgpack. Files are named, never pathed: a name is a
plain file in the hand-over folder. The trainer runs code that is not ours, so the agent believes nothing it says but
what it can check; and since either side may be the newer one, each frame carries the schema version.

    agent -> trainer    load, then work as often as there is some, at last stop
    trainer -> agent    loaded or loadfailed, then per work alive and output until done or failed
"""

import re
from typing import TypeVar

import msgspec

from fedfleet_protocol.errors import Malformed, NewerSchema, TooLarge
from fedfleet_protocol.ids import Digest, Order, RunId
from fedfleet_protocol.messages import Config

SCHEMA = 1
MAX_FRAME_BYTES = 2 << 20
"""No frame is larger: a run's configuration, some lines of output, the block digests of two files of 16 GiB."""

_LENGTH = 4
_FILE = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}")


class File(msgspec.Struct, frozen=True):
    """A file in the hand-over folder.

    Attributes:
        name: plain; see `check_file_name`.
        digest, size, blocks: as in `blocks.BlockList`.
    """

    name: str
    digest: Digest
    size: int
    blocks: bytes


class Limits(msgspec.Struct, frozen=True):
    """What a trainer may use; 0 is no limit.

    Attributes:
        memory_bytes: resident memory of the trainer and its children together.
        file_bytes: the largest file it may write.
        nice: added to its niceness.
        lines_per_s: lines of output per second that are passed on; the rest is counted.
        processes: of the trainer and its children together.
        folder_bytes: what the app's own folder may hold.
    """

    memory_bytes: int = 0
    file_bytes: int = 0
    nice: int = 5
    lines_per_s: float = 200.0
    processes: int = 0
    folder_bytes: int = 0


class Sandbox(msgspec.Struct, frozen=True):
    """How a trainer confines itself before it loads an app, by the owner's decision.

    Attributes:
        confine: whether it does.
        minimum: what must hold, or the app is not loaded; one of `ISOLATION`.
        readable, devices: paths that the owner names, beside the trainer's own.
        unix_sockets: whether sockets of the machine may be made.
        key, journal: the agent's files, which the trainer shows to be out of reach by trying; empty: not tried.
        agent: the agent's process id, for the same purpose.
    """

    confine: bool = True
    minimum: str = "landlock"
    readable: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    unix_sockets: bool = False
    key: str = ""
    journal: str = ""
    agent: int = 0


ISOLATION: dict[str, tuple[str, ...]] = {
    "none": (),
    "seccomp": ("network",),
    "landlock": ("key", "journal", "network"),
}
"""What each level demands to be out of an app's reach, by whatever means."""

MADE = "made"
"""The folder within the hand-over folder in which a confined trainer may write; the rest it only reads."""


class Frame(msgspec.Struct, frozen=True, tag_field="kind", tag=str.lower):
    """Something said."""

    v: int = msgspec.field(default=SCHEMA, name="v")


class Load(Frame, frozen=True):
    """Unpack and import the bundle in the file `bundle`; said once, first.

    Attributes:
        sandbox: None: the trainer is as free as its user, and writes into the hand-over folder itself.
    """

    run: RunId = RunId("")
    bundle: str = ""
    limits: Limits = Limits()
    sandbox: Sandbox | None = None


class Work(Frame, frozen=True):
    """Call the ClientApp with the message in the file `message`.

    Attributes:
        state: file with the app's state before the call; None for an empty one.
        run_number, node: the run and the agent as Flower sees them.
        run_config: overrides of the app's defaults, or all of it.
        remaining_s: until the agent ends the trainer.
        seed: what the global random generators begin with; a device leaves them as they are.
    """

    order: Order = Order("")
    message: str = ""
    state: str | None = None
    run_number: int = 0
    node: int = 0
    node_config: Config = {}
    run_config: Config = {}
    remaining_s: float = 0.0
    seed: int | None = None


class Stop(Frame, frozen=True):
    """End yourself."""


class Loaded(Frame, frozen=True):
    """The app is ready to be called."""

    warnings: tuple[str, ...] = ()


class LoadFailed(Frame, frozen=True):
    """There is no app to call.

    Attributes:
        code: "packages", something is not installed; "bundle", it is no Flower app or raised when imported; "disk",
            no room to unpack it; "isolation", the owner's minimum does not hold here;
            "outside", somebody else killed the trainer meanwhile.
        status: how the process ended, negative for a signal; None if it did not.
    """

    code: str = ""
    text: str = ""
    status: int | None = None


class Alive(Frame, frozen=True):
    """A heartbeat.

    Attributes:
        cpu_s: processor seconds of the trainer and its children so far; work goes on if it advances.
        memory_bytes: what they hold.
    """

    cpu_s: float = 0.0
    memory_bytes: int = 0


class Output(Frame, frozen=True):
    """Lines the app wrote; `dropped` were over the limit."""

    stream: str = "stdout"
    lines: tuple[str, ...] = ()
    dropped: int = 0


class Done(Frame, frozen=True):
    """The reply to an order, as a content; also when the app raised: then the content is a failure.

    Attributes:
        state: the app's state after the call; None if it is empty. Not given if `failed`: then it is as it was before.
        failed: the reply carries a Flower `Error`.
    """

    order: Order = Order("")
    reply: File = File("", Digest(""), 0, b"")
    state: File | None = None
    failed: bool = False


class Failed(Frame, frozen=True):
    """There will be no reply to an order.

    Attributes:
        code: "app", the app ended its own process or did not stay within its limits; "outside", somebody else killed
            it; "disk", no room for its reply.
        status: how the process ended, negative for a signal; None if it did not.
    """

    order: Order = Order("")
    code: str = "app"
    text: str = ""
    status: int | None = None


ToTrainer = Load | Work | Stop
ToAgent = Loaded | LoadFailed | Alive | Output | Done | Failed
_T = TypeVar("_T")


class _Peek(msgspec.Struct):
    v: int
    kind: str


_encoder = msgspec.msgpack.Encoder()
_peek = msgspec.msgpack.Decoder(_Peek)
_to_trainer: msgspec.msgpack.Decoder[ToTrainer] = msgspec.msgpack.Decoder(ToTrainer)
_to_agent: msgspec.msgpack.Decoder[ToAgent] = msgspec.msgpack.Decoder(ToAgent)


def pack(frame: Frame) -> bytes:
    """Return `frame` as it goes over the socket, length included.

    Raises:
        TooLarge: the other side would not take it.
    """
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise TooLarge(f"a frame of {len(body)} bytes; at most {MAX_FRAME_BYTES} are taken")
    return len(body).to_bytes(_LENGTH, "little") + body


def for_trainer(body: bytes | memoryview) -> ToTrainer:
    """Return what the agent said.

    Raises:
        ProtocolError: not a frame from an agent.
    """
    return _unpack(_to_trainer, body)


def for_agent(body: bytes | memoryview) -> ToAgent:
    """Return what the trainer said.

    Raises:
        ProtocolError: not a frame from a trainer.
    """
    return _unpack(_to_agent, body)


def check_file_name(name: str) -> str:
    """Return `name`, which is a plain file name and nothing that leads elsewhere.

    Raises:
        Malformed: it is not.
    """
    if not _FILE.fullmatch(name):
        raise Malformed(f"{name[:80]!r} is not the name of a file that is handed over")
    return name


class FrameReader:
    """Cuts what comes out of a socket into frames; holds no more than one."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the bodies of the frames that are now complete.

        Raises:
            TooLarge: a frame claims to be larger than any may be; close the connection.
        """
        self._pending += data
        bodies: list[bytes] = []
        while len(self._pending) >= _LENGTH:
            length = int.from_bytes(self._pending[:_LENGTH], "little")
            if length > MAX_FRAME_BYTES:
                raise TooLarge(f"a frame of {length} bytes; at most {MAX_FRAME_BYTES} are taken")
            if len(self._pending) < _LENGTH + length:
                break
            bodies.append(bytes(self._pending[_LENGTH : _LENGTH + length]))
            del self._pending[: _LENGTH + length]
        return bodies


def _unpack(decoder: "msgspec.msgpack.Decoder[_T]", body: bytes | memoryview) -> _T:
    try:
        head = _peek.decode(body)
        if head.v > SCHEMA:
            raise NewerSchema(
                f"the frame {head.kind!r} has schema {head.v}, this fedfleet understands {SCHEMA}: update this side"
            )
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"not a frame between agent and trainer: {error}") from error
