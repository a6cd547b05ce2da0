"""The processes that call the ClientApp, in the order in which virtual time will ask for the answers.

One thread, no locks: who waits for an answer serves all processes meanwhile. Each process has a call in hand and one
behind it, so that it goes on while this side hears of the first. Which process makes a call never matters to what it
returns: a call brings its own state and its own seed. A process that dies is replaced, and its call made once more.
"""

import heapq
import importlib.util
import math
import os
import selectors
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedfleet_coordinator.simulation.errors import NoRoom, Unusable
from fedfleet_coordinator.simulation.worker import Call, Worker, WorkerLost
from fedfleet_protocol import handover
from fedfleet_protocol.errors import ProtocolError
from fedfleet_protocol.ids import Digest, Order, RunId

_AHEAD = 2
_LOOK_S = 0.1
_TRIES = 2


@dataclass(frozen=True, slots=True)
class Answered:
    """What a call returned, in files that are now the caller's.

    Attributes:
        failed: the reply is a Flower `Error`; then the state is as it was before.
        state: what the app left; None is the empty state (or, if `failed`, no change).
    """

    reply: Path
    digest: Digest
    size: int
    state: Path | None
    failed: bool


@dataclass(frozen=True, slots=True)
class Broken:
    """The app ended its own process each time it was called."""

    text: str


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return what the processes get: one thread each and an order of sets that is always the same.

    How many threads add up a sum changes its last bits, so their number must not depend on the number of processes.
    """
    told = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", **own}
    return {**told, "FLWR_TELEMETRY_ENABLED": "0", "PYTHONUNBUFFERED": "1"}


class Pool:
    """A number of processes with one app.

    Args:
        folder: exists, is empty, and on the file system of all that is handed over.
        bundle: the app's file.
        output: a descriptor that takes what the apps print; None throws it away.
        on_wait: called ten times a second while `wait` waits.

    Attributes:
        made: calls that were answered. broken: processes that died.
    """

    def __init__(
        self,
        count: int,
        folder: Path,
        *,
        bundle: Path,
        run: RunId,
        output: int | None,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        if importlib.util.find_spec("fedfleet_trainer") is None:
            raise Unusable("the trainer is not installed here; install it with: pip install 'fedfleet-agent[train]'")
        self.made = self.broken = 0
        self._folder, self._bundle, self._run, self._output, self._on_wait = folder, bundle, run, output, on_wait
        self._environment = environment(os.environ)
        self._done = folder / "done"
        self._done.mkdir()
        self._count = 0
        self._waiting: list[tuple[float, int, Call]] = []
        self._open: dict[Order, int] = {}
        self._results: dict[Order, Answered | Broken] = {}
        self._selector = selectors.DefaultSelector()
        self._workers: list[Worker] = []
        try:
            for _ in range(count):
                self._start()
        except BaseException:
            self.close()
            raise

    def ready(self) -> None:
        """Return when the first process has loaded the app.

        Raises:
            Unusable: it cannot be loaded.
        """
        while not any(worker.loaded for worker in self._workers):
            self._serve(_LOOK_S)

    def submit(self, call: Call, *, at: float) -> None:
        """Have a call made, those with the smallest `at` first."""
        self._count += 1
        self._open[call.order] = _TRIES
        heapq.heappush(self._waiting, (at, self._count, call))
        self.serve()

    def cancel(self, order: Order) -> None:
        """Make a call no more, or forget what it returned."""
        self._open.pop(order, None)
        self.drop(self._results.pop(order, None))

    def wait(self, order: Order) -> Answered | Broken:
        """Return what a call that was submitted returned.

        Raises:
            Unusable, NoRoom: no call can be made any more.
        """
        while order not in self._results:
            self._serve(_LOOK_S)
        del self._open[order]
        return self._results.pop(order)

    @staticmethod
    def drop(answer: Answered | Broken | None) -> None:
        """Remove the files of an answer that nobody wants."""
        if isinstance(answer, Answered):
            answer.reply.unlink(missing_ok=True)
            if answer.state is not None:
                answer.state.unlink(missing_ok=True)

    def serve(self) -> None:
        """Hand out calls and take in answers, without waiting."""
        self._serve(0.0)

    def close(self) -> None:
        """End all processes and forget all calls."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        self._waiting.clear()
        self._selector.close()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._count += 1
        worker = Worker(
            self._folder / f"worker-{self._count}", bundle=self._bundle, run=self._run, output=self._output,
            environment=self._environment,
        )  # fmt: skip
        self._workers.append(worker)
        self._selector.register(worker, selectors.EVENT_READ, worker)

    def _serve(self, wait_s: float) -> None:
        self._hand_out()
        heard = self._selector.select(wait_s)
        for key, _ in heard:
            self._hear(key.data)
        if heard:
            self._hand_out()
        elif wait_s:
            self._on_wait()

    def _hand_out(self) -> None:
        for depth in range(_AHEAD):
            for worker in self._workers:
                if worker.loaded and len(worker.calls) == depth and (call := self._next()) is not None:
                    worker.give(call)

    def _next(self) -> Call | None:
        while self._waiting:
            _, _, call = heapq.heappop(self._waiting)
            if call.order in self._open:
                return call
        return None

    def _hear(self, worker: Worker) -> None:
        try:
            for frame in worker.hear():
                self._take(worker, frame)
        except WorkerLost as lost:
            self._replace(worker, str(lost))
        except ProtocolError as error:
            self._replace(worker, f"the app made its process say what is no frame: {error}")

    def _take(self, worker: Worker, frame: handover.ToAgent) -> None:
        match frame:
            case handover.Loaded():
                worker.loaded = True
            case handover.LoadFailed():
                raise Unusable(f"the ClientApp cannot be loaded: {frame.text}")
            case handover.Done():
                worker.settle(frame.order)
                self._finish(worker, frame)
            case handover.Failed(code="disk"):
                raise NoRoom(f"no room for a reply in {self._folder}: name a larger folder with --scratch")
            case handover.Failed():
                raise WorkerLost(frame.text)

    def _finish(self, worker: Worker, done: handover.Done) -> None:
        self._count += 1
        self.made += 1
        reply = worker.taken(done.reply, self._done / f"reply-{self._count}")
        state = worker.taken(done.state, self._done / f"state-{self._count}") if done.state else None
        answer = Answered(reply, done.reply.digest, done.reply.size, state, done.failed)
        if done.order in self._open:
            self._results[done.order] = answer
        else:
            self.drop(answer)

    def _replace(self, worker: Worker, text: str) -> None:
        """Start another process in the place of one that died; the call it died of is made once more, others again."""
        if not worker.loaded:
            raise Unusable(f"the ClientApp cannot be loaded: {text}; --log FILE keeps what it printed")
        self.broken += 1
        self._selector.unregister(worker)
        self._workers.remove(worker)
        worker.end()
        for place, call in enumerate(worker.calls):
            if call.order not in self._open:
                continue
            self._open[call.order] -= place == 0
            if self._open[call.order]:
                self._count += 1
                heapq.heappush(self._waiting, (-math.inf, self._count, call))
            else:
                self._results[call.order] = Broken(text)
        self._start()
