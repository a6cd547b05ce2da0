"""In-memory twins of the agent's ports, for tests and the simulation. They keep what the real ones promise."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from fedfleet_agent import supervisor
from fedfleet_agent.core import Entry, Lineage
from fedfleet_agent.errors import TransferCancelled
from fedfleet_agent.incoming import Place
from fedfleet_agent.journal import Contents, LedgerLine
from fedfleet_protocol.blocks import BlockList
from fedfleet_protocol.ids import Digest, Order, RunId
from fedfleet_protocol.messages import Grant


def _nothing(moment: str) -> None:
    """Let a write pass."""


class MemoryJournal:
    """A journal that outlives its agent in a simulation: hand the same one to the next life.

    Attributes:
        hook: called with "before" and "after" each commit. What it raises at "before" leaves the journal as it was
            (a crash, `DiskFull`), at "after" as the commit made it: the two sides of every crash.
        commits: how many there were.
    """

    def __init__(self, hook: Callable[[str], None] = _nothing) -> None:
        self.hook = hook
        self.commits = 0
        self._contents = Contents()
        self._ledger: tuple[LedgerLine, ...] = ()

    def load(self) -> Contents:
        """See `Journal`."""
        return self._contents

    def save(self, entry: Entry | None, lineage: Lineage | None = None, ledger: Sequence[LedgerLine] = ()) -> None:
        """See `Journal`."""
        lineages = {kept.run: kept for kept in self._contents.lineages}
        if lineage is not None:
            lineages[lineage.run] = lineage
        self._commit(entry, lineages, ledger)

    def forget(self, run: RunId, entry: Entry | None) -> None:
        """See `Journal`."""
        self._commit(entry, {kept.run: kept for kept in self._contents.lineages if kept.run != run}, ())

    def ledger(self, newest: int = 100) -> list[LedgerLine]:
        """See `Journal`."""
        return list(self._ledger[-newest:])

    def close(self) -> None:
        """See `Journal`."""

    def _commit(self, entry: Entry | None, lineages: dict[RunId, Lineage], ledger: Sequence[LedgerLine]) -> None:
        # Through bytes, so that what cannot be written down is found here as well.
        contents = Contents(entry, tuple(lineages[run] for run in sorted(lineages)))
        contents = msgspec.msgpack.decode(msgspec.msgpack.encode(contents), type=Contents)
        self.hook("before")
        self._contents = contents
        self._ledger += tuple(ledger)
        self.commits += 1
        self.hook("after")


class ScriptedTrainers:
    """Trainers that do what a test says; one order at a time, like the real ones.

    Attributes:
        started: the works begun, in order. cancelled: the orders ended. ended: the runs forgotten.
    """

    def __init__(self) -> None:
        self.started: list[supervisor.Work] = []
        self.cancelled: list[Order] = []
        self.ended: list[RunId] = []
        self._events: list[supervisor.Event] = []

    def tell(self, *events: supervisor.Event) -> None:
        """Have `poll` return these."""
        self._events += events

    def start(self, work: supervisor.Work) -> None:
        """See `Supervisor`."""
        self.started.append(work)

    def poll(self) -> list[supervisor.Event]:
        """See `Supervisor`."""
        events, self._events = self._events, []
        return events

    def wait_s(self) -> float | None:
        """See `Supervisor`."""
        return 0.0 if self._events else None

    def cancel(self, order: Order) -> None:
        """See `Supervisor`."""
        self.cancelled.append(order)

    def over(self, run: RunId) -> None:
        """See `Supervisor`."""
        self.ended.append(run)


class MemoryMover:
    """Moves blobs from and to a dictionary.

    Attributes:
        blobs: what the hub has.
        refusals: raised by the next fetches and uploads, first in first out.
    """

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.refusals: list[Exception] = []
        self.capabilities: list[str] = []

    def fetch(
        self,
        grant: Grant,
        folder: Path,
        *,
        cancel: threading.Event,
        held: Mapping[bytes, Place],
        moved: Callable[[int], None],
    ) -> Path:
        """See `Transfer`."""
        self._begin(grant, cancel)
        data = grant.inline if grant.inline is not None else self.blobs[grant.blob.digest]
        (folder / grant.blob.digest).write_bytes(data)
        moved(len(data))
        return folder / grant.blob.digest

    def upload(
        self, source: Path, grant: Grant, blocks: BlockList, *, cancel: threading.Event, moved: Callable[[int], None]
    ) -> None:
        """See `Transfer`."""
        self._begin(grant, cancel)
        self.blobs[blocks.digest] = source.read_bytes()
        moved(blocks.size)

    def _begin(self, grant: Grant, cancel: threading.Event) -> None:
        if cancel.is_set():
            raise TransferCancelled("cancelled")
        self.capabilities.append(grant.capability)
        if self.refusals:
            raise self.refusals.pop(0)
