"""The commands of `fedfleet-testfleet`, which are those of `fedfleet testfleet` where both are installed."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from typer.core import TyperGroup

from fedfleet_testfleet.errors import BadInput, RunFailed, TestfleetError
from fedfleet_testfleet.fault import MEANINGS, Action, made
from fedfleet_testfleet.fleet import DRIVERS, Wanted
from fedfleet_testfleet.play import RealClock, hold
from fedfleet_testfleet.report import Observation, build, json_of, lines_of, sentence
from fedfleet_testfleet.scenario import load
from fedfleet_testfleet.session import CONTEXT, begin, complaints, driver_named, driver_of, play, write
from fedfleet_testfleet.state import State

_HELP = """Test fleets with faults on request: start one, hurt it, read what the run made of it.

Exit codes: 0 done, 1 the run did not end as the scenario expects, 2 bad input, 3 no coordinator answers, 5 a part of
the fleet failed, 130 interrupted.
"""


class _Group(TyperGroup):
    """Ends with the exit code of an error and its sentence, whoever called."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TestfleetError as error:
            if "--json" in sys.argv:
                sys.stderr.write(json.dumps({"error": str(error), "exit_code": error.exit_code}) + "\n")
            else:
                sys.stderr.write(f"error: {error}\n")
            raise typer.Exit(error.exit_code) from error


app = typer.Typer(
    cls=_Group, help=_HELP, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
FleetOption = Annotated[
    Path,
    typer.Option(
        "--fleet", metavar="DIR", envvar="FEDFLEET_TESTFLEET",
        help="Where the fleet is kept; another folder, another fleet."
    ),
]  # fmt: skip
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
ProgramOption = Annotated[
    Path | None, typer.Option("--testcluster", metavar="FILE", help="The executable of the driver testcluster.")
]
DEFAULT = Path("~/.fedfleet/testfleet")


@app.command()
def up(
    nodes: Annotated[int, typer.Option(min=1, help="How many agents, each on a node of its own.")] = 5,
    clusters: Annotated[
        int, typer.Option(min=1, help="Deal them out to so many clusters (processes: sites); the first is the hub's.")
    ] = 1,
    driver: Annotated[str, typer.Option(help=f"What the fleet is made of: {', '.join(DRIVERS)}.")] = "process",
    data_dir: Annotated[
        Path | None, typer.Option(help="Agent i finds its data in the folder i of this one; processes only.")
    ] = None,
    context: Annotated[
        Path | None, typer.Option(help="The context file of the hub in the clusters; processes bring their own.")
    ] = None,
    testcluster: ProgramOption = None,
    fleet: FleetOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Start a fleet that stays until `down`.

    Clusters are empty: install fedfleet in them as in any other.

    For example:

      fedfleet testfleet up --nodes 5

      fedfleet testfleet up --nodes 6 --clusters 3 --driver k3d
    """
    state = State(fleet)
    if data_dir is not None and not data_dir.is_dir():
        raise BadInput(f"--data-dir {data_dir} is no folder; it has to hold a folder for each agent: 0, 1, 2 ...")
    wanted = Wanted(nodes, clusters, state.driver, data_dir)
    started = begin(state, driver_named(driver, testcluster), wanted, context=context, program=testcluster)
    if as_json:
        _print({"fleet": str(state.folder), "nodes": [node.name for node in started.nodes],
                "context": str(started.context) if started.context else None,
                "kubeconfigs": [str(cluster.kubeconfig) for cluster in started.clusters]})  # fmt: skip
        return
    _say(f"{len(started.nodes)} nodes are up: {', '.join(node.name for node in started.nodes)}")
    for cluster in started.clusters:
        _say(f"cluster {cluster.name}: export KUBECONFIG={cluster.kubeconfig}")
    if started.context is not None:
        _say(f"next: export {CONTEXT}={started.context}; fedfleet run APP_DIR; end it with: fedfleet testfleet down")


@app.command()
def fault(
    action: Annotated[str, typer.Argument(help="; ".join(f"{one}: {text}" for one, text in MEANINGS.items()) + ".")],
    target: Annotated[
        str,
        typer.Argument(metavar="NODE|PART", help="agent-0 and on; coordinator, broker, runner, operator; trainer-0."),
    ] = "",
    for_: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="Undo it after this time: 20s, 1.5m.")
    ] = None,
    testcluster: ProgramOption = None,
    fleet: FleetOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Hurt a fleet that is up, or heal it. With a time it waits and undoes it; Ctrl-C undoes it at once.

    ACTION is stop, start, cut, heal, slow or kill, of a node or a part; or api-down, api-up.

    For example:

      fedfleet testfleet fault stop agent-3 --for 20s

      fedfleet testfleet fault kill coordinator
    """  # fmt: skip
    if action not in list(Action):
        raise BadInput(f"a fleet cannot {action}; it can: {', '.join(Action)}")
    wanted = made(Action(action), target, for_)
    state = State(fleet)
    kept, noted = state.fleet(), list[Observation]()

    def note(one: Observation) -> None:
        state.note(one)
        noted.append(one)
        if not as_json:
            _say(sentence(one))

    refusal = hold(driver_of(kept, testcluster), kept, wanted, note=note, clock=RealClock())
    if refusal is not None:
        raise refusal
    if as_json:
        _print([{"fault": one.fault, "text": one.text, "at": one.at} for one in noted])


@app.command()
def scenario(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="The scenario.")],
    junit: Annotated[Path | None, typer.Option(help="Write the report here as JUnit XML.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the report here.")] = None,
    testcluster: ProgramOption = None,
    fleet: FleetOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Start the scenario's run on the fleet that is up, do to the fleet what it says, and report.

    For example:

      fedfleet testfleet scenario coordinator-dies.yaml --junit report.xml
    """
    state = State(fleet)
    wanted, kept = load(file), state.fleet()
    noted: list[Observation] = []

    def note(one: Observation) -> None:
        state.note(one)
        noted.append(one)
        if not as_json:
            _say(sentence(one))

    play(kept, driver_of(kept, testcluster), wanted, note)
    report = build(kept, noted, name=wanted.name)
    write(report, junit=junit, png=png)
    if as_json:
        sys.stdout.write(json_of(report).decode())
    else:
        _say(list(lines_of(report))[-1])
    if not report.good:
        raise RunFailed(f"{wanted.name}: not as expected; {'; '.join(complaints(report))}")


@app.command()
def report(
    junit: Annotated[Path | None, typer.Option(help="Write it here as JUnit XML.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write it here as JSON; - is the standard output.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Draw it here.")] = None,
    fleet: FleetOption = DEFAULT,
) -> None:
    """Say what was done to the fleet, and what its runs made of it; also after `down`.

    For example:

      fedfleet testfleet report --junit report.xml --png report.png
    """
    state = State(fleet)
    kept = state.kept()
    if kept is None:
        raise BadInput(f"no fleet was ever up in {state.folder}; start one with: fedfleet testfleet up")
    made_report = build(kept.fleet, state.observations())
    write(made_report, junit=junit, png=png, json_file=json_file)
    if not (junit or json_file or png):
        for line in lines_of(made_report):
            _say(line)


@app.command()
def down(testcluster: ProgramOption = None, fleet: FleetOption = DEFAULT, as_json: JsonOption = False) -> None:
    """End the fleet. What happened to it is kept for `report`."""
    state = State(fleet)
    kept = state.kept()
    if kept is not None and kept.up:
        driver_of(kept.fleet, testcluster).down(kept.fleet)
        state.end()
    if as_json:
        _print({"fleet": str(state.folder), "was_up": bool(kept and kept.up)})
    else:
        _say("the fleet is down" if kept is not None and kept.up else f"no fleet was up in {state.folder}")


def _print(data: Any) -> None:
    sys.stdout.write(json.dumps(data, indent=2, sort_keys=True) + "\n")
    sys.stdout.flush()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
