"""A cluster and a store in memory, in which actions can be done: twins of what `controller` acts on."""

import dataclasses
from typing import Any

from fedfleet_coordinator.operator.actions import (
    Action,
    Adopt,
    CreateJob,
    CreateRun,
    DeleteJob,
    DeleteObject,
    Emit,
    EndRun,
    MarkCreated,
    NoteExit,
    Release,
    SetPriority,
    SetSuspended,
    WriteStatus,
)  # fmt: skip
from fedfleet_coordinator.operator.reconcile import reconcile
from fedfleet_coordinator.operator.seen import FederatedRun, Job, Observed, Stored
from fedfleet_coordinator.operator.store import RefusedByStore, Silent
from fedfleet_protocol.blocks import blocks_of
from fedfleet_protocol.ids import RunId


class World:
    """One FederatedRun with its Jobs, and what the store says of its run. Actions are done at once.

    Attributes:
        run: None once the object is gone.
        silent_s: for how long no coordinator has answered; None if one does.
    """

    def __init__(
        self,
        run: FederatedRun,
        *,
        stored: Stored | None = None,
        jobs: tuple[Job, ...] = (),
        silent_s: float | None = None,
        max_attempts: int = 6,
    ) -> None:
        self.run: FederatedRun | None = run
        self.stored, self.silent_s, self.max_attempts = stored, silent_s, max_attempts
        self.jobs = {job.name: job for job in jobs}
        self.events: list[Emit] = []
        self.done: list[Action] = []

    def observed(self) -> Observed:
        """Return what the operator sees."""
        stored = None if self.silent_s is not None else self.stored
        return Observed(stored, self.silent_s, tuple(self.jobs.values()))

    def step(self, *, now_wall: float = 0.0) -> list[Action]:
        """Look, do what is to be done, and return it."""
        if self.run is None:
            return []
        actions = reconcile(self.run, self.observed(), now_wall=now_wall)
        for action in actions:
            self.do(action, now_wall=now_wall)
        return actions

    def settle(self, *, now_wall: float = 0.0, at_most: int = 30) -> list[Action]:
        """Go on until there is nothing to be done, and return all that was."""
        done: list[Action] = []
        for _ in range(at_most):
            actions = self.step(now_wall=now_wall)
            if not actions:
                return done
            done += actions
        raise AssertionError(f"after {at_most} steps there is still something to do: {done[-5:]}")

    def do(self, action: Action, *, now_wall: float = 0.0) -> None:
        """Do one action."""
        assert self.run is not None, f"{action} for an object that is gone"
        self.done.append(action)
        match action:
            case Adopt(run_id):
                self.run = dataclasses.replace(self.run, finalized=True, run_id=run_id)
            case MarkCreated():
                self.run = dataclasses.replace(self.run, created=True)
            case CreateJob(name, attempt):
                self.jobs.setdefault(name, Job(name, attempt))
            case DeleteJob(name):
                self.jobs.pop(name, None)
            case WriteStatus(status):
                self.run = dataclasses.replace(self.run, status=status)
            case Emit():
                self.events.append(action)
            case Release():
                self.run = dataclasses.replace(self.run, finalized=False)
                self.run = None if self.run.deleting else self.run
            case DeleteObject():
                self.run = dataclasses.replace(self.run, deleting=True)
            case _:
                self._tell_store(action, self.run, now_wall)

    def _tell_store(self, action: Action, run: FederatedRun, now_wall: float) -> None:
        assert self.silent_s is None, f"{action} while no coordinator answers"
        if isinstance(action, CreateRun):
            self.stored = self.stored or Stored("pending", owner=run.owner, priority=run.priority)
        if self.stored is None:
            return
        match action:
            case SetSuspended(_, suspended):
                self.stored = dataclasses.replace(self.stored, suspended=suspended)
            case SetPriority(_, priority):
                self.stored = dataclasses.replace(self.stored, priority=priority)
            case NoteExit(_, attempt, code, disrupted):
                self._note(self.stored, attempt, code, disrupted=disrupted)
            case EndRun(_, reason, text, purge):
                if self.stored.live:
                    state = "stopped" if reason == "stopped" else "failed"
                    self._end(self.stored, state, reason, text, now_wall)
                if purge:
                    self.stored = None

    def _note(self, stored: Stored, attempt: int, code: int, *, disrupted: bool) -> None:
        if attempt <= stored.noted or not stored.live:
            return
        failures = stored.failures + (not disrupted)
        stored = self.stored = dataclasses.replace(stored, noted=attempt, failures=failures)
        if not disrupted and code == 3:
            self._end(stored, "failed", "app_failed", "the app failed", 0.0)
        elif failures >= self.max_attempts:
            self._end(stored, "failed", "runner_died", "its runners died", 0.0)

    def _end(self, stored: Stored, state: str, reason: str, text: str, now_wall: float) -> None:
        ended = dataclasses.replace(stored, reason=reason, text=text, ended_wall=now_wall)
        self.stored = dataclasses.replace(ended, state=state)  # type: ignore[arg-type]


class MemoryRuns:
    """A coordinator in memory, as `store.Store` has it.

    Attributes:
        runs: what it has, by id. wanted: what it was asked to make. silent: it does not answer.
    """

    def __init__(self) -> None:
        self.runs: dict[RunId, Stored] = {}
        self.wanted: dict[RunId, dict[str, Any]] = {}
        self.bundles: dict[str, bytes] = {}
        self.silent = False

    def look(self) -> dict[RunId, Stored]:
        """See `store.Store`."""
        self._heard()
        return dict(self.runs)

    def create(self, run: RunId, wanted: dict[str, Any]) -> None:
        """See `store.Store`."""
        self._heard()
        if run in self.runs:
            return
        failure = wanted.get("failure", "")
        self.wanted[run] = wanted
        self.runs[run] = Stored(
            "failed" if failure else "pending", owner=wanted["owner"], reason="bundle" if failure else "",
            text=failure, priority=wanted["priority"],
        )  # fmt: skip

    def upload(self, digest: str, data: bytes) -> None:
        """See `store.Store`."""
        self._heard()
        if blocks_of([data]).digest != digest:
            raise RefusedByStore("the bundle's digest is another one")
        self.bundles[digest] = data

    def tell(self, run: RunId, what: str, body: dict[str, Any]) -> None:
        """See `store.Store`."""
        self._heard()
        world = World(FederatedRun("", "", ""), stored=self.runs.get(run))
        action: Action
        if what == "exits":
            action = NoteExit(run, body["attempt"], body["exit_code"], disrupted=body["disrupted"])
        elif what == "end":
            action = EndRun(run, body["reason"], body["text"], purge=body["purge"])
        elif "suspended" in body:
            action = SetSuspended(run, body["suspended"])
        else:
            action = SetPriority(run, body["priority"])
        world.do(action)
        if world.stored is None:
            self.runs.pop(run, None)
        else:
            self.runs[run] = world.stored

    def _heard(self) -> None:
        if self.silent:
            raise Silent("the coordinator does not answer")
