"""One simulated run, from an empty scratch folder to its end.

HOME/                 in memory if there is room (/dev/shm), gone afterwards
  app/ scratch/         the ServerApp, unpacked, and its own bytes
  blobs/ states/        what the coordinator and the devices would keep
  pool/                 the bundle, the processes' folders, and replies nobody took yet
"""

import fcntl
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from fedfleet_coordinator.api.snapshots import run_row, run_snapshot
from fedfleet_coordinator.errors import TooFewAgents
from fedfleet_coordinator.rows import Run
from fedfleet_coordinator.runner.patience import Patience
from fedfleet_coordinator.runner.process import outcome_of
from fedfleet_coordinator.runner.scratch import Scratch
from fedfleet_coordinator.simulation.errors import NoRoom, room_in
from fedfleet_coordinator.simulation.fleet import Fleet
from fedfleet_coordinator.simulation.hub import SimulatedHub
from fedfleet_coordinator.simulation.pool import Pool
from fedfleet_protocol.blocks import blocks_of
from fedfleet_protocol.ids import AgentId, run_id

MEMORY = Path("/dev/shm")  # noqa: S108 - folders in it are made by mkdtemp
_PREFIX = "fedfleet-simulation-"
_ROOM_BYTES = 2 << 30
_YOUNG_S = 60.0
_PATIENCE_S = 20.0
Json = dict[str, Any]


class Simulation:
    """A run on a fleet that does not exist; `with Simulation(...) as simulation: simulation.execute()`.

    Args:
        bundle: the app.
        fleet: the devices.
        workers: processes that make their calls.
        run: fields of `rows.Run`, as for a run on a fleet; `fleet.conditions.seed` is the run's seed as well.
        scratch: folder for everything; None chooses one.
        output: a descriptor that takes what the ClientApps print; None throws it away.
        watch: told after each thing that happened, and ten times a second while nothing does.

    Raises:
        Unusable: from `execute`, the ClientApp cannot be loaded. NoRoom: from all, the scratch folder is full.
    """

    hub: SimulatedHub
    pool: Pool

    def __init__(
        self,
        bundle: bytes,
        fleet: Fleet,
        *,
        workers: int = 1,
        run: Mapping[str, Any] | None = None,
        scratch: Path | None = None,
        output: int | None = None,
        watch: Callable[["Simulation"], None] = lambda simulation: None,
    ) -> None:
        self._bundle, self._fleet, self._workers, self._output = bundle, fleet, workers, output
        self._scratch, self._watch = scratch, watch
        seed = fleet.conditions.seed
        self._row = Run(
            run=run_id(seed.to_bytes(16, "big")), bundle=blocks_of([bundle]).digest, bundle_size=len(bundle),
            **{**(run or {}), "seed": seed},
        )  # fmt: skip

    def __enter__(self) -> Self:
        parent = self._scratch.expanduser().resolve() if self._scratch else roomy_folder()
        sweep(parent)
        try:
            self._home = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        except OSError as error:
            raise NoRoom(f"{parent} cannot be used: {error.strerror}; name another with --scratch") from error
        self._lock = _locked(self._home)
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if hasattr(self, "pool"):
            self.pool.close()
        shutil.rmtree(self._home, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)

    def execute(self) -> Run:
        """Return the run as it ended.

        The ServerApp runs in this process: its modules are loaded from the scratch folder and forgotten afterwards.
        """
        row, position = self.hub.look()
        patience = _Unchanging(self.hub, at_least=1, limit_s=_PATIENCE_S)
        self.pool.ready()
        with room_in(self._home), as_it_was(self._home):
            outcome = outcome_of(
                self.hub, row, position, self._home, Scratch(self._home / "scratch"), patience=patience
            )
            self.hub.end(outcome.state, outcome.reason, outcome.text, outcome.model)
        self.hub.close_books()
        self._watch(self)
        return self.hub.read(lambda tx, now: run_row(tx, row.run))

    def snapshot(self) -> Json:
        """Return the run as the coordinator shows one, with what only a simulation has under `simulation`."""
        found = self.hub.read(lambda tx, now: run_snapshot(tx, self._row.run, now))
        told = {
            "agents": self._fleet.agents, "cohort": self._fleet.cohort, "virtual_s": self.hub.up_s,
            "calls": self.pool.made, "crashes": self.pool.broken, **self.hub.history.as_json(),
        }  # fmt: skip
        closed = {one["n"]: one for one in (*self.hub.history.closed, *found["closed"])}
        return {**found, "closed": list(closed.values()), "simulation": told}

    def timeline(self) -> Json:
        """Return what some of the agents did when; complete once the run has ended."""
        return {"run": self._row.run, "tasks": self.hub.history.spans}

    def model(self) -> bytes | None:
        """Return the model that the run ended with, as a content's bytes."""
        row = self.hub.read(lambda tx, now: run_row(tx, self._row.run))
        return None if row.model is None else self.hub.blob(row.model).read_bytes()

    def _begin(self) -> None:
        allow_many_files()
        folder = self._home / "pool"
        bundle = folder / "bundle"
        with room_in(self._home):
            folder.mkdir()
            bundle.write_bytes(self._bundle)
            (self._home / "scratch").mkdir()
            self.pool = Pool(
                self._workers, folder, bundle=bundle, run=self._row.run, output=self._output, on_wait=self._look
            )
            self.hub = SimulatedHub(
                self._row, self._fleet, folder=self._home, bundle=bundle, pool=self.pool, watch=self._look
            )

    def _look(self) -> None:
        if hasattr(self, "hub"):
            self._watch(self)


class _Unchanging(Patience):
    """Waits no longer than it takes to see that an app waits: a simulated fleet never gets more agents."""

    def agents(self, k: int) -> list[AgentId]:
        """Return the agents that there are; there will never be enough if there are not now.

        Raises:
            TooFewAgents: the app needs more, or waits for more.
        """
        agents = super().agents(k)
        if len(agents) < self.needs:
            raise TooFewAgents(self._told(agents))
        return agents

    def _told(self, agents: list[AgentId]) -> str:
        return (
            f"the app waits for {self.needs or 'more'} agents and is given {len(agents)}; simulate more with --agents "
            "or --cohort, or have the app wait for fewer"
        )


def allow_many_files() -> None:
    """Let this process have as many files open as it may: a large cohort's replies are one each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def roomy_folder() -> Path:
    """Return where a simulation keeps its files: in memory, if that has room."""
    try:
        usage = os.statvfs(MEMORY)
    except OSError:
        return Path(tempfile.gettempdir())
    roomy = usage.f_bavail * usage.f_frsize >= _ROOM_BYTES and os.access(MEMORY, os.W_OK)
    return MEMORY if roomy else Path(tempfile.gettempdir())


def sweep(parent: Path) -> None:
    """Remove what simulations that were killed have left in `parent`: their folders are not locked any more."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            # A folder is locked a moment after it is made.
            if time.time() - folder.stat().st_mtime > _YOUNG_S and (lock := _locked(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _locked(folder: Path) -> int | None:
    """Return a descriptor that locks the folder as long as it is open; None if another process has locked it."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


@contextmanager
def as_it_was(home: Path) -> Iterator[None]:
    """Give this process back its current folder, and forget the modules that were loaded from below `home`."""
    folder, path = Path.cwd(), list(sys.path)
    try:
        yield
    finally:
        os.chdir(folder)
        sys.path[:] = path
        own = [name for name, module in sys.modules.items() if str(home) in str(getattr(module, "__file__", None))]
        for name in own:
            del sys.modules[name]
