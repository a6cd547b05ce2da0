"""In-memory twins of the agent's ports, for tests and the simulation. They keep what the real ones promise."""

from collections.abc import Callable, Sequence

import msgspec

from fedfleet_agent.core import Entry, Lineage
from fedfleet_agent.journal import Contents, LedgerLine
from fedfleet_protocol.ids import RunId


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
