"""Which blobs may go: those that no row names.

The references are tested in the transaction that deletes the row, so an accept that runs at the same time either sees
no blob (and says `need`), or holds it.
"""

from collections.abc import Iterator

from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.rows import Blob, Ref
from fedfleet_coordinator.store.port import Tx

_AT_ONCE = 500
_PAGE = 100
"""A blob's row may carry 64 KiB: that many are in memory at a time."""


def collect(tx: Tx, now: Now, grace_s: float) -> list[str]:
    """Delete the rows of blobs that nothing names and that are older than the grace time.

    Args:
        grace_s: how long a blob may be here before a row names it: an upload comes before its reply.

    Returns:
        Names of files to unlink after the commit.
    """
    files: list[str] = []
    deleted = 0
    for page in _by_age(tx):
        old = [blob for blob in page if now.up - blob.stored_at >= grace_s]
        named = {ref.digest for ref in tx.find(Ref, digest=tuple(blob.digest for blob in old))}
        gone = [blob for blob in old if blob.digest not in named][: _AT_ONCE - deleted]
        tx.delete(*gone)
        files += [blob.file for blob in gone if blob.file]
        deleted += len(gone)
        if len(old) < len(page) or deleted >= _AT_ONCE:
            break
    return files


def _by_age(tx: Tx) -> Iterator[list[Blob]]:
    """Yield all blobs, oldest first, in pages; those of one instant are in one page."""
    after: tuple[str, float] | None = None
    while page := tx.find(Blob, order=("stored_at",), after=after, limit=_PAGE):
        last = page[-1].stored_at
        whole = [blob for blob in page if blob.stored_at < last] + tx.find(Blob, stored_at=last)
        yield whole
        after = ("stored_at", last)
