"""The coordinator's configuration: `hub.toml` in its state folder, made by `fedfleet-coordinator init`."""

import tomllib
from pathlib import Path
from typing import Annotated

import msgspec

from fedfleet_coordinator.errors import Misconfigured

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Api(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The HTTPS API: where it listens, and the address by which agents and users reach it."""

    host: str = "0.0.0.0"  # noqa: S104  mutual TLS stands before everything but enrolment
    port: Port = 8443
    url: str = "https://127.0.0.1:8443"


class Broker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The MQTT broker: the address agents are told, where it listens for them, and where for the coordinator."""

    address: str = "127.0.0.1:8883"
    host: str = "0.0.0.0"  # noqa: S104  the same
    port: Port = 8883
    service_port: Port = 18883


class Database(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The store: an SQLAlchemy URL; empty for SQLite in the state folder."""

    url: str = ""


class Blobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The blob folder: how much it may take, and how long an upload that nothing names may wait."""

    quota_mb: Annotated[float, msgspec.Meta(gt=0)] = 100_000.0
    grace_s: Annotated[float, msgspec.Meta(ge=0)] = 3600.0


class Exchange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exchanges: an agent shows progress within the lease; after a start nothing is closed before the settle time."""

    lease_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    settle_s: Annotated[float, msgspec.Meta(ge=0)] = 5.0
    max_reply_mb: Annotated[float, msgspec.Meta(gt=0)] = 2048.0


class Runner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Runners: what one may take of this machine, confined to a folder of its own and the API, and may read besides."""

    memory_mb: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    file_mb: Annotated[float, msgspec.Meta(ge=0)] = 16_384.0
    sandbox: bool = True
    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()


class Kubernetes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Kubernetes: whether this coordinator runs in a cluster, where an operator makes its runners' Jobs."""

    enabled: bool = False


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of `hub.toml`."""

    api: Api = Api()
    broker: Broker = Broker()
    store: Database = Database()
    blobs: Blobs = Blobs()
    exchange: Exchange = Exchange()
    runner: Runner = Runner()
    kubernetes: Kubernetes = Kubernetes()
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost")


def load(state: Path) -> Settings:
    """Return the configuration of the coordinator whose state is in `state`.

    Raises:
        Misconfigured: it is not there, or a line of it cannot be used; the operator's to mend.
    """
    file = state / "hub.toml"
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Misconfigured(
            f"{state} is not a coordinator's state folder; make one with: fedfleet-coordinator init --state {state}"
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Misconfigured(f"{file}: {error}; mend that line") from error
    try:
        return msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        raise Misconfigured(f"{file}: {error}; see docs/reference/hub-configuration.md") from error


def spell(settings: Settings) -> str:
    """Return the configuration as the text of a `hub.toml`."""
    tree = msgspec.to_builtins(settings)
    lines = ["# The coordinator's configuration. Meanings and defaults: docs/reference/hub-configuration.md", ""]
    lines += [f"hosts = {_value(tree.pop('hosts'))}", ""]
    for section, values in tree.items():
        lines += [f"[{section}]", *(f"{name} = {_value(value)}" for name, value in values.items()), ""]
    return "\n".join(lines)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return msgspec.json.encode(value).decode()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(item) for item in value)}]"
    return repr(value)
