"""What a runner asks of the coordinator."""

from typing import Any, Literal, Protocol

from fedfleet_coordinator.rows import Position, Run
from fedfleet_protocol.blocks import BlockList
from fedfleet_protocol.ids import AgentId, Digest
from fedfleet_protocol.messages import BlobRef, Checkpoint, ExchangeView, Open

Ending = Literal["finished", "failed"]


class Hub(Protocol):
    """The coordinator as one run's runner sees it.

    Every call may be repeated without harm, and waits for as long as the coordinator is away: it may be killed and
    come back at any time. More methods than a port should have: they are the routes a runner may use, and no more.

    Raises:
        Fenced: from every method, once another runner has taken over or the run has ended.
        HubRefused: from every method; a bug.
    """

    def look(self) -> tuple[Run, Position | None]:
        """Return the run, and where it goes on if a round was committed."""
        ...

    def open(self, request: Open) -> ExchangeView:
        """Open an exchange, or return it if it is open already; `need` names blobs to be stored first."""
        ...

    def view(self, n: int, *, seen: int, wait_s: float) -> ExchangeView:
        """Return exchange `n` once it is closed or more than `seen` tasks are settled, at the latest after `wait_s`."""
        ...

    def checkpoint(self, request: Checkpoint) -> tuple[Digest, ...]:
        """Commit a round; nothing was committed if blobs are returned: they are to be stored first."""
        ...

    def nodes(
        self, k: int, *, at_least: int, unlike: list[AgentId] | None, needs: int = 0
    ) -> tuple[list[AgentId], bool]:
        """Return the agents that are there, and whether that is now the recorded `k`-th answer.

        It is not recorded if there are fewer than `at_least`, or exactly those in `unlike`. With fewer than `needs` the
        app will ask again; people are told for how many it waits.

        Raises:
            Nondeterministic: the recorded answer was to another question.
        """
        ...

    def answer(self, k: int, kind: str, value: Any) -> Any:
        """Record the `k`-th answer of the Grid, or return what is recorded; with None, only return that, or None.

        Raises:
            Nondeterministic: the recorded answer was to another question.
        """
        ...

    def store(self, fd: int, blocks: BlockList) -> None:
        """Make the blob in an open file durable at the hub; only what is missing there is sent."""
        ...

    def fetch(self, blob: BlobRef) -> int:
        """Return a descriptor of a file with the blob's bytes, to be read only, and to be closed by the caller."""
        ...

    def tell_left_out(self, n: int, why: dict[AgentId, tuple[str, str]]) -> None:
        """Note which replies of exchange `n` do not count: for each agent a code of `reasons.GATE` and a sentence."""
        ...

    def tell_metrics(self, server_round: int, kind: str, values: dict[str, Any], num_rounds: int) -> None:
        """Keep the metrics of a round."""
        ...

    def end(self, state: Ending, reason: str, text: str, model: BlobRef | None) -> None:
        """End the run."""
        ...
