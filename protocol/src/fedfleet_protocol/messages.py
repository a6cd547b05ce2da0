"""All that is said, as frozen values.

Each message is a msgspec struct, tagged with its kind and carrying the schema version. Bytes on the wire are msgpack;
`encode` and `decode` are the only way in and out. Seconds are remaining seconds, never instants: no two clocks are
compared. Fields may be added with a default; a field that changes its meaning takes a new schema version.
"""

from typing import Any, Literal, TypeVar

import msgspec

from fedfleet_protocol.errors import Malformed, NewerSchema, TooLarge
from fedfleet_protocol.ids import AgentId, Digest, Order, RunId

SCHEMA = 1
INLINE_BYTES = 64 << 10
"""A payload of at most this many bytes rides inside its message and needs no HTTPS."""
CARRIED_BLOCKS = 64
"""The list of a blob of at most so many blocks rides in a task, which saves a device that is far away a round trip."""
MAX_MESSAGE_BYTES = 256 << 10
"""No control message is larger: an inline payload, a run's configuration, names and signatures."""

ConfigValue = bool | int | float | str
Config = dict[str, ConfigValue]
"""Flower's UserConfig: what `run_config` and `node_config` hold."""

_T = TypeVar("_T")


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """A part of a message."""


class Message(msgspec.Struct, frozen=True, tag_field="kind", tag=str.lower):
    """Something said by one side to the other."""

    v: int = msgspec.field(default=SCHEMA, name="v")


class BlobRef(Value, frozen=True):
    """Names a blob."""

    digest: Digest
    size: int


class Grant(Value, frozen=True):
    """A blob and the right to fetch or store it.

    Attributes:
        blob: which.
        path: where, relative to the coordinator's data address, or an absolute https URL.
        capability: the proof, for the header `Fedfleet-Capability`; empty if the bytes are inline.
        inline: the bytes themselves, when there are at most `INLINE_BYTES`.
        blocks: the SHA-256 of each block, one behind the other, if there are at most `CARRIED_BLOCKS`; otherwise empty:
            then the list has to be asked for.
    """

    blob: BlobRef
    path: str = ""
    capability: str = ""
    inline: bytes | None = None
    blocks: bytes = b""


# --- agent and coordinator ------------------------------------------------------------------------------------------


class Notice(Message, frozen=True):
    """There is a task: a hint by MQTT, the truth in an `Answer`.

    Attributes:
        n: the exchange's number within the run, from 1.
        base: digest of the agent's last accepted reply in this run, or "none": whose state the work starts from.
        attempt: a label, numbered by the coordinator.
        remaining_s: until the exchange's deadline.
        lease_s: show progress within this time.
        priority: higher first.
        publisher, signature: who vouches for the bundle; the agent's owner decides whether that is enough.
    """

    run: RunId = RunId("")
    n: int = 0
    agent: AgentId = AgentId("")
    order: Order = Order("")
    base: Digest = Digest("")
    payload: Grant = Grant(BlobRef(Digest(""), 0))
    bundle: Grant = Grant(BlobRef(Digest(""), 0))
    run_config: Config = {}
    attempt: int = 1
    remaining_s: float = 0.0
    lease_s: float = 60.0
    priority: int = 0
    publisher: bytes = b""
    signature: bytes = b""


class Progress(Message, frozen=True):
    """Work on an order goes on."""

    order: Order = Order("")
    run: RunId = RunId("")
    n: int = 0
    attempt: int = 1


class Reply(Message, frozen=True):
    """The work on an order is done; `inline` holds the bytes if they are few."""

    run: RunId = RunId("")
    n: int = 0
    order: Order = Order("")
    digest: Digest = Digest("")
    size: int = 0
    attempt: int = 1
    inline: bytes | None = None


class Decline(Message, frozen=True):
    """The agent will not work on an order, and why."""

    run: RunId = RunId("")
    n: int = 0
    order: Order = Order("")
    code: str = ""
    text: str = ""


class Need(Message, frozen=True):
    """Not a verdict: the hub lacks the reply's blob. Upload what is missing and reply again."""

    order: Order = Order("")
    digest: Digest = Digest("")
    upload: Grant = Grant(BlobRef(Digest(""), 0))
    retry_after_s: float = 0.0


class Verdict(Message, frozen=True):
    """What became of an order, or of the reply `digest` to it. Final."""

    order: Order = Order("")
    digest: Digest | None = None
    code: Literal["accepted", "superseded", "closed", "unknown"] = "unknown"
    text: str = ""


class Over(Message, frozen=True):
    """A run is over: forget its states."""

    run: RunId = RunId("")


class Held(Value, frozen=True):
    """A task the agent holds; `digest` once its reply is ready."""

    run: RunId
    n: int
    order: Order
    digest: Digest | None = None


class Ask(Message, frozen=True):
    """What the agent holds, and the runs it keeps states of. Answered with an `Answer`, over HTTPS."""

    agent: AgentId = AgentId("")
    held: tuple[Held, ...] = ()
    runs: tuple[RunId, ...] = ()


class Answer(Message, frozen=True):
    """The truth as the store has it."""

    verdicts: tuple[Verdict, ...] = ()
    open: tuple[Notice, ...] = ()
    over: tuple[RunId, ...] = ()


class Status(Message, frozen=True):
    """What an agent says of itself; sent when it connects and when it changes, never on a timer.

    Attributes:
        code, text: why it may not train now; empty if it may.
        labels: what it calls itself (`self/...` for the coordinator); selects nothing by default.
    """

    version: str = ""
    eligible: bool = True
    code: str = ""
    text: str = ""
    labels: dict[str, str] = {}


class Presence(Message, frozen=True):
    """Retained: whether the agent is connected. The will says it is not."""

    online: bool = False


class Log(Message, frozen=True):
    """Lines an app wrote on a device; `dropped` were over the rate limit."""

    run: RunId = RunId("")
    n: int = 0
    lines: tuple[str, ...] = ()
    dropped: int = 0


# --- enrolment ------------------------------------------------------------------------------------------------------


class Enrol(Message, frozen=True):
    """A device asks for an identity. The CSR contributes its public key and nothing else."""

    token: str = ""
    csr_pem: str = ""
    version: str = ""


class Renew(Message, frozen=True):
    """An agent asks for its next certificate, over its current one."""

    csr_pem: str = ""


class Identity(Message, frozen=True):
    """What an enrolled agent is told.

    Attributes:
        certificate_pem: the agent's certificate and the chain below the root.
        services_ca_pem: who may speak as coordinator or broker.
        broker: `host:port` of the MQTT broker.
        data_url: where blobs and asks go, `https://host:port`.
        order_key: the coordinator's Ed25519 public key, 32 bytes: who may sign orders.
        publishers: Ed25519 public keys, 32 bytes each, that the join token vouched for.
    """

    agent: AgentId = AgentId("")
    certificate_pem: str = ""
    services_ca_pem: str = ""
    broker: str = ""
    data_url: str = ""
    order_key: bytes = b""


# --- runner and coordinator -----------------------------------------------------------------------------------------


class Open(Message, frozen=True):
    """A runner opens exchange `n`: one payload per agent of the cohort.

    Attributes:
        quorum: accepted replies after which only the grace time is waited for; 0 means all.
        late: what becomes of replies after the close.
    """

    run: RunId = RunId("")
    epoch: str = ""
    n: int = 0
    cohort: dict[AgentId, BlobRef] = {}
    deadline_s: float = 3600.0
    quorum: int = 0
    grace_s: float = 30.0
    late: Literal["refuse", "keep"] = "refuse"
    label: str = ""


class Checkpoint(Message, frozen=True):
    """A round is aggregated: where a new runner goes on.

    Attributes:
        next_n: number of the next exchange.
        next_answer: number of the next recorded answer of the Grid.
        keep_below: replies of exchanges below this number stay (they precede the strategy's loop and are replayed).
        blobs: what the checkpoint consists of, by name.
    """

    run: RunId = RunId("")
    epoch: str = ""
    next_n: int = 1
    next_answer: int = 1
    keep_below: int = 1
    server_round: int = 0
    blobs: dict[str, BlobRef] = {}


class ReplyRef(Value, frozen=True):
    """A reply in an exchange as its runner sees it: accepted with a blob, or declined with a reason."""

    agent: AgentId
    blob: BlobRef | None = None
    code: str = ""
    text: str = ""
    late: bool = False


class ExchangeView(Message, frozen=True):
    """An exchange as its runner sees it."""

    run: RunId = RunId("")
    n: int = 0
    closed: str = ""
    need: tuple[Digest, ...] = ()
    expected: int = 0
    replies: tuple[ReplyRef, ...] = ()


AnyMessage = (
    Notice
    | Progress
    | Reply
    | Decline
    | Need
    | Verdict
    | Over
    | Ask
    | Answer
    | Status
    | Presence
    | Log
    | Enrol
    | Renew
    | Identity
    | Open
    | Checkpoint
    | ExchangeView
)
FromAgent = Progress | Reply | Decline | Status | Presence | Log
ToAgent = Notice | Need | Verdict | Over

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


class _Peek(msgspec.Struct):
    v: int
    kind: str


_peek = msgspec.msgpack.Decoder(_Peek)


def encode(message: Message) -> bytes:
    """Return the bytes of `message`."""
    return _encoder.encode(message)


def decode(data: bytes | memoryview, *, limit: int = MAX_MESSAGE_BYTES) -> AnyMessage:
    """Return the message in `data`.

    Raises:
        TooLarge: more than `limit` bytes; the sender's fault.
        NewerSchema: from a later version of fedfleet; update this side.
        Malformed: anything else that is not a message.
    """
    if len(data) > limit:
        raise TooLarge(f"a message of {len(data)} bytes; at most {limit} are taken")
    try:
        head = _peek.decode(data)
        if head.v > SCHEMA:
            raise NewerSchema(
                f"the message {head.kind[:40]!r} has schema {head.v}, this fedfleet understands up to {SCHEMA}: "
                "update this side"
            )
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"not a fedfleet message: {error}") from error


def decode_as(kind: type[_T], data: bytes | memoryview, *, limit: int = MAX_MESSAGE_BYTES) -> _T:
    """Return the message in `data`, which must be a `kind`.

    Raises:
        ProtocolError: as `decode`, or it is another message.
    """
    message: Any = decode(data, limit=limit)
    if not isinstance(message, kind):
        raise Malformed(f"expected {kind.__name__}, got {type(message).__name__}")
    return message
