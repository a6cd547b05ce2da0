"""Which blobs may go: those that no row names.

The references are tested in the transaction that deletes the row, so an accept that runs at the same time either sees
no blob (and says `need`), or holds it.
"""

from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.rows import Blob, Ref
from fedfleet_coordinator.store.port import Tx

_AT_ONCE = 500


def collect(tx: Tx, now: Now, grace_s: float) -> list[str]:
    """Delete the rows of blobs that nothing names and that are older than the grace time.

    Args:
        grace_s: how long a blob may be here before a row names it: an upload comes before its reply.

    Returns:
        Names of files to unlink after the commit.
    """
    files: list[str] = []
    for blob in tx.find(Blob, order=("stored_at",)):
        if now.up - blob.stored_at < grace_s or len(files) >= _AT_ONCE:
            break
        if not tx.find(Ref, digest=blob.digest, limit=1):
            tx.delete(blob)
            files.append(blob.file)
    return [file for file in files if file]
