"""Runs transitions against the store, one thread, many to a transaction; what they cause happens after the commit.

Work arrives as functions of (transaction, now, outbox). What is queued when the thread is free goes into one
transaction, so a thousand replies cost a few commits. If one function of a batch raises, the batch is rolled back and
each of its functions runs again in a transaction of its own: nobody's error takes somebody else's work with it.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from fedfleet_coordinator.clock import Now, UpClock
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.rows import UpTime
from fedfleet_coordinator.store.port import Store, Tx
from fedfleet_protocol.ids import AgentId, RunId
from fedfleet_protocol.messages import ToAgent

T = TypeVar("T")
Work = Callable[[Tx, Now, Outbox], T]
Publish = Callable[[list[tuple[AgentId, ToAgent]]], None]
_BATCH = 256
_log = logging.getLogger(__name__)


class Engine:
    """The only writer of the store.

    Args:
        publish: sends messages to agents; called on the event loop, never blocks.
        settle_s: for so long after this start no time counts.
    """

    def __init__(self, store: Store, publish: Publish = lambda sends: None, *, settle_s: float = 0.0) -> None:
        self._store = store
        self._queue: queue.SimpleQueue[tuple[Work[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._watchers: dict[RunId, set[asyncio.Future[None]]] = {}
        self._loop = asyncio.get_running_loop()
        self.publish = publish
        with store.transaction() as tx:
            before = tx.get(UpTime, "hub") or UpTime()
        self.clock = UpClock(before.uptime_s, settle_s=settle_s)
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    async def do(self, work: Work[T]) -> T:
        """Run `work` in a transaction; return its result once it is durable.

        Raises:
            CoordinatorError: what `work` raised; nothing it wrote remains. StoreUnavailable: nothing was changed.
        """
        future: Future[T] = Future()
        self._queue.put((work, future))
        return await asyncio.wrap_future(future)

    async def changed(self, run: RunId, timeout_s: float) -> bool:
        """Wait until the run changes; return whether it did before the time was up."""
        waiter = self._loop.create_future()
        self._watchers.setdefault(run, set()).add(waiter)
        try:
            await asyncio.wait_for(waiter, timeout_s)
        except TimeoutError:
            return False
        finally:
            watchers = self._watchers.get(run, set())
            watchers.discard(waiter)
            if not watchers:
                self._watchers.pop(run, None)
        return True

    async def close(self) -> None:
        """Finish what is queued and stop the thread."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            batch = [item]
            stopping = False
            while len(batch) < _BATCH and not self._queue.empty():
                more = self._queue.get()
                if more is None:
                    stopping = True
                    break
                batch.append(more)
            self._commit(batch)
            if stopping:
                return

    def _commit(self, batch: list[tuple[Work[Any], Future[Any]]]) -> None:
        # From here on nobody can cancel: a result set on a cancelled future would end this thread.
        batch = [item for item in batch if item[1].running() or item[1].set_running_or_notify_cancel()]
        if not batch:
            return
        out = Outbox()
        try:
            with self._store.transaction() as tx:
                results = [work(tx, self.clock.now(), out) for work, _ in batch]
        except Exception as error:  # handed to whoever asked, or tried again one by one
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            else:
                for single in batch:
                    self._commit([single])
            return
        for act in out.commits:
            try:
                act()
            except OSError:
                _log.exception("what follows a commit failed; it is done again at the next start")
        self._loop.call_soon_threadsafe(self._after, out)
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)

    def _after(self, out: Outbox) -> None:
        for run in out.changes:
            for waiter in self._watchers.pop(run, ()):
                if not waiter.done():
                    waiter.set_result(None)
        if out.sends:
            self.publish(out.sends)
