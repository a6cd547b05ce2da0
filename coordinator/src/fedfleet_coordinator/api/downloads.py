"""Stored blobs as memory, and their lists of blocks."""

import asyncio
from collections import OrderedDict

from fedfleet_coordinator.api.bodies import SLICE_BYTES, mapped
from fedfleet_coordinator.blobs import BlobFolder
from fedfleet_coordinator.errors import Unavailable
from fedfleet_coordinator.rows import Blob
from fedfleet_protocol.blocks import BlockList, blocks_of
from fedfleet_protocol.ids import Digest

_KEPT_LISTS = 512


class Downloads:
    """Gives out stored blobs."""

    def __init__(self, folder: BlobFolder) -> None:
        self._folder = folder
        self._lists: OrderedDict[Digest, asyncio.Task[BlockList]] = OrderedDict()

    def view(self, blob: Blob) -> memoryview:
        """Return a blob's bytes, mapped and not read yet; valid also after the blob is deleted.

        Raises:
            Unavailable: its file is gone or damaged; the operator's to mend.
        """
        if blob.inline is not None:
            return memoryview(blob.inline)
        try:
            return mapped(self._folder.path(blob.file), blob.size)
        except OSError as error:
            raise Unavailable(f"blob {blob.digest[:12]} cannot be read: {error}; restore it from a backup") from error

    async def blocks(self, blob: Blob) -> BlockList:
        """Return a blob's list of blocks; computed once, however many ask for it at the same time.

        Raises:
            Unavailable: as `view`, or its bytes are not what they were.
        """
        task = self._lists.get(blob.digest)
        if task is None:
            task = self._lists[blob.digest] = asyncio.create_task(asyncio.to_thread(self._hash, blob))
            if len(self._lists) > _KEPT_LISTS:
                self._lists.popitem(last=False)
        try:
            return await asyncio.shield(task)
        except Unavailable:
            self._lists.pop(blob.digest, None)
            raise

    def _hash(self, blob: Blob) -> BlockList:
        view = self.view(blob)
        blocks = blocks_of(view[at : at + SLICE_BYTES] for at in range(0, len(view), SLICE_BYTES))
        if blocks.digest != blob.digest:
            raise Unavailable(f"blob {blob.digest[:12]} is damaged on this hub's disk; restore it from a backup")
        return blocks
