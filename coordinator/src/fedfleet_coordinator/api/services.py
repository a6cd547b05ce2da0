"""What the routes may reach: one value, made by the coordinator's `__main__` and put into the application's state."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from fedfleet_coordinator.api.downloads import Downloads
from fedfleet_coordinator.api.uploads import Uploads
from fedfleet_coordinator.blobs import BlobFolder
from fedfleet_coordinator.capabilities import Capabilities
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.engine import Engine
from fedfleet_coordinator.enrolment import Addresses
from fedfleet_coordinator.exchanges import Exchanges
from fedfleet_coordinator.managed import Reviewer
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.pki import Pki
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.ids import AgentId, RunId

T = TypeVar("T")


def _nothing(_: object) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes may reach.

    Attributes:
        on_submit: told of each new run, so that its runner starts at once.
        reviewer: says whose token a runner in a cluster shows; None outside of clusters.
        on_revoke: told of each revoked agent, once the row is committed: the broker is to forget it.
        ready: why the coordinator cannot serve now, in a sentence; empty if it can.
        stopping: set when the server stops; who waits for a change gives up then.
    """

    engine: Engine
    exchanges: Exchanges
    blobs: BlobFolder
    uploads: Uploads
    capabilities: Capabilities
    pki: Pki
    addresses: Addresses
    reviewer: Reviewer | None = None
    on_submit: Callable[[RunId], None] = _nothing
    on_revoke: Callable[[AgentId], None] = _nothing
    ready: Callable[[], str] = lambda: ""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    downloads: Downloads = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "downloads", Downloads(self.blobs))

    async def watch(
        self, run: RunId, look: Callable[[Tx, Now, Outbox], T], *, enough: Callable[[T], bool], wait_s: float
    ) -> T:
        """Return what `look` sees of a run once that is enough, or after `wait_s` seconds, or when the server stops.

        No change is missed: whoever waits does so from before it looks.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        stopping = asyncio.create_task(self.stopping.wait())
        try:
            while True:
                left = until - loop.time()
                change = asyncio.create_task(self.engine.changed(run, max(0.0, left)))
                await asyncio.sleep(0)  # it waits from here on
                try:
                    seen = await self.engine.do(look)
                    if enough(seen) or left <= 0 or self.stopping.is_set():
                        return seen
                    await asyncio.wait({change, stopping}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    change.cancel()
        finally:
            stopping.cancel()


async def _services(request: Request) -> Services:  # not async it would run in a thread
    services: Services = request.app.state.services
    return services


Hub = Annotated[Services, Depends(_services)]
"""A route's argument by which it gets the services."""
