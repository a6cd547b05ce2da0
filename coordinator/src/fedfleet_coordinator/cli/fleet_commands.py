"""Commands about the fleet: agents, explain, token, revoke, doctor."""

import re
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedfleet_coordinator.cli import context
from fedfleet_coordinator.cli.client import Client, Json
from fedfleet_coordinator.cli.errors import BadInput, Refusal
from fedfleet_coordinator.cli.names import full_name
from fedfleet_coordinator.cli.output import JsonOption, YesOption, confirm, show, table_of
from fedfleet_coordinator.cli.run_commands import rows_of
from fedfleet_coordinator.cli.submission import labels
from fedfleet_coordinator.cli.view import coloured, labels_of, when

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

token = typer.Typer(help="Make and list join tokens.", no_args_is_help=True)


def agents(
    select: Annotated[
        list[str] | None, typer.Option("--select", metavar="KEY=VALUE", help="Only with this label.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the fleet's agents: who is there, who may train now, and why not.

    For example:

      fedfleet agents

      fedfleet agents --select site=a --json
    """
    wanted = labels(tuple(select or ()), "--select").items()
    with Client(context.load()) as client:
        found = [row for row in rows_of(client.get("/v1/agents"), "agents") if wanted <= row.get("labels", {}).items()]
    table = table_of("agent", "labels", "state", "may train", "last seen")
    for row in found:
        state = row["state"] if row["state"] != "active" else "online" if row.get("online") else "offline"
        reason = f"no, {row.get('code')}: {row.get('text')}" if not row.get("eligible", True) else "yes"
        table.add_row(
            row["agent"], escape(labels_of(row.get("labels"))), coloured(state),
            escape(reason) if state == "online" else "", "now" if state == "online" else when(row.get("seen")),
        )  # fmt: skip
    show(found, table if found else "no agents; let one join with: fedfleet token create", as_json=as_json)


def explain(
    name: Annotated[str, typer.Argument(metavar="AGENT|RUN", help="The id, or how it begins.")],
    as_json: JsonOption = False,
) -> None:
    """Say why a run is where it is, or why an agent is not in a round.

    For example:

      fedfleet explain r-0abc

      fedfleet explain a-7def
    """
    with Client(context.load()) as client:
        name = full_name(client, name)
        answer = client.get(f"/v1/{'agents' if name.startswith('a-') else 'runs'}/{name}/explain")
    show(answer, prose(answer), as_json=as_json)


@token.command("create")
def create(
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A label for who joins.")
    ] = None,
    uses: Annotated[int, typer.Option(min=1, help="How many devices may join with it.")] = 1,
    expires: Annotated[str, typer.Option(help="For how long it holds: 30m, 1h, 7d.")] = "1h",
    as_json: JsonOption = False,
) -> None:
    """Make a join token and print it. It is a secret and is shown this once.

    For example:

      fedfleet token create --label site=a --uses 1 --expires 1h

      fedfleet token create > token.txt    # then, on the device: fedfleet-agent join --token-file token.txt
    """
    body = {"labels": labels(tuple(label or ()), "--label"), "uses": uses, "expires_s": seconds(expires)}
    with Client(context.load()) as client:
        answer = client.post("/v1/tokens", body)
    show(answer, str(answer["token"]), as_json=as_json)


@token.command("list")
def list_tokens(as_json: JsonOption = False) -> None:
    """List the join tokens that can still be used; their secrets are nowhere.

    For example:

      fedfleet token list
    """
    with Client(context.load()) as client:
        found = rows_of(client.get("/v1/tokens"), "tokens")
    table = table_of("token", "labels", "uses left", "expires", "made by")
    for row in found:
        name = str(row.get("hashed") or row.get("token") or "")[:12]
        expires = when(row.get("expires") or row.get("expires_wall"))
        table.add_row(
            name,
            escape(labels_of(row.get("labels"))),
            str(row.get("uses_left", "")),
            expires,
            row.get("created_by") or "",
        )
    show(found, table if found else "no tokens that can be used; make one with: fedfleet token create", as_json=as_json)


def revoke(
    name: Annotated[str, typer.Argument(metavar="AGENT", help="The agent's id, or how it begins.")],
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Shut an agent out for good: its certificate is refused from now on. It can join again with a new token only.

    It asks first; a script says --yes.

    For example:

      fedfleet revoke a-7def

      fedfleet revoke a-7def --yes
    """
    if not name.startswith("a-"):
        raise BadInput(f"{name[:40]!r} is no agent's id, which begins with a-; fedfleet agents lists them")
    with Client(context.load()) as client:
        name = full_name(client, name)
        confirm(f"Shut agent {name} out for good?", yes=yes)
        answer = client.post(f"/v1/agents/{name}/revoke")
    show(answer or {"agent": name, "state": "revoked"}, f"agent {name} is revoked", as_json=as_json)


def doctor(as_json: JsonOption = False) -> None:
    """Check that the fleet is well: context, coordinator, broker, store, disk, agents.

    For example:

      fedfleet doctor
    """
    settings = context.load()
    with Client(settings) as client:
        answer = client.get("/v1/doctor")
    checks: list[Json] = [{"name": "context", "ok": True, "text": f"{context.place()} speaks to {settings.url}"}]
    checks += rows_of(answer, "checks")
    table = Table("", "check", "", box=None, show_header=False)
    for check in checks:
        table.add_row(
            Text("ok", "green") if check["ok"] else Text("no", "bold red"), check["name"], escape(str(check["text"]))
        )
    show({"checks": checks, "ok": all(check["ok"] for check in checks)}, table, as_json=as_json)
    bad = [str(check["name"]) for check in checks if not check["ok"]]
    if bad:
        raise Refusal(f"the fleet is not well: {', '.join(bad)}")


def seconds(text: str) -> float:
    """Return the length of time that `text` spells: 90, 30m, 1h, 7d.

    Raises:
        BadInput: it spells none.
    """
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smhdw]?)", text.strip())
    if not match or not float(match[1]):
        raise BadInput(f"{text[:20]!r} is no length of time; write 90s, 30m, 1h or 7d")
    return float(match[1]) * _UNITS[match[2] or "s"]


def prose(answer: Any) -> RenderableType:
    """Return an explanation as sentences: `text` first, then `lines` or what else there is."""
    if isinstance(answer, str):
        return Text(answer)
    if isinstance(answer, list):
        return Group(*(prose(part) for part in answer))
    fields: Json = dict(answer)
    parts: list[RenderableType] = [Text(str(fields.pop("text")))] if fields.get("text") else []
    for key, value in fields.items():
        if isinstance(value, list):
            parts += [Text("  - ") + Text(item if isinstance(item, str) else _pairs(item)) for item in value]
        elif value not in ("", None, {}):
            parts.append(Text(f"{key}: {_pairs(value) if isinstance(value, dict) else value}", style="dim"))
    return Group(*parts)


def _pairs(item: Json) -> str:
    return ", ".join(f"{key} {value}" for key, value in item.items() if value not in ("", None, {}, []))
