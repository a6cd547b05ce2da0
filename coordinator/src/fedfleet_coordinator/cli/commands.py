"""The commands by name, and what `fedfleet --help` says."""

import importlib.metadata
import sys
from typing import Annotated

import typer

from fedfleet_coordinator.cli import cluster_commands, demo, fleet_commands, local_commands, run_commands, simulate
from fedfleet_coordinator.cli.output import say

PLUGINS = "fedfleet.commands"
"""The entry points by which another distribution adds a command, a typer application."""
_HELP = """Federated learning on fleets of edge devices.

Start a fleet on this machine with [bold]fedfleet up[/], run a Flower app on it with [bold]fedfleet run APP_DIR[/].
Or try the app on devices that do not exist: [bold]fedfleet simulate APP_DIR[/].

Exit codes: 0 done, 1 the run failed, 2 bad input, 3 no coordinator answers, 4 the coordinator refuses,
5 this machine or a part of a local fleet failed, 130 interrupted.
"""

app = typer.Typer(
    help=_HELP, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _version(asked: bool) -> None:
    if asked:
        try:
            say(f"fedfleet {importlib.metadata.version('fedfleet-coordinator')}")
        except importlib.metadata.PackageNotFoundError:
            say("fedfleet, from a source folder")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


app.command()(local_commands.up)
app.command()(demo.demo)
app.command()(run_commands.run)
app.command()(simulate.simulate)
app.add_typer(run_commands.runs, name="runs")
app.command()(run_commands.logs)
app.command()(run_commands.stop)
app.command()(run_commands.plot)
app.add_typer(run_commands.model, name="model")
app.command()(fleet_commands.agents)
app.command()(fleet_commands.explain)
app.add_typer(fleet_commands.token, name="token")
app.command()(fleet_commands.revoke)
app.add_typer(cluster_commands.site, name="site")
app.command()(cluster_commands.bundle)
app.command()(fleet_commands.doctor)


def _add_installed() -> None:
    """Add the commands that other distributions bring along: entry points of the group `fedfleet.commands`."""
    for entry in sorted(importlib.metadata.entry_points(group=PLUGINS), key=lambda entry: entry.name):
        try:
            app.add_typer(entry.load(), name=entry.name)
        except Exception as error:
            # One that is broken is not known; fedfleet's own commands are.
            sys.stderr.write(f"the command {entry.name} is broken: {type(error).__name__}: {error}; reinstall it\n")


_add_installed()
