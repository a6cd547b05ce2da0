"""One ServerApp from its start to its end."""

import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, RecordDict, UserConfig
from flwr.serverapp import Grid

from fedfleet_coordinator.errors import CoordinatorError, Fenced, RunnerStop
from fedfleet_coordinator.rows import Position, Run
from fedfleet_coordinator.runner import chance, gate
from fedfleet_coordinator.runner.checkpoints import Checkpoints
from fedfleet_coordinator.runner.grid import FleetGrid
from fedfleet_coordinator.runner.hub import Ending, Hub
from fedfleet_coordinator.runner.legacy import batched
from fedfleet_coordinator.runner.patience import Patience
from fedfleet_coordinator.runner.rounds import durable
from fedfleet_coordinator.runner.scratch import Scratch
from fedfleet_coordinator.runner.sending import Sender
from fedfleet_flower import compat
from fedfleet_flower.compat import FlowerRun
from fedfleet_protocol.ids import flower_number
from fedfleet_protocol.messages import BlobRef
from fedfleet_protocol.reasons import RUN

App = Callable[[Grid, Context], object]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        reason: a code of `reasons.RUN`. text: a sentence, or the end of a traceback.
        model: the arrays the last training ended with.
    """

    state: Ending
    reason: str
    text: str = ""
    model: BlobRef | None = None


def execute(
    app: App,
    hub: Hub,
    run: Run,
    position: Position | None,
    *,
    scratch: Scratch,
    run_config: UserConfig,
    details: FlowerRun | None = None,
    patience: Patience | None = None,
) -> Outcome:
    """Run a ServerApp to its end, from its last committed round on if there is one.

    Args:
        app: a ServerApp, or what can be called like one.
        run_config: the app's defaults with the run's overrides in their place.

    Raises:
        Fenced: another runner has taken over, or the run has ended.
        CoordinatorError: the run's gate settings cannot be used, or the hub refuses what only a bug asks for.
    """
    number = flower_number(run.run)
    compat.identify(run=number, node=compat.SERVER_NODE)
    sender = Sender(hub, run, scratch, gate.Settings.of(run.gate))
    patience = patience or Patience(hub, at_least=run.min_agents, limit_s=run.deadline_s)
    details = details or compat.run_details(
        run=number, app=run.app, version="", digest=run.bundle, overrides=run.config
    )
    grid = FleetGrid(hub, run, sender, patience, details)
    context = Context(number, compat.SERVER_NODE, {}, RecordDict(), run_config)
    checkpoints = Checkpoints(hub, run, scratch, grid, context, position)
    gc.freeze()  # what is imported by now stays; the collection after each round does not look at it again
    chance.seed(run.seed)
    try:
        with durable(checkpoints), batched(grid):
            return _ended(_call(app, grid, context), grid, checkpoints)
    finally:
        gc.unfreeze()


def _call(app: App, grid: FleetGrid, context: Context) -> BaseException | None:
    """Return what the app ended with: None if it simply returned."""
    try:
        app(grid=grid, context=context)  # type: ignore[call-arg]
    except (Exception, SystemExit, RunnerStop) as error:  # an app may raise and exit as it likes; the caller judges it
        return error
    return None


def _ended(error: BaseException | None, grid: FleetGrid, checkpoints: Checkpoints) -> Outcome:
    stop = grid.over or (error if isinstance(error, RunnerStop) else None)
    if isinstance(stop, Fenced):
        raise stop
    if stop is not None:
        return Outcome("failed", stop.reason, f"{RUN[stop.reason]}: {stop}")
    if isinstance(error, SystemExit) and error.code in (None, 0):
        error = None
    if isinstance(error, CoordinatorError):
        raise error
    if isinstance(error, SystemExit):
        return Outcome("failed", "app_failed", f"the ServerApp called sys.exit({error.code!r})", checkpoints.model)
    nothing = grid.sender.tally.nothing()
    if error is not None:
        traceback.print_exception(error)  # into the run's log
    if nothing:
        then = f"; then the ServerApp raised {_told(error)}" if error is not None else ""
        return Outcome("failed", "no_results", f"{RUN['no_results']}: {nothing}{then}", checkpoints.model)
    if error is not None:
        return Outcome("failed", "app_failed", f"the ServerApp raised {_told(error)}", checkpoints.model)
    return Outcome("finished", "finished", "", checkpoints.model)


def _told(error: BaseException) -> str:
    """Return an exception in one line, with the place in the app where it came from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{where}"
