"""A simulated run as a person reads it while it goes on, and what the apps print meanwhile."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedfleet_coordinator.cli.errors import BadInput
from fedfleet_coordinator.cli.view import SHOWN_ROUNDS, coloured, metrics_line, metrics_table

Json = dict[str, Any]
_LOOK_S = 0.1
_SHARE = 20
"""Looking takes at most one part in so many of the time."""


class Progress:
    """Shows snapshots and the ServerApp's words on the terminal, as lines in a pipe, or not at all.

    While it is open, whatever this process prints is caught; what it shows goes to where standard output went before.

    Args:
        log: file for all that the apps print.
        quiet: show nothing.

    Attributes:
        output: a descriptor for what the ClientApps print; None throws it away.
    """

    def __init__(self, *, log: Path | None, quiet: bool) -> None:
        self._quiet = quiet
        self._look_at = 0.0
        self._told: set[tuple[int, str]] = set()
        self._log: IO[bytes] | None = None
        if log is not None:
            try:
                self._log = log.open("ab", buffering=0)
            except OSError as error:
                raise BadInput(f"--log {log} cannot be written: {error.strerror}") from error
        self.output = self._log.fileno() if self._log else None

    def __enter__(self) -> Self:
        from fedfleet_coordinator.runner.output import Output

        sys.stdout.flush()
        self._screen = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self._console = Console(file=self._screen)
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._caught = Output(self._said, echo=False, lines_a_second=1e6, burst=1_000_000)
        if self._lively:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._caught.close()
        if self._lively:
            self._live.stop()
        self._screen.close()
        if self._log is not None:
            self._log.close()

    @property
    def _lively(self) -> bool:
        return self._console.is_terminal and not self._quiet

    def look(self, snapshot: Callable[[], Json]) -> None:
        """Show how it goes, if the last look was long enough ago."""
        began = time.monotonic()
        if self._quiet or began < self._look_at:
            return
        self.show(snapshot())
        took = time.monotonic() - began
        self._look_at = began + max(_LOOK_S, _SHARE * took)

    def show(self, snapshot: Json) -> None:
        """Show how it goes, now."""
        if self._lively:
            self._live.update(screen(snapshot), refresh=True)
            return
        for metrics in [] if self._quiet else snapshot.get("metrics", []):
            key = metrics["round"], metrics["kind"]
            if metrics["values"] and key not in self._told:
                self._told.add(key)
                self._console.print(f"{clock(snapshot)}  {metrics_line(metrics)}", markup=False, highlight=False)

    def _said(self, lines: list[str]) -> None:
        if self._log is not None:
            self._log.write("".join(f"{line}\n" for line in lines).encode())
        if not self._quiet:
            self._console.print("\n".join(lines), markup=False, highlight=False, style="dim", soft_wrap=True)


def screen(snapshot: Json) -> RenderableType:
    """Return the whole picture of a simulated run, to be redrawn."""
    done, total = snapshot["server_round"], snapshot.get("num_rounds") or 0
    told, exchange = snapshot["simulation"], snapshot.get("exchange")
    head = Table.grid(padding=(0, 1))
    head.add_row(
        escape(snapshot.get("app") or ""),
        coloured(snapshot["state"]),
        ProgressBar(total=max(total, 1), completed=min(done, max(total, 1)), width=30, pulse=not total),
        f"round {done}/{total or '?'}",
        Text(clock(snapshot), style="bold"),
        f"{told['calls']} calls",
    )
    parts: list[RenderableType] = [head]
    if exchange:
        settled = f"{exchange['settled']} of {exchange['expected']} settled"
        if exchange.get("left_out"):
            settled += f", {exchange['left_out']} left out"
        parts.append(Text(f"exchange {exchange['n']} {exchange.get('label') or ''}: {settled}", style="dim"))
    table = metrics_table(snapshot.get("metrics", []), rounds=SHOWN_ROUNDS)
    return Group(*parts, *([table] if table is not None else []))


def summary(snapshot: Json, *, real_s: float) -> RenderableType:
    """Return what a simulated run came to: numbers, then its metrics."""
    told = snapshot["simulation"]
    table = Table(show_header=False, box=None, pad_edge=False)
    asked = f"{told['agents']} agents" + (f", {told['cohort']} at a time" if told["cohort"] else "")
    closed = ", ".join(f"{count} by {reason}" for reason, count in sorted(told["exchanges"].items()))
    declined = ", ".join(f"{count} {code}" for code, count in sorted(told["declined"].items()))
    rows = {
        "fleet": asked,
        "rounds": str(snapshot["server_round"]),
        "time": f"{spelled(told['virtual_s'])} virtual, {spelled(real_s)} real",
        "exchanges": closed or "none",
        "tasks": f"{told['tasks']}, of which {told['replies']} were answered",
        "errors": str(told["errors"]) if told["errors"] else "",
        "left out": f"{told['left_out']} by the update gate" if told["left_out"] else "",
        "drop-outs": str(told["dropped_out"]) if told["dropped_out"] else "",
        "in vain": str(late) if (late := told["missed"] - told["dropped_out"]) > 0 else "",
        "declined": declined,
    }
    for name, value in rows.items():
        if value:
            table.add_row(Text(name, style="bold"), value)
    metrics = metrics_table(snapshot.get("metrics", []))
    return Group(table, "", metrics) if metrics is not None else table


def clock(snapshot: Json) -> str:
    """Return the virtual time as a stop-watch shows it."""
    seconds = snapshot["simulation"]["virtual_s"]
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{rest:04.1f}"


def spelled(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
