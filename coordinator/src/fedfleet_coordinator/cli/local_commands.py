"""Commands that make a fleet on this machine: up, demo."""

import importlib.util
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from fedfleet_coordinator.cli import context
from fedfleet_coordinator.cli.errors import BadInput, LocalFault
from fedfleet_coordinator.cli.localfleet import LocalFleet
from fedfleet_coordinator.cli.output import JsonOption, console, print_json, say
from fedfleet_coordinator.cli.submission import Options, labels, prepare

DEMO_AGENTS = 5


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
        say=lambda line: _note(line, as_json),
    )
    if not as_json:
        say(f"starting a coordinator, a broker and {agents} agents in {fleet.state}")
    with _until_told() as over:
        try:
            begun = time.monotonic()
            fleet.start()
            fleet.wait_ready()
            with _borrowed_context(fleet):
                if as_json:
                    print_json(
                        {
                            "url": fleet.context.url,
                            "context": str(context.place()),
                            "state": str(fleet.state),
                            "agents": agents,
                        }
                    )
                else:
                    took = f"{time.monotonic() - begun:.1f} s"
                    say(f"ready after {took}: {fleet.context.url}, context in {context.place()}")
                    say("next, in another terminal: fedfleet agents, fedfleet run APP_DIR; Ctrl-C here ends the fleet")
                over.wait()
        finally:
            if not as_json:
                say("ending all processes")
            fleet.stop()


def demo(
    app_dir: Annotated[
        Path | None, typer.Option(help="The digits example, if it is not where it is looked for.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the picture.")] = Path(
        "fedfleet-demo.png"
    ),
) -> None:
    """Start five agents, each with its own handwritten digits, train a model on them, and draw how it went.

    For example:

      fedfleet demo
    """
    from fedfleet_coordinator.cli.client import Client
    from fedfleet_coordinator.cli.plot import draw
    from fedfleet_coordinator.cli.run_commands import finish, follow
    from fedfleet_coordinator.cli.view import agents_table, metrics_table

    app = _digits(app_dir)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedfleet-shards-") as shards:
        _write_shards(app, Path(shards))
        say(f"wrote {DEMO_AGENTS} shards, each with other digits, to folders that only their agent reads")
        fleet = LocalFleet(agents=DEMO_AGENTS, data_dir=Path(shards), labels={"site": ("north", "south")}, say=say)
        say(f"starting a coordinator, a broker and {DEMO_AGENTS} agents, all with certificates of their own")
        with _ending_cleanly(), fleet, Client(fleet.context) as client:
            say(f"ready after {time.monotonic() - begun:.1f} s; running {app}")
            submission = prepare(
                app, Options(config=(f"min-nodes={DEMO_AGENTS}",), min_agents=DEMO_AGENTS), fleet.context.publisher()
            )
            client.upload_bundle(submission.bundle, submission.digest)
            name = client.submit(submission.request)
            snapshot = follow(client, name)
            if snapshot["state"] == "finished":
                draw(snapshot, client.get(f"/v1/runs/{name}/timeline"), output)
        if snapshot.get("exchange") and console.is_terminal is False:
            console.print(agents_table(snapshot["exchange"].get("agents", [])))
        table = metrics_table(snapshot.get("metrics", []))
        if table is not None:
            console.print(table)
        finish(snapshot | {"model": None}, as_json=False)
    say(f"the picture of the run is in {output.resolve()}; all of it took {time.monotonic() - begun:.0f} s")
    say("try next:")
    say("  fedfleet up                      in one terminal, and in another:")
    say(f"  fedfleet run {app}    and kill -9 the coordinator in the middle of it")
    say("  fedfleet agents; fedfleet runs; fedfleet explain RUN; fedfleet model get RUN")


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


@contextmanager
def _ending_cleanly() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does: what it started is ended."""

    def told(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, told)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _borrowed_context(fleet: LocalFleet) -> Iterator[None]:
    """Put the fleet's context where the commands look; what was there comes back afterwards."""
    file = context.place()
    aside = file.with_name(file.name + ".before-up")
    if file.exists() and not aside.exists():
        file.replace(aside)
    context.save(fleet.context, file)
    try:
        yield
    finally:
        if file.exists() and fleet.context.url in file.read_text(encoding="utf-8"):
            aside.replace(file) if aside.exists() else file.unlink()


def _digits(given: Path | None) -> Path:
    places = (
        [given]
        if given
        else [Path("examples/digits"), *(folder / "examples" / "digits" for folder in Path(__file__).parents)]
    )
    for place in places:
        if (place / "shards.py").is_file():
            return place
    raise BadInput("the digits example is not here; run this in fedfleet's folder, or name it with --app-dir")


def _write_shards(app: Path, folder: Path) -> None:
    """Write the shards as examples/digits/shards.py does."""
    sys.path.insert(0, str(app))
    try:
        if importlib.util.find_spec("sklearn") is None:
            raise LocalFault("the demo needs scikit-learn and torch; install them with: pip install scikit-learn torch")
        data = importlib.import_module("digits.data")
        for number, shard in enumerate(data.shards(DEMO_AGENTS)):
            data.write(folder / str(number), shard)
    finally:
        sys.path.remove(str(app))
