"""Runners of the simulation: processes that open exchanges, fold replies and commit checkpoints, and may be killed."""

import random
from collections.abc import Callable

from fedfleet_coordinator import runs
from fedfleet_coordinator.errors import RunIsOver, StaleEpoch
from fedfleet_coordinator.rows import Position, Run
from fedfleet_protocol.blocks import blocks_of
from fedfleet_protocol.ids import AgentId, Digest, RunId
from fedfleet_protocol.messages import BlobRef, Checkpoint, ExchangeView, Open
from tests.simulation.faults import Faults
from tests.simulation.hub import Hub, HubDown
from tests.simulation.timeline import Timeline
from tests.simulation.work import fold

INITIAL = b"model 0"


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
    """One runner process. It retries every call until it is answered, and stops when it is fenced."""

    def __init__(self, launcher: Launcher, epoch: str) -> None:
        self._l, self._epoch, self.dead = launcher, epoch, False
        self._n, self._k, self._model = 1, 1, INITIAL
        self._cohort: dict[AgentId, BlobRef] = {}
        self._call(self._position, self._begin)

    def _call(self, work: Callable[..., object], then: Callable[[object], None]) -> None:
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

    def _position(self, tx, now, out):  # type: ignore[no-untyped-def]
        return tx.get(Position, self._l.run)

    def _begin(self, position: object) -> None:
        if isinstance(position, Position):
            self._n, self._k = position.next_n, position.next_answer
            self._model = self._l.hub.watch.files[Digest(position.blobs["model"][0])]
        self._next()

    def _next(self) -> None:
        if self._n > self._l.rounds:
            self._call(self._end, lambda _: None)
            return
        k = self._k
        self._call(lambda tx, now, out: runs.node_ids(tx, self._l.run, self._epoch, k, now), self._choose)

    def _choose(self, answer: object) -> None:
        self._k += 1
        payload = BlobRef(blocks_of([self._model]).digest, len(self._model))
        assert isinstance(answer, tuple)
        agents, _ = answer
        self._cohort = {agent: payload for agent in self._l.hub.devices if agent in agents}
        self._call(self._open, self._opened)

    def _open(self, tx, now, out):  # type: ignore[no-untyped-def]
        request = Open(run=self._l.run, epoch=self._epoch, n=self._n, cohort=self._cohort, label="train",
                       deadline_s=self._l.faults.deadline)  # fmt: skip
        view = runs.open_exchange(tx, request, self._l.hub.exchanges, now, out)
        if view.need:
            self._l.hub.put_blob(tx, self._model, now)
            view = runs.open_exchange(tx, request, self._l.hub.exchanges, now, out)
        return view

    def _opened(self, view: object) -> None:
        assert isinstance(view, ExchangeView) and view.closed != "nondeterministic", view
        if view.closed:
            self._fold(view)
        else:
            look = lambda tx, now, out: self._l.hub.exchanges.view(tx, self._l.run, self._n)  # noqa: E731
            self._l.timeline.after(2.0, lambda: self._call(look, self._opened))

    def _fold(self, view: ExchangeView) -> None:
        replies = sorted((ref for ref in view.replies if ref.blob is not None), key=lambda ref: ref.agent)
        self._check_blobs([ref.blob.digest for ref in replies if ref.blob is not None])
        works = [self._l.hub.watch.files[ref.blob.digest] for ref in replies if ref.blob is not None]
        self._model = fold(self._model, works)
        self._n += 1
        if self._n % 2 and self._n <= self._l.rounds:
            self._call(self._commit, lambda _: self._next())
        else:
            self._next()

    def _check_blobs(self, digests: list[Digest]) -> None:
        from fedfleet_coordinator.rows import Blob

        with self._l.hub.store.transaction() as tx:
            row = tx.get(Run, self._l.run)
            if row is not None and row.epoch == self._epoch:
                gone = [digest for digest in digests if tx.get(Blob, digest) is None]
                assert not gone, f"the blobs of accepted replies are gone: {gone}"

    def _commit(self, tx, now, out):  # type: ignore[no-untyped-def]
        blob = BlobRef(self._l.hub.put_blob(tx, self._model, now), len(self._model))
        request = Checkpoint(run=self._l.run, epoch=self._epoch, next_n=self._n, next_answer=self._k,
                             server_round=self._n - 1, blobs={"model": blob})  # fmt: skip
        return self._l.hub.exchanges.checkpoint(tx, request, now, out)

    def _end(self, tx, now, out):  # type: ignore[no-untyped-def]
        blob = BlobRef(self._l.hub.put_blob(tx, self._model, now), len(self._model))
        return runs.end_by_runner(tx, self._l.run, self._epoch, "finished", "finished", "", blob,
                                  self._l.hub.exchanges, now, out)  # fmt: skip
