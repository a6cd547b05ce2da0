"""The command `up`: a fleet on this machine until Ctrl-C."""

import functools
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from fedfleet_coordinator.cli import context
from fedfleet_coordinator.cli.client import Client
from fedfleet_coordinator.cli.errors import BadInput, CliError, Refusal
from fedfleet_coordinator.cli.localfleet import LocalFleet
from fedfleet_coordinator.cli.output import JsonOption, print_json, say
from fedfleet_coordinator.cli.submission import labels
from fedfleet_coordinator.settings import Runner


def up(
    agents: Annotated[int, typer.Option(min=0, help="How many agents.")] = 5,
    state: Annotated[
        Path | None,
        typer.Option(help="Keep everything here; the same folder again is the same fleet. Default: temporary."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label", metavar="KEY=VALUE", help="A label of all agents; repeat a key to deal its values out."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Agent i finds its data in the folder i of this one: node_config data.")
    ] = None,
    writable: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A folder that ServerApps may write, e.g. results; of a fleet that is new."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start a complete fleet on this machine: coordinator, broker and agents. Ctrl-C ends all of it.

    A process that dies is started again, and said to be.

    For example:

      fedfleet up --agents 5

      fedfleet up --agents 4 --label site=a --label site=b --state my-fleet
    """
    fleet = LocalFleet(
        agents=agents,
        state=state,
        labels=_dealt(label),
        data_dir=_checked(data_dir),
        runner=Runner(writable=_writable(writable or [], state)),
        say=lambda line: _note(line, as_json),
    )
    if not as_json:
        say(f"starting a coordinator, a broker and {agents} agents in {fleet.state}")
    with _until_told() as over:
        try:
            begun = time.monotonic()
            fleet.start()
            fleet.wait_ready()
            told = functools.partial(_note, as_json=as_json)
            with context.borrowed(
                fleet.context, fleet.context_file, file=context.place(), answers=_answers, say=told
            ) as file:
                if as_json:
                    print_json(
                        {
                            "url": fleet.context.url,
                            "context": str(file),
                            "state": str(fleet.state),
                            "agents": agents,
                        }
                    )
                else:
                    took = f"{time.monotonic() - begun:.1f} s"
                    say(f"ready after {took}: {fleet.context.url}, context in {file}")
                    say("next, in another terminal: fedfleet agents, fedfleet run APP_DIR; Ctrl-C here ends the fleet")
                over.wait()
        finally:
            if not as_json:
                say("ending all processes")
            fleet.stop()


def _note(line: str, as_json: bool) -> None:
    if as_json:
        sys.stderr.write(f"{line}\n")
    else:
        say(line)


def _dealt(given: list[str] | None) -> dict[str, list[str]]:
    dealt: dict[str, list[str]] = {}
    for pair in given or ():
        for key, value in labels((pair,), "--label").items():
            dealt.setdefault(key, []).append(value)
    return dealt


def _checked(data_dir: Path | None) -> Path | None:
    if data_dir is not None and not data_dir.expanduser().is_dir():
        raise BadInput(f"--data-dir {data_dir} is no folder; it has to hold a folder for each agent: 0, 1, 2 ...")
    return data_dir


def _writable(folders: list[Path], state: Path | None) -> tuple[str, ...]:
    file = state.expanduser() / "hub" / "hub.toml" if state is not None else None
    if folders and file is not None and file.exists():
        raise BadInput(f"--writable is for a fleet that is new; of this one, it is [runner] writable in {file}")
    for folder in folders:
        if not folder.expanduser().is_dir():
            raise BadInput(f"--writable {folder} is no folder; make it first")
    return tuple(str(folder.expanduser().resolve()) for folder in folders)


@contextmanager
def _until_told() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C and SIGTERM set; a second one during the end changes nothing."""
    over = threading.Event()
    started = False

    def told(number: int, frame: FrameType | None) -> None:
        nonlocal started
        if not started:
            started = True
            over.set()
            raise KeyboardInterrupt

    before = {number: signal.signal(number, told) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield over
    except KeyboardInterrupt:
        if not over.is_set():
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _answers(there: context.Context) -> bool:
    try:
        with Client(there) as client:
            return client.ready()
    except Refusal:
        return True
    except CliError:
        return False
