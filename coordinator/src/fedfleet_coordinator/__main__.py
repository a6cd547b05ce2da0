"""`fedfleet-coordinator`: make a coordinator, serve, run its broker."""

import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedfleet_coordinator.errors import CoordinatorError

app = typer.Typer(no_args_is_help=True, help="The coordinator of a fleet. Users talk to it with `fedfleet`.")
State = Annotated[Path, typer.Option("--state", help="The coordinator's folder: keys, database, blobs.")]
DEFAULT_STATE = Path("~/.fedfleet/hub")


@app.command()
def init(
    state: State = DEFAULT_STATE,
    host: Annotated[list[str] | None, typer.Option(help="A name or address by which agents reach this hub.")] = None,
    port: Annotated[int, typer.Option(help="Port of the HTTPS API.")] = 8443,
    broker_port: Annotated[int, typer.Option(help="Port of the MQTT broker, for agents.")] = 8883,
    service_port: Annotated[int, typer.Option(help="Port of the broker for the coordinator itself.")] = 18883,
    user: Annotated[str, typer.Option(help="Name of the first user.")] = "admin",
    kubernetes: Annotated[bool, typer.Option(help="It runs in a cluster, where runners are Jobs.")] = False,
) -> None:
    """Make keys, configuration, broker files and a first user.

    Example: fedfleet-coordinator init --state /var/lib/fedfleet --host hub.example.org
    """
    from fedfleet_coordinator import hub
    from fedfleet_coordinator.settings import Api, Broker, Kubernetes, Settings

    hosts = host or ["127.0.0.1", "localhost"]
    settings = Settings(
        api=Api(port=port, url=f"https://{hosts[0]}:{port}"),
        broker=Broker(address=f"{hosts[0]}:{broker_port}", port=broker_port, service_port=service_port),
        kubernetes=Kubernetes(enabled=kubernetes),
        hosts=tuple(dict.fromkeys([*hosts, "127.0.0.1", "localhost"])),
    )
    context = hub.init(state.expanduser(), settings, user=user)
    typer.echo(f"made {state}. Next, each in its own terminal or unit:")
    typer.echo(f"  fedfleet-coordinator broker --state {state}\n  fedfleet-coordinator serve --state {state}")
    typer.echo(f"Users' commands find it by: export FEDFLEET_CONTEXT={context}")


@app.command()
def serve(
    state: State = DEFAULT_STATE,
    restored: Annotated[
        bool, typer.Option("--restored", help="The database came back from a backup: mend first what it does not know.")
    ] = False,
) -> None:
    """Serve until SIGTERM. Restart it at any moment: it picks up where its store says."""
    from fedfleet_coordinator.hub import Hub

    _log_json()
    os.umask(0o077)
    asyncio.run(Hub(state.expanduser(), restored=restored).serve())


@app.command()
def broker(state: State = DEFAULT_STATE) -> None:
    """Run the MQTT broker in the foreground (this process becomes mosquitto)."""
    from fedfleet_coordinator import broker as files
    from fedfleet_coordinator import hub

    command = files.command(hub.prepare_broker(state.expanduser()))
    os.execv(command[0], command)  # noqa: S606  a fixed program with a configuration of ours


@app.command()
def migrate(state: State = DEFAULT_STATE) -> None:
    """Bring the database's schema to this version's, without serving; `serve` does it as well."""
    from fedfleet_coordinator.settings import load
    from fedfleet_coordinator.store.sql import SqlStore

    folder = state.expanduser()
    store = SqlStore(load(folder).store.url or f"sqlite:///{folder / 'hub.sqlite'}")
    store.migrate()
    store.close()


class _Json(logging.Formatter):
    """One JSON object a line, with whatever ids a record carries."""

    _OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        entry: dict[str, object] = {
            "at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        entry |= {name: value for name, value in vars(record).items() if name not in self._OWN}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _log_json() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for chatty in ("alembic", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def main() -> None:
    """Run the command line; errors are sentences."""
    try:
        app()
    except CoordinatorError as error:
        typer.echo(f"fedfleet-coordinator: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
