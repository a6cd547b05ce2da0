"""What commands print: tables for people, JSON for programs, and errors as sentences on stderr."""

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table

from fedfleet_coordinator.cli.errors import BadInput

console = Console()
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def table_of(*columns: str, whole: int = 1) -> Table:
    """Return an empty table; the first `whole` columns are ids and the like, which are copied and never cut."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, no_wrap=place < whole, overflow="ignore" if place < whole else "fold")
    return table


def show(data: Any, picture: RenderableType, *, as_json: bool) -> None:
    """Print `data` as JSON, or `picture`."""
    if as_json:
        print_json(data)
    elif isinstance(picture, str):
        say(picture)  # as it is: rich would wrap it and take [brackets] for markup
    else:
        console.print(picture)


def confirm(question: str, *, yes: bool, unattended: bool = False) -> None:
    """Return if that is wanted: `yes` says so, or the person at the terminal does.

    Args:
        unattended: whether it is wanted, too, where there is no terminal to ask at.

    Raises:
        BadInput: it is not.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        if unattended:
            return
        raise BadInput(f"{question} There is no terminal to ask at; say so with --yes")
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:  # Ctrl-C, or the end of the input
        raise KeyboardInterrupt from None
    if not agreed:
        raise BadInput(f"{question} No; nothing was done")


def print_json(data: Any) -> None:
    """Print `data` as JSON, for programs."""
    sys.stdout.write(json.dumps(data, indent=2, sort_keys=True, default=str) + "\n")
    sys.stdout.flush()


def say(line: str) -> None:
    """Print a line for a person, at once, whoever reads it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def complain(text: str, exit_code: int) -> None:
    """Print an error on stderr: a sentence, or JSON if the command was asked for JSON."""
    if "--json" in sys.argv:
        sys.stderr.write(json.dumps({"error": text, "exit_code": exit_code}) + "\n")
    else:
        sys.stderr.write(f"error: {text}\n")
