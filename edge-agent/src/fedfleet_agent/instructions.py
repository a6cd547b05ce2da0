"""What the agent's task machine hears and says, and what its journal holds; `core` decides, the shell does it."""

import msgspec

from fedfleet_protocol.ids import NO_BASE, Digest, Order, RunId
from fedfleet_protocol.messages import Answer, Ask, BlobRef, Decline, Grant, Need, Notice, Over, Verdict

# --- what the journal holds -------------------------------------------------------------------------------------------


class Entry(msgspec.Struct, frozen=True):
    """The task at hand.

    Attributes:
        notice: what is to be done, with the newest attempt and grants heard of.
        reply: the finished reply, once there is one; its bytes are in the agent's blob folder.
        state: the state the app left, tentative; None for the empty one.
    """

    notice: Notice
    reply: BlobRef | None = None
    state: Digest | None = None

    @property
    def order(self) -> Order:
        """The order of the task."""
        return self.notice.order


class Lineage(msgspec.Struct, frozen=True):
    """What the agent keeps of a run.

    Attributes:
        last: number of the last settled exchange.
        kept: accepted replies and the states they left (None: empty), newest first; at most two.
    """

    run: RunId
    last: int = 0
    kept: tuple[tuple[Digest, Digest | None], ...] = ((NO_BASE, None),)

    @property
    def newest(self) -> Digest:
        """The last accepted reply, whose state is the newest."""
        return self.kept[0][0]

    def state_after(self, reply: Digest) -> Digest | None:
        """Return the state that `reply` left; KeyError if it is not kept."""
        return dict(self.kept)[reply]

    def holds(self, reply: Digest) -> bool:
        """Whether the state that `reply` left is kept."""
        return any(tag == reply for tag, _ in self.kept)


# --- what happens -----------------------------------------------------------------------------------------------------


class Happening(msgspec.Struct, frozen=True):
    """Something the shell saw."""


class Connected(Happening, frozen=True):
    """The control link is up (again)."""


class Answered(Happening, frozen=True):
    """The coordinator answered the agent's question."""

    answer: Answer


class AskFailed(Happening, frozen=True):
    """The question got no answer."""


class Judged(Happening, frozen=True):
    """May the device work on this order now? An empty code means yes."""

    order: Order
    code: str = ""
    text: str = ""


class Fetched(Happening, frozen=True):
    """Payload and bundle of the order are here and verified."""

    order: Order


class Worked(Happening, frozen=True):
    """The trainer is done, the egress policy allows the reply, and its files are durable."""

    order: Order
    reply: BlobRef
    state: Digest | None


class Failed(Happening, frozen=True):
    """The order cannot be done: a code of `reasons.DECLINE` and a sentence."""

    order: Order
    code: str
    text: str


class Uploaded(Happening, frozen=True):
    """The reply's blob is at the coordinator."""

    order: Order
    digest: Digest


class UploadFailed(Happening, frozen=True):
    """The upload was refused (a grant that expired, say); replying again gets a new grant."""

    order: Order


class Tick(Happening, frozen=True):
    """Time passed."""


Heard = Notice | Need | Verdict | Over
AnyEvent = (
    Heard | Connected | Answered | AskFailed | Judged | Fetched | Worked | Failed | Uploaded | UploadFailed | Tick
)


# --- what is to be done -----------------------------------------------------------------------------------------------


class Instruction(msgspec.Struct, frozen=True):
    """Something the shell is to do."""


class Save(Instruction, frozen=True):
    """Make the journal say this, in one transaction: the task at hand (or none), and a run's lineage."""

    entry: Entry | None
    lineage: Lineage | None = None


class Forget(Instruction, frozen=True):
    """Remove a run's lineage, and the task at hand if it belongs to it, in one transaction."""

    run: RunId
    entry: Entry | None


class Question(Instruction, frozen=True):
    """Ask the coordinator, over HTTPS."""

    ask: Ask


class Judge(Instruction, frozen=True):
    """Find out whether the device may work on the order now."""

    entry: Entry


class Fetch(Instruction, frozen=True):
    """Get payload and bundle; check who vouches for the bundle."""

    entry: Entry


class Train(Instruction, frozen=True):
    """Hand the task to a trainer, with the app state it starts from (None: empty)."""

    entry: Entry
    state: Digest | None


class Cancel(Instruction, frozen=True):
    """Stop whatever is done for the order: transfers, trainer."""

    order: Order


class Announce(Instruction, frozen=True):
    """Tell the coordinator of the finished reply; with its bytes if they are few."""

    entry: Entry


class Upload(Instruction, frozen=True):
    """Bring the reply's missing blocks to the coordinator."""

    entry: Entry
    grant: Grant


class Say(Instruction, frozen=True):
    """Send a message over the control link."""

    message: Decline
