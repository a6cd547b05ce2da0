"""Runners of the simulation: processes that open exchanges, fold replies and commit checkpoints, and may be killed."""

import random
from collections.abc import Callable

from fedfleet_coordinator import runs
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.errors import RunIsOver, StaleEpoch
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.rows import Blob, Position, Run
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.blocks import blocks_of
from fedfleet_protocol.ids import AgentId, Digest, RunId
from fedfleet_protocol.messages import BlobRef, Checkpoint, ExchangeView, Open
from tests.simulation.faults import Faults
from tests.simulation.hub import Hub, HubDown
from tests.simulation.timeline import Timeline
from tests.simulation.work import fold

INITIAL = b"model 0"
Work = Callable[[Tx, Now, Outbox], object]


class Launcher:
    """Starts a run's runners, one after the other; after a split two are alive."""

    def __init__(
        self, hub: Hub, timeline: Timeline, rng: random.Random, faults: Faults, run: RunId, rounds: int
    ) -> None:
        self.hub, self.timeline, self.rng, self.faults, self.run, self.rounds = hub, timeline, rng, faults, run, rounds
        self.runner: Runner | None = None
        self.stale: list[Runner] = []
        hub.on_restart.append(self.launch)

    def launch(self) -> None:
        """Fence the runner there was, and start one."""
        if self.runner is not None:
            self.stale.append(self.runner)
        self.runner = None
        epoch = f"{self.rng.getrandbits(64):x}"
        try:
            row = self.hub.do(lambda tx, now, out: runs.launch(tx, self.run, epoch, now, out))
        except HubDown:
            return  # the hub launches when it is back
        if row is not None:
            self.runner = Runner(self, epoch)

    def kill(self) -> None:
        """Kill the runner; the hub notices and starts another."""
        if self.runner is not None:
            self.runner.dead = True
            self.runner = None
            self.timeline.after(self.rng.uniform(0.1, 5.0), self.launch_if_none)

    def launch_if_none(self) -> None:
        """Start a runner unless there is one."""
        if self.runner is None and not self.hub.down:
            self.launch()


class Runner:
    """One runner process. It retries every call until it is answered, and stops when it is fenced.

    It keeps up to `window` exchanges open; each sends the model as it was `window` folds before.
    """

    def __init__(self, launcher: Launcher, epoch: str) -> None:
        self._l, self._epoch, self.dead = launcher, epoch, False
        self._models: dict[int, bytes] = {0: INITIAL}
        self._folded, self._opened_n = 0, 0
        self._cohorts: dict[int, list[AgentId]] = {}
        self._call(self._position, self._begin)

    def _call(self, work: Work, then: Callable[[object], None]) -> None:
        """Call the hub; once answered, go on. The request, or its answer, may be lost: then call again."""

        def arrive() -> None:
            if self.dead:
                return
            try:
                answer = self._l.hub.do(work)
            except HubDown:
                self._call(work, then)
                return
            except (StaleEpoch, RunIsOver):
                self.dead = True
                return
            if self._l.rng.random() < self._l.faults.cut / 2 and not self._l.hub.calm:
                self._call(work, then)
            else:
                then(answer)

        self._l.timeline.after(self._l.rng.uniform(0.01, 2.0), arrive)

    def _position(self, tx: Tx, now: Now, out: Outbox) -> Position | None:
        return tx.get(Position, self._l.run)

    def _begin(self, position: object) -> None:
        if isinstance(position, Position):
            self._folded = self._opened_n = position.next_n - 1
            files = self._l.hub.watch.files
            self._models = {int(k): files[Digest(blob[0])] for k, blob in position.blobs.items()}
        self._next()

    def _next(self) -> None:
        """Open what may be open, then wait for the oldest."""
        if self._folded >= self._l.rounds:
            self._call(self._end, lambda _: None)
        elif self._opened_n < min(self._l.rounds, self._folded + self._l.faults.window):
            n = self._opened_n + 1
            self._call(lambda tx, now, out: runs.node_ids(tx, self._l.run, self._epoch, n, now, out), self._choose)
        else:
            n = self._folded + 1
            look: Work = lambda tx, now, out: self._l.hub.exchanges.view(tx, self._l.run, n)  # noqa: E731
            self._call(look, self._looked)

    def _choose(self, answer: object) -> None:
        assert isinstance(answer, tuple)
        n = self._opened_n + 1
        self._cohorts[n] = [agent for agent in self._l.hub.devices if agent in answer[0]]
        self._call(lambda tx, now, out: self._open(tx, n, now, out), self._opened)

    def _open(self, tx: Tx, n: int, now: Now, out: Outbox) -> ExchangeView:
        faults, model = self._l.faults, self._models[max(0, n - self._l.faults.window)]
        payload = BlobRef(blocks_of([model]).digest, len(model))
        request = Open(run=self._l.run, epoch=self._epoch, n=n, cohort=dict.fromkeys(self._cohorts[n], payload),
                       label="train", deadline_s=faults.deadline, quorum=faults.quorum, grace_s=faults.grace,
                       late="keep" if faults.keep else "refuse")  # fmt: skip
        view = runs.open_exchange(tx, request, self._l.hub.exchanges, now, out)
        if view.need:
            self._l.hub.put_blob(tx, model, now)
            view = runs.open_exchange(tx, request, self._l.hub.exchanges, now, out)
        return view

    def _opened(self, view: object) -> None:
        assert isinstance(view, ExchangeView) and view.closed != "nondeterministic", view
        self._opened_n = view.n
        self._next()

    def _looked(self, view: object) -> None:
        assert isinstance(view, ExchangeView)
        if view.closed:
            self._fold(view)
        else:
            self._l.timeline.after(2.0, self._next)

    def _fold(self, view: ExchangeView) -> None:
        replies = sorted((ref for ref in view.replies if ref.blob is not None and not ref.late), key=lambda r: r.agent)
        self._check_blobs([ref.blob.digest for ref in replies if ref.blob is not None])
        works = [self._l.hub.watch.files[ref.blob.digest] for ref in replies if ref.blob is not None]
        self._models[view.n] = fold(self._models[view.n - 1], works)
        self._folded = view.n
        if self._folded % 2 == 0 and self._folded < self._l.rounds:
            self._call(self._commit, lambda _: self._next())
        else:
            self._next()

    def _check_blobs(self, digests: list[Digest]) -> None:
        with self._l.hub.store.transaction() as tx:
            row = tx.get(Run, self._l.run)
            if row is not None and row.epoch == self._epoch:
                gone = [digest for digest in digests if tx.get(Blob, digest) is None]
                assert not gone, f"the blobs of accepted replies are gone: {gone}"

    def _commit(self, tx: Tx, now: Now, out: Outbox) -> object:
        kept = range(max(0, self._folded - self._l.faults.window + 1), self._folded + 1)
        blobs = {}
        for k in kept:
            blobs[str(k)] = BlobRef(self._l.hub.put_blob(tx, self._models[k], now), len(self._models[k]))
        request = Checkpoint(run=self._l.run, epoch=self._epoch, next_n=self._folded + 1, server_round=self._folded,
                             blobs=blobs)  # fmt: skip
        return self._l.hub.exchanges.checkpoint(tx, request, now, out)

    def _end(self, tx: Tx, now: Now, out: Outbox) -> object:
        model = self._models[self._folded]
        blob = BlobRef(self._l.hub.put_blob(tx, model, now), len(model))
        return runs.end_by_runner(tx, self._l.run, self._epoch, "finished", "finished", "", blob,
                                  self._l.hub.exchanges, now, out)  # fmt: skip
