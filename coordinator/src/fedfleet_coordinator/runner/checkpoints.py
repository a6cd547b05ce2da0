"""What is committed after each round, and where a new runner goes on.

A checkpoint names two blobs for each call of `Strategy.start`: `arrays.<i>`, a record dict with the global arrays, and
`state.<i>`, all else: the strategy's attributes, configs, metrics, the ServerApp's Context, the random generators, the
Grid's counters. A call that has ended keeps the blobs of its last round, so an app that trains twice finds the result
of the first training, and goes on in the second.
"""

import logging
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.serverapp.strategy import Result, Strategy

from fedfleet_coordinator.errors import HubRefused
from fedfleet_coordinator.rows import Position, Run
from fedfleet_coordinator.runner import chance
from fedfleet_coordinator.runner.freezing import Freezer, State, Thawer
from fedfleet_coordinator.runner.grid import FleetGrid
from fedfleet_coordinator.runner.hub import Hub
from fedfleet_coordinator.runner.payloads import Payload, pack, spill
from fedfleet_coordinator.runner.scratch import Scratch
from fedfleet_flower.contents import StoredContent, from_records, read_content
from fedfleet_protocol.ids import Digest
from fedfleet_protocol.messages import BlobRef, Checkpoint
from fedfleet_protocol.records import Content, encode

_log = logging.getLogger("fedfleet")


class Course:
    """One call of `Strategy.start`: what changes from round to round.

    Attributes:
        index: which call it is, from 1. entered_n: the number of the exchange that came next when it began.
        server_round: the last round that is complete.
        arrays: the global arrays. aggregated: whether a round made them, or they are still the initial ones.
    """

    def __init__(
        self,
        strategy: Strategy,
        arrays: ArrayRecord,
        train_config: ConfigRecord,
        evaluate_config: ConfigRecord,
        *,
        index: int,
        entered_n: int,
    ) -> None:
        self.strategy, self.arrays = strategy, arrays
        self.train_config, self.evaluate_config = train_config, evaluate_config
        self.index, self.entered_n = index, entered_n
        self.server_round = 0
        self.aggregated = False
        self.result = Result()


class Checkpoints:
    """Commits rounds and restores them.

    Attributes:
        model: the arrays that the last call of `start` ended with, once it has aggregated some.
    """

    def __init__(
        self, hub: Hub, run: Run, scratch: Scratch, grid: FleetGrid, context: Context, position: Position | None
    ) -> None:
        self._hub, self._run, self._scratch, self.grid, self._context = hub, run, scratch, grid, context
        named = position.blobs if position is not None else {}
        self._blobs = {name: BlobRef(Digest(digest), size) for name, (digest, size) in named.items()}
        self._starts = 0
        self._committed: ArrayRecord | None = None
        self._beyond: set[str] = set()
        self.model: BlobRef | None = None

    @property
    def hub(self) -> Hub:
        """The hub that keeps them."""
        return self._hub

    def course(
        self, strategy: Strategy, arrays: ArrayRecord, train_config: ConfigRecord, evaluate_config: ConfigRecord
    ) -> Course:
        """Return the next call of `start`, restored to the last round that was committed of it."""
        self._starts += 1
        self._committed = None
        course = Course(
            strategy, arrays, train_config, evaluate_config, index=self._starts, entered_n=self.grid.sender.next_n
        )
        if f"state.{course.index}" in self._blobs:
            self._restore(course)
        return course

    def commit(self, course: Course) -> None:
        """Make the round that is complete durable; a new runner goes on after it."""
        arrays, state = f"arrays.{course.index}", f"state.{course.index}"
        payloads = {}
        if course.arrays is not self._committed:
            records = RecordDict({"arrays": course.arrays})
            payloads[arrays] = self._keep(from_records(records))
            # Spilled through a record dict that holds the same record: the model takes no memory between rounds.
            spill(records, payloads[arrays])
        payloads[state] = self._keep(self._frozen(course))
        self._blobs |= {name: payload.blob for name, payload in payloads.items()}
        grid = self.grid
        request = Checkpoint(
            run=self._run.run, epoch=self._run.epoch, next_n=grid.sender.next_n, next_answer=grid.next_answer,
            # Replies to pushes that were not pulled yet stay; else, what came before the loop.
            keep_below=grid.sender.next_n if grid.pushed else course.entered_n,
            server_round=course.server_round, blobs=self._blobs,
        )  # fmt: skip
        while need := self._hub.checkpoint(request):
            again = [payload for payload in payloads.values() if payload.blob.digest in need]
            if not again:
                raise HubRefused(f"a checkpoint lacks blobs that an earlier one held: {', '.join(need)}")
            for payload in again:
                self._hub.store(payload.file.fd, payload.blocks)
        self._committed = course.arrays
        self._note_model(course)

    def _keep(self, content: Content) -> Payload:
        payload = pack(content, self._scratch)
        self._hub.store(payload.file.fd, payload.blocks)
        return payload

    def _frozen(self, course: Course) -> Content:
        freezer = Freezer({"arrays": course.arrays}, self._beyond)
        records = freezer.freeze(self._parts(course))
        for path, why in freezer.left_out.items():
            self._beyond.add(path)
            _log.warning(
                "checkpoints leave out %s because of %s: a runner that has to continue begins with what the app's own "
                "code puts there; keep state in numbers, arrays, lists and dicts",
                path.removeprefix("state."), why.removeprefix("state."),
            )  # fmt: skip
        return encode(records)

    def _parts(self, course: Course) -> State:
        return State(
            server_round=course.server_round, aggregated=course.aggregated, strategy=course.strategy,
            train_config=course.train_config, evaluate_config=course.evaluate_config,
            train_metrics=course.result.train_metrics_clientapp,
            evaluate_metrics=course.result.evaluate_metrics_clientapp,
            server_metrics=course.result.evaluate_metrics_serverapp,
            chance=chance.state(), context=self._context.state, grid=self.grid.state(),
        )  # fmt: skip

    def _restore(self, course: Course) -> None:
        arrays = self._read(f"arrays.{course.index}").records()["arrays"]
        assert isinstance(arrays, ArrayRecord)  # a checkpoint is written by this class alone
        parts = self._parts(course)
        vars(parts).update(chance=None, grid=None)  # nothing of these is to be refilled
        thawer = Thawer(self._read(f"state.{course.index}"), {"arrays": arrays})
        thawer.thaw(parts)
        for path in thawer.left_out:
            _log.warning("%s could not be put back; results may differ from those of an undisturbed run", path)
        found: Any = parts
        course.server_round, course.aggregated, course.arrays = found.server_round, found.aggregated, arrays
        if course.aggregated:
            course.result.arrays = arrays
        _refill(course.train_config, found.train_config)
        _refill(course.evaluate_config, found.evaluate_config)
        _refill(self._context.state, found.context)
        self.grid.restore(found.grid)
        chance.restore(found.chance)
        self._committed = arrays
        self._note_model(course)

    def _read(self, name: str) -> StoredContent:
        return read_content(self._hub.fetch(self._blobs[name]))

    def _note_model(self, course: Course) -> None:
        if course.aggregated:
            self.model = self._blobs[f"arrays.{course.index}"]


def _refill(into: Any, found: Any) -> None:
    into.clear()
    into.update(found)
