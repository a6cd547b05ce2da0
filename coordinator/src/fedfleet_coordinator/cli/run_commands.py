"""Commands about runs: run, runs, logs, stop, plot, model."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.markup import escape

from fedfleet_coordinator.cli import context
from fedfleet_coordinator.cli.client import ENDED, Away, Client, Json
from fedfleet_coordinator.cli.errors import BadInput, RunFailed, Unreachable
from fedfleet_coordinator.cli.names import full_name
from fedfleet_coordinator.cli.output import JsonOption, YesOption, confirm, console, print_json, say, show, table_of
from fedfleet_coordinator.cli.submission import Options, prepare
from fedfleet_coordinator.cli.view import (
    Story,
    agents_table,
    coloured,
    ending,
    headline,
    metrics_table,
    screen,
    when,
)

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or how it begins.")]

runs = typer.Typer(help="List runs, or show one.", invoke_without_command=True)
model = typer.Typer(help="Get models out of runs.", no_args_is_help=True)


def run(
    app_dir: Annotated[
        Path, typer.Argument(metavar="APP_DIR", help="Folder of a Flower app, with its pyproject.toml.")
    ],
    config: Annotated[
        list[str] | None,
        typer.Option(
            "-c",
            "--config",
            metavar="KEY=VALUE",
            help="Override the app's configuration; TOML values, or one .toml file.",
        ),
    ] = None,
    select: Annotated[
        list[str] | None, typer.Option("--select", metavar="KEY=VALUE", help="Only agents with this label.")
    ] = None,
    min_agents: Annotated[int, typer.Option(help="Wait for so many agents before the first exchange.")] = 1,
    quorum: Annotated[str, typer.Option(help="Replies that are enough: a number, or a share like 80%.")] = "100%",
    deadline: Annotated[float, typer.Option(help="Seconds an exchange may take.")] = 3600.0,
    grace: Annotated[float, typer.Option(help="Seconds to wait for others after the quorum.")] = 30.0,
    late: Annotated[str, typer.Option(help="What to do with late replies: refuse, or keep.")] = "refuse",
    gate: Annotated[
        list[str] | None, typer.Option("--gate", metavar="KEY=VALUE", help="A setting of the update gate.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the runner's random generators.")] = 0,
    priority: Annotated[int, typer.Option(help="Agents take tasks of the highest priority first.")] = 0,
    detach: Annotated[bool, typer.Option("--detach", help="Print the run's id and leave.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a Flower app on the fleet and show how it goes. Ctrl-C leaves; the run goes on.

    For example:

      fedfleet run examples/quickstart

      fedfleet run examples/digits -c num-server-rounds=20 --select site=a --quorum 80% --grace 10

      fedfleet run . --detach --json
    """
    options = Options(
        config=tuple(config or ()), select=tuple(select or ()), min_agents=min_agents, quorum=quorum,
        deadline_s=deadline, grace_s=grace, late=late, gate=tuple(gate or ()), priority=priority, seed=seed,
    )  # fmt: skip
    settings = context.load()
    submission = prepare(app_dir, options, settings.publisher())
    with Client(settings) as client:
        client.upload_bundle(submission.bundle, submission.digest)
        name = client.submit(submission.request)
        if detach:
            show({"run": name}, name, as_json=as_json)
            return
        with leaving(name):
            finish(follow(client, name, quiet=as_json), as_json=as_json)


def follow(client: Client, name: str, *, quiet: bool = False) -> Json:
    """Return the last snapshot of a run, after showing all of it."""
    if quiet:
        return _last(client, name)
    return _live(client, name) if console.is_terminal else _lines(client, name)


@contextmanager
def leaving(name: str) -> Iterator[None]:
    """Let Ctrl-C leave a run that goes on, with code 130 and a word on how to come back."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write(
            f"\nthe run goes on; follow it with: fedfleet runs show {name} -f, end it with: fedfleet stop {name}\n"
        )
        raise typer.Exit(130) from None


def finish(snapshot: Json, *, as_json: bool, quiet: bool = False) -> None:
    """Print how a run ended, unless `quiet`.

    Raises:
        RunFailed: it did not finish.
    """
    if as_json:
        print_json(snapshot)
    elif snapshot["state"] == "finished" and not quiet:
        say(ending(snapshot))
        if snapshot.get("model"):
            say(f"its model: fedfleet model get {snapshot['run']} -o model.npz")
    if snapshot["state"] != "finished":
        hint = f"see fedfleet logs {snapshot['run']}"
        text = ending(snapshot)
        raise RunFailed(text if hint in text else f"{text}; {hint}")


@runs.callback()
def _list(invoked: typer.Context, as_json: JsonOption = False) -> None:
    """List runs, newest first, or show one.

    For example:

      fedfleet runs

      fedfleet runs show r-0abc -f
    """
    if invoked.invoked_subcommand is not None:
        return
    with Client(context.load()) as client:
        found = rows_of(client.get("/v1/runs"), "runs")
    table = table_of("run", "app", "state", "round", "begun", "why")
    for entry in found:
        table.add_row(
            entry["run"], escape(entry.get("app") or ""), coloured(entry["state"]),
            f"{entry['server_round']}/{entry.get('num_rounds') or '?'}", when(entry.get("created")),
            escape(str(entry.get("text") or "")) if entry["state"] not in ("finished", "running") else "",
        )  # fmt: skip
    show(found, table if found else "no runs yet; start one with: fedfleet run APP_DIR", as_json=as_json)


@runs.command("show")
def show_run(
    name: RunArgument,
    follow_it: Annotated[bool, typer.Option("-f", "--follow", help="Stay until the run has ended.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show one run: state, agents of its newest exchange, metrics.

    For example:

      fedfleet runs show r-0abc

      fedfleet runs show r-0abc -f
    """
    with Client(context.load()) as client:
        name = full_name(client, name)
        if follow_it:
            with leaving(name):
                finish(follow(client, name, quiet=as_json), as_json=as_json)
            return
        snapshot = client.get(f"/v1/runs/{name}")
    exchange = snapshot.get("exchange")
    parts: list[Any] = [ending(snapshot) if snapshot["state"] in ENDED else headline(snapshot)]
    if exchange and exchange.get("agents"):
        parts += [f"exchange {exchange['n']} {exchange.get('label') or ''}", agents_table(exchange["agents"])]
    table = metrics_table(snapshot.get("metrics", []))
    show(snapshot, Group(*parts, *([table] if table else [])), as_json=as_json)


def logs(
    name: RunArgument,
    follow_it: Annotated[bool, typer.Option("-f", "--follow", help="Stay and print new lines.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print a run's log: lines of its ServerApp, its agents and the coordinator. With --json, one object per line.

    For example:

      fedfleet logs r-0abc

      fedfleet logs -f r-0abc
    """
    with Client(context.load()) as client, suppress(KeyboardInterrupt):
        name, after, away = full_name(client, name), 0, False
        while True:
            try:
                lines = rows_of(
                    client.get(f"/v1/runs/{name}/logs", wait_s=20.0, after=after, wait=20 if follow_it else 0), "lines"
                )
                ended = not lines and follow_it and client.get(f"/v1/runs/{name}")["state"] in ENDED
            except Unreachable:
                if not follow_it:
                    raise
                if not away:
                    sys.stderr.write("the coordinator is away, reconnecting\n")
                away = True
                time.sleep(1.0)
                continue
            away = False
            for line in lines:
                after = max(after, line["seq"])
                _print_log_line(line, as_json=as_json)
            if (not follow_it and not lines) or ended:
                return


def stop(name: RunArgument, yes: YesOption = False, as_json: JsonOption = False) -> None:
    """Stop a run for good. Its agents are told, what they work on is refused. At a terminal it asks first.

    For example:

      fedfleet stop r-0abc

      fedfleet stop r-0abc --yes
    """
    with Client(context.load()) as client:
        name = full_name(client, name)
        confirm(f"Stop run {name} for good?", yes=yes, unattended=True)
        answer = client.post(f"/v1/runs/{name}/stop") or {}
    state = answer.get("state", "stopped")
    show(answer, f"the run is {state}" if state == "stopped" else f"the run had ended before: {state}", as_json=as_json)


def plot(
    name: RunArgument,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where to write the picture: .png, .svg or .pdf. Default: RUN.png, here."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a run: its metrics per round, and what each agent did when.

    For example:

      fedfleet plot r-0abc

      fedfleet plot r-0abc -o run.svg
    """
    from fedfleet_coordinator.cli.plot import draw

    with Client(context.load()) as client:
        name = full_name(client, name)
        snapshot, timeline = client.get(f"/v1/runs/{name}"), client.get(f"/v1/runs/{name}/timeline")
    output = (output or Path(f"{name}.png")).expanduser().absolute()
    draw(snapshot, timeline, output)
    show({"run": name, "file": str(output)}, f"the picture of {name} is in {output}", as_json=as_json)


@model.command("get")
def get_model(
    name: RunArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write, numpy's .npz.")] = Path("model.npz"),
    checkpoint: Annotated[
        bool, typer.Option("--checkpoint", help="Of a run that goes on, the model of its newest checkpoint.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a finished run's model into a file that numpy reads, one array per name.

    For example:

      fedfleet model get r-0abc -o model.npz

      fedfleet model get r-0abc --checkpoint
    """
    from fedfleet_coordinator.cli.models import write_npz

    with Client(context.load()) as client:
        name = full_name(client, name)
        path = f"/v1/runs/{name}/model{'?checkpoint=true' if checkpoint else ''}"
        arrays = write_npz(client.download(path), output)
    table = table_of("array", "type", "shape")
    for key, (dtype, shape) in arrays.items():
        table.add_row(escape(key), dtype, " x ".join(map(str, shape)) or "-")
    data = {
        "run": name,
        "file": str(output),
        "arrays": {key: [dtype, list(shape)] for key, (dtype, shape) in arrays.items()},
    }
    show(data, Group(table, f"the model of {name} is in {output}"), as_json=as_json)


def rows_of(answer: Any, key: str) -> list[Json]:
    """Return the list in an answer, which is one or holds one under `key`."""
    rows = answer.get(key, []) if isinstance(answer, dict) else answer
    if not isinstance(rows, list):
        raise BadInput(f"the coordinator's answer holds no list of {key}; is it of another version?")
    return rows


def _last(client: Client, name: str) -> Json:
    snapshot: Json = {}
    for event in client.watch(name):
        if not isinstance(event, Away):
            snapshot = event
    return snapshot


def _lines(client: Client, name: str) -> Json:
    story, snapshot = Story(), {}
    say(f"run {name}")
    for event in client.watch(name):
        for line in story.lines(event):
            say(line)
        if not isinstance(event, Away):
            snapshot = event
    return snapshot


def _live(client: Client, name: str) -> Json:
    snapshot: Json | None = None
    with Live(screen(None, None), console=console, refresh_per_second=8) as live:
        for event in client.watch(name):
            away = event if isinstance(event, Away) else None
            if not isinstance(event, Away):
                snapshot = event
            live.update(screen(snapshot, away))
    return snapshot or {}


def _print_log_line(line: Json, *, as_json: bool) -> None:
    if as_json:
        import json

        say(json.dumps(line))
    else:
        say(f"{when(line.get('at'))} {line['source'][:12]:12} {line['line']}")
