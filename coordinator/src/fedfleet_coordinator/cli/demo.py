"""The command `demo`: five agents with digits of their own, a run, a picture."""

import importlib
import importlib.util
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from fedfleet_coordinator.cli.client import Client
from fedfleet_coordinator.cli.errors import BadInput, LocalFault
from fedfleet_coordinator.cli.localfleet import LocalFleet
from fedfleet_coordinator.cli.output import JsonOption, console, print_json, say
from fedfleet_coordinator.cli.plot import draw
from fedfleet_coordinator.cli.run_commands import finish, follow
from fedfleet_coordinator.cli.submission import Options, prepare
from fedfleet_coordinator.cli.view import metrics_table

AGENTS = 5


def demo(
    app_dir: Annotated[
        Path | None, typer.Option(help="The digits example, if it is not where it is looked for.")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where to write the picture: .png, .svg or .pdf.")
    ] = Path("fedfleet-demo.png"),
    as_json: JsonOption = False,
) -> None:
    """Start five agents, each with its own handwritten digits, train a model on them, and draw how it went.

    For example:

      fedfleet demo

      fedfleet demo -o digits.svg --json
    """
    app, begun = _digits(app_dir), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedfleet-shards-") as folder, _ending_on_sigterm():
        shards = Path(folder)
        _write_shards(app, shards)
        _tell(f"wrote {AGENTS} shards, each with other digits, into folders of which each agent knows its own", as_json)
        _tell(f"starting a coordinator, a broker and {AGENTS} agents; all talk over TLS, with certificates", as_json)
        fleet = LocalFleet(
            agents=AGENTS, data_dir=shards, labels={"site": ("north", "south")}, say=lambda line: _tell(line, as_json)
        )
        with fleet:
            _tell(f"ready after {time.monotonic() - begun:.1f} s; running {app}", as_json)
            snapshot = _run(fleet, app, output, quiet=as_json)
    if as_json:
        print_json({"run": snapshot, "picture": str(output), "seconds": round(time.monotonic() - begun, 1)})
        finish(snapshot, as_json=False, quiet=True)
        return
    table = metrics_table(snapshot.get("metrics", []))
    if table is not None:
        console.print(table)
    finish(snapshot | {"model": None}, as_json=False)
    say(f"the picture of the run is in {output.resolve()}; all of it took {time.monotonic() - begun:.0f} s")
    say("try next, in two terminals:")
    say("  fedfleet up")
    say(f"  fedfleet run {app} -c local-epochs=50    and kill -9 the coordinator in the middle of it")
    say("then: fedfleet agents, fedfleet runs, fedfleet explain RUN, fedfleet model get RUN")


def _run(fleet: LocalFleet, app: Path, output: Path, *, quiet: bool) -> dict[str, Any]:
    """Return the last snapshot of a run that has ended, and is drawn if it finished."""
    options = Options(config=(f"min-nodes={AGENTS}",), min_agents=AGENTS)
    with Client(fleet.context) as client:
        submission = prepare(app, options, fleet.context.publisher())
        client.upload_bundle(submission.bundle, submission.digest)
        name = client.submit(submission.request)
        snapshot = follow(client, name, quiet=quiet)
        if snapshot["state"] == "finished":
            draw(snapshot, client.get(f"/v1/runs/{name}/timeline"), output)
    return snapshot


def _tell(line: str, as_json: bool) -> None:
    if as_json:
        sys.stderr.write(f"{line}\n")
    else:
        say(line)


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does: what it started is ended."""

    def told(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, told)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _digits(given: Path | None) -> Path:
    usual = [Path("examples/digits"), *(folder / "examples" / "digits" for folder in Path(__file__).parents)]
    for place in [given] if given else usual:
        if (place / "shards.py").is_file():
            return place
    raise BadInput("the digits example is not here; run this in fedfleet's folder, or name it with --app-dir")


def _write_shards(app: Path, folder: Path) -> None:
    """Write the shards as examples/digits/shards.py does."""
    missing = [name for name in ("sklearn", "torch") if importlib.util.find_spec(name) is None]
    if missing:
        raise LocalFault("the demo needs scikit-learn and torch; install them with: pip install scikit-learn torch")
    sys.path.insert(0, str(app))
    try:
        data = importlib.import_module("digits.data")
        for number, shard in enumerate(data.shards(AGENTS)):
            data.write(folder / str(number), shard)
    finally:
        sys.path.remove(str(app))
