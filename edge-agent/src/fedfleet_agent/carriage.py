"""The files of a task on their way: payload and bundle to the device, the reply from it. Each trip is an errand.

A grant that the hub no longer takes is no failure: the coordinator is asked, and its answer brings a newer notice of
the same order, whose grants are used from then on.
"""

import logging
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fedfleet_agent import core, egress
from fedfleet_agent.blobs import BlobFolder
from fedfleet_agent.config import Config
from fedfleet_agent.errands import Errands
from fedfleet_agent.errors import AgentError, HubRefused, TransferCancelled
from fedfleet_agent.hub import Patience
from fedfleet_agent.incoming import Place, held_blocks
from fedfleet_agent.training import about
from fedfleet_protocol.blocks import BlockList
from fedfleet_protocol.errors import ProtocolError
from fedfleet_protocol.ids import Order
from fedfleet_protocol.messages import Grant, Notice

_log = logging.getLogger(__name__)
_GRANT_WAIT_S = 2.0
_MB = 1_000_000

Happened = Callable[[core.AnyEvent], None]


class Mover(Protocol):
    """Moves blobs; `Transfer` says what each method promises."""

    def fetch(
        self,
        grant: Grant,
        folder: Path,
        *,
        cancel: threading.Event,
        held: Mapping[bytes, Place],
        moved: Callable[[int], None],
    ) -> Path:
        """Return the blob's file in `folder`."""
        ...

    def upload(
        self, source: Path, grant: Grant, blocks: BlockList, *, cancel: threading.Event, moved: Callable[[int], None]
    ) -> None:
        """Bring a blob to the hub."""
        ...


@dataclass(slots=True)
class _Trip:
    """What is on its way for an order; `notice` is replaced when a newer one is heard of."""

    notice: Notice
    cancel: threading.Event = field(default_factory=threading.Event)
    uploading: bool = False


class Carriage:
    """Fetches and brings what tasks need; all methods but the errands' own run in the loop's thread.

    Args:
        transfer: returns what moves blobs with the certificate in force.
        happened: takes what the task machine must hear, from any thread.
        ask: has the coordinator asked, from any thread.
        moved: is called when bytes moved, from any thread.
    """

    def __init__(
        self,
        transfer: Callable[[], Mover],
        blobs: BlobFolder,
        errands: Errands,
        rng: random.Random,
        *,
        happened: Happened,
        ask: Callable[[], None],
        moved: Callable[[int], None],
    ) -> None:
        self._transfer = transfer
        self._blobs = blobs
        self._errands = errands
        self._rng = rng
        self._happened = happened
        self._ask = ask
        self._moved = moved
        self._trips: dict[Order, _Trip] = {}

    def fetch(self, notice: Notice, config: Config) -> None:
        """Get payload and bundle; `Fetched` or `Failed` tells of the end, unless it is cancelled."""
        trip = self._trip(notice)

        def work() -> None:
            try:
                event = self._fetched(trip, config)
            except TransferCancelled:
                return
            except AgentError as error:
                event = core.Failed(notice.order, "disk", str(error))
            self._happened(event)

        self._errands.send("fetch", work)

    def upload(self, entry: core.Entry, grant: Grant, *, lost: Callable[[str], None]) -> None:
        """Bring the reply; `Uploaded` or `UploadFailed` tells of the end, unless it is cancelled.

        Args:
            lost: is called, from another thread, when the reply is not on the disk any more.
        """
        trip, reply = self._trip(entry.notice), entry.reply
        if reply is None or trip.uploading:
            return  # asked for again while it is on its way
        trip.uploading = True

        def work() -> None:
            try:
                path, blocks = self._blobs.path(reply.digest), self._blobs.blocks(reply.digest)
                self._transfer().upload(path, grant, blocks, cancel=trip.cancel, moved=self._moved)
                event: core.AnyEvent = core.Uploaded(entry.order, reply.digest)
            except TransferCancelled:
                return
            except HubRefused as error:
                _log.info("the upload was refused: %s", error, extra={"run": entry.notice.run, "n": entry.notice.n})
                event = core.UploadFailed(entry.order)
            except AgentError as error:
                lost(str(error))
                return
            finally:
                trip.uploading = False
            self._happened(event)

        self._errands.send("upload", work)

    def renewed(self, notice: Notice) -> None:
        """Use the grants of this notice from now on, if its order is on its way."""
        trip = self._trips.get(notice.order)
        if trip is not None:
            trip.notice = notice

    def cancel(self, order: Order) -> None:
        """Give up what is on its way for the order; what arrived is kept for the next time."""
        trip = self._trips.pop(order, None)
        if trip is not None:
            trip.cancel.set()

    def _trip(self, notice: Notice) -> _Trip:
        """Return the trip of an order. There is one task at a time: those of other orders are over."""
        for order in [order for order in self._trips if order != notice.order]:
            self.cancel(order)
        trip = self._trips.setdefault(notice.order, _Trip(notice))
        trip.notice = notice
        return trip

    # --- in the errand's thread --------------------------------------------------------------------------------------

    def _fetched(self, trip: _Trip, config: Config) -> core.AnyEvent:
        patience = Patience(self._rng, trip.cancel)
        while True:
            notice = trip.notice
            missing = [blob for blob in (notice.bundle, notice.payload) if not self._blobs.has(blob.blob.digest)]
            needed, used = sum(grant.blob.size for grant in missing), self._blobs.used_bytes()
            if used + needed > config.limits.disk_mb * _MB:
                return core.Failed(
                    notice.order,
                    "disk",
                    f"the task needs {needed / _MB:.0f} MB more, the agent uses {used / _MB:.0f} MB, its owner allows "
                    f"{config.limits.disk_mb} MB ([limits] disk_mb)",
                )
            try:
                for grant in missing:
                    self._transfer().fetch(
                        grant,
                        self._blobs.folder,
                        cancel=trip.cancel,
                        held=held_blocks(self._blobs.folder),
                        moved=self._moved,
                    )
            except HubRefused as error:
                _log.info("not fetched yet: %s", error, extra={"run": notice.run, "n": notice.n})
                self._ask()
                patience.wait(_GRANT_WAIT_S)
                continue
            return self._allowed(notice, config)

    def _allowed(self, notice: Notice, config: Config) -> core.AnyEvent:
        """Return `Fetched` if an answer to the task could ever leave."""
        try:
            message_type, _ = about(self._blobs.path(notice.payload.blob.digest))
        except (ProtocolError, OSError) as error:
            return core.Failed(notice.order, "payload", f"the task cannot be read: {error}")
        verdict = egress.judge_task(config.egress, message_type)
        if isinstance(verdict, egress.Withheld):
            return core.Failed(notice.order, verdict.code, verdict.text)
        return core.Fetched(notice.order)
