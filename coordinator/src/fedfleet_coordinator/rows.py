"""What the coordinator's store holds, as frozen values: one struct, one table.

A row's `KEY` names the fields that identify it. Times that end in `_at` are the hub's durable up-time in seconds
(EXCHANGE rule 9) where something waits for them, and carry `_wall` in their name where a person or a certificate
reads them (seconds since the epoch).
"""

from typing import Any, ClassVar, Literal

import msgspec

from fedfleet_protocol.exchange import ExchangeState, TaskState
from fedfleet_protocol.ids import NO_BASE, AgentId, Digest, Order, RunId
from fedfleet_protocol.messages import Config


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the store."""

    KEY: ClassVar[tuple[str, ...]] = ()

    @property
    def key(self) -> tuple[Any, ...]:
        """What identifies this row among its kind."""
        return tuple(getattr(self, name) for name in self.KEY)


class Run(Row, frozen=True, kw_only=True):
    """One execution of an app on the fleet.

    Attributes:
        quorum: "80%" or "4": how many accepted replies are enough; of the cohort of each exchange.
        selector: labels an agent must have to be in the run.
        gate: settings of the update gate, by name.
        epoch: the random token of the runner that may write; a new one per launch.
        attempts: runners launched so far. barren: of those, how many in a row brought nothing new.
        needs: for how many agents its app waits now, 0 if it does not.
        reason, text: why it ended, a code of `reasons.RUN` and a sentence.
    """

    KEY = ("run",)

    run: RunId
    state: Literal["pending", "running", "finished", "failed", "stopped"] = "pending"
    app: str = ""
    bundle: Digest = Digest("")
    bundle_size: int = 0
    publisher: bytes = b""
    signature: bytes = b""
    config: Config = {}
    selector: dict[str, str] = {}
    min_agents: int = 1
    quorum: str = "100%"
    deadline_s: float = 3600.0
    grace_s: float = 30.0
    late: Literal["refuse", "keep"] = "refuse"
    priority: int = 0
    gate: dict[str, Any] = {}
    seed: int = 0
    submitted_by: str = ""
    epoch: str = ""
    attempts: int = 0
    barren: int = 0
    needs: int = 0
    server_round: int = 0
    num_rounds: int = 0
    exchanges: int = 0
    reason: str = ""
    text: str = ""
    model: Digest | None = None
    model_size: int = 0
    created_wall: float = 0.0
    started_wall: float | None = None
    ended_wall: float | None = None

    @property
    def live(self) -> bool:
        """Whether the run can still change."""
        return self.state in ("pending", "running")


class Managed(Row, frozen=True, kw_only=True):
    """What is kept of a run that the operator made for an object of the cluster; its runners are the operator's too.

    Attributes:
        owner: the object, `namespace/name`.
        noted: the newest attempt whose end was noted. failures: of those, how many were no disruptions.
        active_s: how long it has been active in all; since `active_since`, in up-time, it is again.
    """

    KEY = ("run",)

    run: RunId
    owner: str = ""
    max_attempts: int = 6
    noted: int = 0
    failures: int = 0
    suspended: bool = False
    active_s: float = 0.0
    active_since: float | None = None


class Exchange(Row, frozen=True, kw_only=True):
    """One send-and-receive of a run.

    Attributes:
        request: digest of what was opened: the same number may be opened again with the same request only.
        expected, settled, accepted: tasks in all, terminal ones, accepted ones.
        grace_at: when an exchange that has its quorum closes.
        reason: why it closed, a code of `reasons.CLOSE`.
    """

    KEY = ("run", "n")

    run: RunId
    n: int
    state: ExchangeState = ExchangeState.OPEN
    request: Digest = Digest("")
    label: str = ""
    deadline_at: float = 0.0
    quorum: int = 0
    grace_s: float = 0.0
    grace_at: float | None = None
    late: Literal["refuse", "keep"] = "refuse"
    expected: int = 0
    settled: int = 0
    accepted: int = 0
    reason: str = ""
    opened_wall: float = 0.0
    closed_wall: float | None = None


class Task(Row, frozen=True, kw_only=True):
    """One message to one agent within one exchange.

    Attributes:
        base, order: fixed when it is published.
        reply, reply_size: the accepted reply's blob.
        code, text: why there is no reply; of an accepted one, why it does not count (`reasons.GATE`).
        late: the reply came after the close, in an exchange that keeps such replies.
    """

    KEY = ("run", "n", "agent")

    run: RunId
    n: int
    agent: AgentId
    state: TaskState = TaskState.WAITING
    payload: Digest = Digest("")
    payload_size: int = 0
    base: Digest = Digest("")
    order: Order = Order("")
    attempt: int = 0
    reply: Digest | None = None
    reply_size: int = 0
    code: str = ""
    text: str = ""
    late: bool = False
    published_wall: float | None = None
    settled_wall: float | None = None


class Turn(Row, frozen=True, kw_only=True):
    """Where one agent is in one run: its tasks are published one at a time, by exchange number.

    Attributes:
        base: digest of its last accepted reply, from whose state the next task starts.
        n: the exchange whose task was published last, 0 before the first.
        waiting: how many of its tasks are still to be published.
    """

    KEY = ("run", "agent")

    run: RunId
    agent: AgentId
    base: Digest = NO_BASE
    n: int = 0
    waiting: int = 0


class Blob(Row, frozen=True, kw_only=True):
    """Bytes that are durable here: in a file with a name of its own, or in this row.

    Attributes:
        blocks: the SHA-256 of each block, if there are at most `CARRIED_BLOCKS`: they ride in tasks.
    """

    KEY = ("digest",)

    digest: Digest
    size: int
    file: str = ""
    inline: bytes | None = None
    stored_at: float = 0.0
    blocks: bytes = b""


class Ref(Row, frozen=True, kw_only=True):
    """A row that names a blob: while there is one, the blob stays.

    Attributes:
        holder: e.g. "payload:<run>:<n>", "reply:<run>:<n>:<agent>", "checkpoint:<run>", "bundle:<run>", "model:<run>".
    """

    KEY = ("digest", "holder")

    digest: Digest
    holder: str
    run: RunId = RunId("")
    n: int = 0


class Position(Row, frozen=True, kw_only=True):
    """A run's newest checkpoint: where a new runner goes on. Fields as in `messages.Checkpoint`."""

    KEY = ("run",)

    run: RunId
    next_n: int = 1
    next_answer: int = 1
    keep_below: int = 1
    server_round: int = 0
    blobs: dict[str, Any] = {}


class GridAnswer(Row, frozen=True, kw_only=True):
    """An answer that the Grid gave a run's app, under the runner's counter; given again when the app runs again."""

    KEY = ("run", "k")

    run: RunId
    k: int
    kind: str
    value: Any


class Agent(Row, frozen=True, kw_only=True):
    """A device that joined.

    Attributes:
        public_key: SubjectPublicKeyInfo in DER of the certificate in force; its envelopes are signed with it.
        previous_key: the key before the last renewal; envelopes signed with it may still be under way.
        serials: of all its certificates, for the list of revoked ones.
        labels: given by the join token; what the device says of itself is in `self_labels`.
        seen_at: the hub's up-time when it last connected or spoke.
        eligible, code, text: whether it may train now, and if not why.
    """

    KEY = ("agent",)

    agent: AgentId
    public_key: bytes = b""
    previous_key: bytes = b""
    serial: str = ""
    serials: tuple[str, ...] = ()
    not_after_wall: float = 0.0
    labels: dict[str, str] = {}
    self_labels: dict[str, str] = {}
    state: Literal["active", "revoked"] = "active"
    online: bool = False
    seen_at: float = 0.0
    seen_wall: float = 0.0
    eligible: bool = True
    code: str = ""
    text: str = ""
    version: str = ""
    token: str = ""
    enrolled_wall: float = 0.0


class Token(Row, frozen=True, kw_only=True):
    """A join token that was given out; only a hash of its secret is here."""

    KEY = ("hashed",)

    hashed: str
    labels: dict[str, str] = {}
    uses_left: int = 1
    expires_wall: float = 0.0
    created_by: str = ""


class Metrics(Row, frozen=True, kw_only=True):
    """Metrics of one round: `kind` is "train", "evaluate" or "server"."""

    KEY = ("run", "server_round", "kind")

    run: RunId
    server_round: int
    kind: str
    values: dict[str, Any] = {}


class LogLine(Row, frozen=True, kw_only=True):
    """A line of a run's log; `source` is "serverapp", "coordinator" or an agent's id."""

    KEY = ("run", "seq")

    run: RunId
    seq: int
    source: str
    line: str
    at_wall: float = 0.0


class UpTime(Row, frozen=True, kw_only=True):
    """How long this hub has been up in all, as last written down."""

    KEY = ("name",)

    name: str = "hub"
    uptime_s: float = 0.0


KINDS: tuple[type[Row], ...] = (
    Run, Managed, Exchange, Task, Turn, Blob, Ref, Position, GridAnswer, Agent, Token, Metrics, LogLine, UpTime,
)  # fmt: skip
