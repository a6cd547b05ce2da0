"""What the commands and the fixture do alike: choose a driver, start a fleet, play a scenario, write a report."""

import os
import sys
from pathlib import Path
from shutil import rmtree

from msgspec.structs import replace

from fedfleet_testfleet.driver import Driver
from fedfleet_testfleet.errors import BadInput
from fedfleet_testfleet.fleet import DRIVERS, Fleet, Wanted
from fedfleet_testfleet.k3d import K3dDriver
from fedfleet_testfleet.play import Note, Play, RealClock
from fedfleet_testfleet.process import ProcessDriver
from fedfleet_testfleet.report import Observation, Report, json_of, junit_of, sentence
from fedfleet_testfleet.runs import CoordinatorRuns
from fedfleet_testfleet.scenario import Scenario
from fedfleet_testfleet.state import State
from fedfleet_testfleet.testcluster import TestclusterDriver

CONTEXT = "FEDFLEET_CONTEXT"


def driver_named(name: str, program: Path | None = None) -> Driver:
    """Return the driver with this name.

    Raises:
        BadInput: there is none.
    """
    if name == "process":
        return ProcessDriver()
    if name == "k3d":
        return K3dDriver()
    if name == "testcluster":
        return TestclusterDriver(program)
    raise BadInput(f"there is no driver {name}; there are {', '.join(DRIVERS)}")


def driver_of(fleet: Fleet, program: Path | None = None) -> Driver:
    """Return the driver that made a fleet."""
    return driver_named(fleet.driver, program)


def begin(
    state: State, driver: Driver, wanted: Wanted, *, context: Path | None = None, program: Path | None = None
) -> Fleet:
    """Return a new fleet, which is kept in `state` in place of the one before.

    Raises:
        BadInput: it cannot be like that, or the one before is up. FleetFault: it does not start.
    """
    kept = state.kept()
    if kept is not None:
        before = driver_named(kept.fleet.driver, program)
        if kept.up and "up" in before.states(kept.fleet).values():
            raise BadInput(
                f"a fleet is up in {state.folder} already; end it with down, or keep another with --fleet DIR"
            )
        if kept.up:
            before.down(kept.fleet)  # it died; what is left of it would be in the way
        rmtree(state.driver, ignore_errors=True)
    state.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fleet = driver.up(wanted)
    try:
        if context is not None:
            fleet = replace(fleet, context=context.expanduser().absolute())
        state.begin(fleet)
        state.note(Observation(at=RealClock().wall(), kind="up", text=f"{len(fleet.nodes)} nodes are up"))
    except BaseException:
        driver.down(fleet)  # nobody would know of it
        raise
    return fleet


def play(fleet: Fleet, driver: Driver, wanted: Scenario, note: Note) -> None:
    """Play a scenario to its end; see `Play.act`.

    Raises:
        BadInput: it is not known where the fleet's coordinator is.
    """
    context = fleet.context or (Path(os.environ[CONTEXT]) if os.environ.get(CONTEXT) else None)
    if context is None:
        raise BadInput(f"where is the coordinator? name its context file with {CONTEXT}, or when the fleet starts")
    runs = CoordinatorRuns(context)
    try:
        Play(fleet, driver, wanted, runs, note=note).act()
    finally:
        runs.close()


def write(report: Report, *, junit: Path | None = None, json_file: Path | None = None, png: Path | None = None) -> None:
    """Write a report into files.

    Raises:
        BadInput: a file cannot be written.
    """
    for option, file, made_of in (("--junit", junit, junit_of), ("--json", json_file, json_of)):
        if file is None:
            continue
        if str(file) == "-":
            sys.stdout.write(made_of(report).decode())
            continue
        try:
            file.write_bytes(made_of(report))
        except OSError as error:
            raise BadInput(f"{file} cannot be written: {error.strerror}; choose another with {option}") from error
    if png is not None:
        from fedfleet_testfleet.picture import draw

        draw(report, png)


def complaints(report: Report) -> list[str]:
    """Return what is not as it should be, in words."""
    refused = [sentence(one) for one in report.observations if one.kind == "refused"]
    return refused + [f"run {run.run} is {run.state}: {run.text}" for run in report.runs if not run.good]
