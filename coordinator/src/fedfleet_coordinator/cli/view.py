"""A run's snapshot as a person reads it: one screen that is redrawn, or lines of what is new."""

from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedfleet_coordinator.cli.client import Away

Json = dict[str, Any]

_COLOURS = {
    "finished": "green", "accepted": "green", "eligible": "green", "online": "green", "active": "green", "ok": "green",
    "running": "cyan", "pending": "yellow", "waiting": "dim", "published": "cyan",
    "failed": "red", "missed": "red", "revoked": "red", "declined": "yellow", "left out": "yellow",
    "offline": "dim", "stopped": "yellow",
}  # fmt: skip
SHOWN_ROUNDS = 6
SHOWN_AGENTS = 20


def short(name: str) -> str:
    """Return an id as people tell it from others: its first ten characters."""
    return name[:10]


def coloured(state: str) -> Text:
    """Return a state in its colour."""
    return Text(state, style=_COLOURS.get(state, ""))


def when(wall: object) -> str:
    """Return seconds since the epoch as the local time that people read; nothing for nothing."""
    if not isinstance(wall, int | float) or not wall:
        return ""
    return datetime.fromtimestamp(wall).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def labels_of(labels: dict[str, str] | None) -> str:
    """Return labels as `site=a, arm=64`."""
    return ", ".join(f"{key}={value}" for key, value in sorted((labels or {}).items()))


def number(value: object) -> str:
    """Return a metric with as many digits as mean something."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def metrics_line(metrics: Json) -> str:
    """Return one round's metrics of one kind as a line."""
    values = ", ".join(f"{key} {number(value)}" for key, value in metrics.get("values", {}).items())
    return f"round {metrics.get('round', 0)} {metrics.get('kind', '')}: {values}"


def metrics_table(metrics: list[Json], *, rounds: int | None = None) -> Table | None:
    """Return a table with a row per round and a column per metric; None without metrics."""
    cells: dict[int, dict[str, object]] = {}
    columns: list[str] = []
    for entry in sorted(metrics, key=lambda entry: (entry["round"], entry["kind"])):
        for key, value in entry["values"].items():
            if isinstance(value, list):
                continue
            column = f"{entry['kind']} {key}"
            if column not in columns:
                columns.append(column)
            cells.setdefault(entry["round"], {})[column] = value
    if not cells:
        return None
    columns.sort()
    table = Table("round", *(escape(column) for column in columns), box=None, header_style="bold")
    for server_round in sorted(cells)[-rounds if rounds else 0 :]:
        row = cells[server_round]
        table.add_row(str(server_round), *(number(row[column]) if column in row else "" for column in columns))
    return table


def agents_table(agents: list[Json], *, limit: int | None = None) -> Table:
    """Return an exchange's agents: who is at what, and why not."""
    table = Table("agent", "labels", "state", "time", "", box=None, header_style="bold")
    shown = agents if limit is None or len(agents) <= limit else sorted(agents, key=_interest)[:limit]
    for agent in shown:
        seconds = agent.get("seconds")
        reason = f"{agent.get('code')}: {agent.get('text')}" if agent.get("code") else agent.get("text") or ""
        table.add_row(
            short(agent["agent"]),
            escape(labels_of(agent.get("labels"))),
            coloured(agent.get("state", "")),
            f"{seconds:.1f} s" if isinstance(seconds, int | float) else "",
            escape(str(reason)),
        )
    if len(shown) < len(agents):
        table.add_row("...", f"and {len(agents) - len(shown)} more", "", "", "")
    return table


def _interest(agent: Json) -> int:
    """Those with trouble first, those who are done last."""
    order = {"missed": 0, "declined": 0, "left out": 0, "failed": 0, "published": 1, "waiting": 2, "accepted": 3}
    return order.get(agent.get("state", ""), 1)


def headline(snapshot: Json) -> str:
    """Return where a run is, in one line."""
    total = snapshot.get("num_rounds") or "?"
    return (
        f"{snapshot['run']} {snapshot.get('app') or ''} {snapshot['state']}, round {snapshot['server_round']}/{total}"
    )


def ending(snapshot: Json) -> str:
    """Return how a run ended, with the reason if it did not finish."""
    if snapshot["state"] == "finished":
        took = (snapshot.get("ended") or 0) - (snapshot.get("started") or snapshot.get("ended") or 0)
        again = snapshot.get("attempts", 1) - 1
        extra = f"; its runner was started anew {again} time{'s' * (again != 1)}" if again > 0 else ""
        return f"run {snapshot['run']} finished in {took:.1f} s{extra}"
    reason = snapshot.get("reason") or "no reason given"
    text = snapshot.get("text") or ""
    return f"run {snapshot['run']} {snapshot['state']} ({reason}): {text}".rstrip(": ")


def screen(snapshot: Json | None, away: Away | None) -> RenderableType:
    """Return the whole picture of a run, to be redrawn."""
    if snapshot is None:
        return Text(f"waiting for the coordinator: {away.why}" if away else "waiting for the run to begin")
    done, total = snapshot["server_round"], snapshot.get("num_rounds") or 0
    exchange = snapshot.get("exchange")
    head = Table.grid(padding=(0, 1))
    head.add_row(
        Text(short(snapshot["run"]), style="bold"),
        escape(snapshot.get("app") or ""),
        coloured(snapshot["state"]),
        ProgressBar(total=max(total, 1), completed=min(done, max(total, 1)), width=30, pulse=not total),
        f"round {done}/{total or '?'}",
    )
    parts: list[RenderableType] = [head]
    if away is not None:
        parts.append(Text(f"the coordinator is away for {away.seconds:.0f} s, reconnecting; the run goes on", "yellow"))
    if line := waiting_line(snapshot):
        parts.append(Text(line, "yellow"))
    if exchange:
        settled = f"{exchange['settled']} of {exchange['expected']} settled, {exchange['accepted']} accepted"
        if exchange.get("left_out"):
            settled += f", {exchange['left_out']} left out"
        parts.append(Text(f"exchange {exchange['n']} {exchange.get('label') or ''}: {settled}", style="dim"))
        parts.append(agents_table(exchange.get("agents", []), limit=SHOWN_AGENTS))
    table = metrics_table(snapshot.get("metrics", []), rounds=SHOWN_ROUNDS)
    if table is not None:
        parts.append(table)
    return Group(*parts)


def _name(exchange: Json) -> str:
    return f"exchange {exchange['n']} {exchange.get('label') or ''}".strip()


def waiting_line(snapshot: Json) -> str:
    """Return for how many agents a run waits, in one line; empty if it does not."""
    waiting = snapshot.get("waiting")
    if not waiting:
        return ""
    return (
        f"waiting for agents: it needs {waiting['need']}, {waiting['matching']} match its selector, "
        f"{waiting['there']} are there"
    )


class Story:
    """Tells what is new in each snapshot, for a log or a pipe."""

    def __init__(self) -> None:
        self._told: set[tuple[object, ...]] = set()
        self._away = False

    def lines(self, event: Json | Away) -> list[str]:
        """Return what `event` tells that was not told before."""
        if isinstance(event, Away):
            if self._away:
                return []
            self._away = True
            return ["the coordinator is away, reconnecting; the run goes on"]
        lines = ["the coordinator is back"] if self._away else []
        self._away = False
        if self._new("state", event["state"]) and event["state"] in ("pending", "running"):
            lines.append(headline(event))
        if (line := waiting_line(event)) and self._new("waiting", *sorted(event["waiting"].items())):
            lines.append(line)
        if event.get("attempts", 0) > 1 and self._new("attempt", event["attempts"]):
            lines.append(f"runner {event['attempts']} goes on after round {event['server_round']}")
        lines += [_end(closed) for closed in event.get("closed", []) if self._new("closed", closed["n"])]
        if event.get("exchange"):
            lines += self._exchange(event["exchange"], over=event["state"] not in ("pending", "running"))
        for metrics in event.get("metrics", []):
            if metrics["values"] and self._new("metrics", metrics["round"], metrics["kind"]):
                lines.append(metrics_line(metrics))
        return lines

    def _exchange(self, exchange: Json, *, over: bool) -> list[str]:
        """Return what is new; of its end only once the runner has judged the replies, before it goes on or ends."""
        lines = []
        name = _name(exchange)
        if self._new("open", exchange["n"]):
            lines.append(f"{name}: {exchange['expected']} agents asked")
        lines += [
            f"{name}: agent {short(agent['agent'])} {agent['state']}: {agent['code']}: {agent['text']}"
            for agent in exchange.get("agents", [])
            if agent.get("code") and self._new("agent", exchange["n"], agent["agent"], agent["code"])
        ]
        if over and exchange.get("state") == "closed" and self._new("closed", exchange["n"]):
            lines.append(_end(exchange))
        return lines

    def _new(self, *key: object) -> bool:
        if key in self._told:
            return False
        self._told.add(key)
        return True


def _end(exchange: Json) -> str:
    left_out = f", {exchange['left_out']} left out" if exchange.get("left_out") else ""
    return (
        f"{_name(exchange)}: closed ({exchange['reason']}), "
        f"{exchange['accepted']} of {exchange['expected']} accepted{left_out}"
    )
