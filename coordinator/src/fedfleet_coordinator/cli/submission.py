"""An app's folder and the options of `fedfleet run` as what the coordinator takes."""

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedfleet_coordinator.cli.errors import BadInput
from fedfleet_coordinator.cli.inspection import inspect_app
from fedfleet_coordinator.errors import Misconfigured
from fedfleet_protocol.blocks import blocks_of
from fedfleet_protocol.trust import sign_bundle

_PAIR = re.compile(r"(\S+?)=('[^']*'|\"[^\"]*\"|\S+)")
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}

Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Options:
    """What a person says about a run beside the app.

    Attributes:
        config: `key=value` with TOML values, or one file that ends in .toml.
        quorum: "80%" or "4".
        gate: settings of the update gate, `key=value` with TOML values.
    """

    config: tuple[str, ...] = ()
    select: tuple[str, ...] = ()
    min_agents: int = 1
    quorum: str = "100%"
    deadline_s: float = 3600.0
    grace_s: float = 30.0
    late: str = "refuse"
    gate: tuple[str, ...] = ()
    priority: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Submission:
    """A bundle, and the request that runs it."""

    bundle: bytes
    digest: str
    request: dict[str, Any] = field(default_factory=dict)


def prepare(app: Path, options: Options, publisher: Ed25519PrivateKey) -> Submission:
    """Return the app in folder `app` as a signed bundle with its request.

    Raises:
        BadInput: the folder is no Flower app, or an option does not fit it.
    """
    packed = pack(app, options)
    signed = {
        "publisher": publisher.public_key().public_bytes_raw().hex(),
        "signature": sign_bundle(publisher, packed.digest).hex(),
    }
    return Submission(packed.bundle, packed.digest, packed.request | signed)


def pack(app: Path, options: Options) -> Submission:
    """Return the app in folder `app` as a bundle with its request, signed by nobody.

    Raises:
        BadInput: as `prepare`.
    """
    from fedfleet_flower.apps import describe_app
    from fedfleet_flower.compat import build_bundle
    from fedfleet_flower.errors import BridgeError

    app = app.expanduser().resolve()
    if not app.is_dir():
        raise BadInput(f"{app} is not a folder; name the folder that holds the app's pyproject.toml")
    check(options)
    try:
        described = describe_app(app)
        inspect_app(app, clientapp=described.client_ref, serverapp=described.server_ref)
        config = overrides(options.config, described.config, app=described.name)
        bundle = build_bundle(app)
    except BridgeError as error:
        raise BadInput(str(error)) from error
    digest = blocks_of([bundle]).digest
    request = {
        "bundle": digest,
        "app": described.name,
        "config": config,
        "selector": labels(options.select, "--select"),
        "min_agents": options.min_agents,
        "quorum": options.quorum,
        "deadline_s": options.deadline_s,
        "grace_s": options.grace_s,
        "late": options.late,
        "gate": gate(options.gate),
        "priority": options.priority,
        "seed": options.seed,
    }
    return Submission(bundle, digest, request)


def check(options: Options) -> None:
    """Return if the numbers make sense.

    Raises:
        BadInput: one does not, and what it takes.
    """
    quorum = re.fullmatch(r"(\d{1,9})(%?)", options.quorum)
    if not quorum or int(quorum[1]) < 1 or (quorum[2] and int(quorum[1]) > 100):
        raise BadInput(f"--quorum takes a number of replies or a share, like 4 or 80%; not {options.quorum!r}")
    if options.min_agents < 1:
        raise BadInput(f"--min-agents takes a number from 1; not {options.min_agents}")
    if not options.deadline_s > 0 or options.grace_s < 0:
        raise BadInput("--deadline takes seconds above 0, --grace seconds from 0")
    if options.late not in ("refuse", "keep"):
        raise BadInput(f"--late takes refuse or keep; not {options.late!r}")


def overrides(given: tuple[str, ...], defaults: dict[str, Any], *, app: str) -> dict[str, Value]:
    """Return the values that replace the app's own, each of the kind that the app's configuration has.

    Args:
        given: as after `-c`: one or more `key=value`, or a single TOML file.
        defaults: the app's configuration, keys joined by dots.

    Raises:
        BadInput: not TOML, a key the app does not have, or a value of another kind.
    """
    from fedfleet_flower.apps import flatten
    from fedfleet_flower.errors import BadConfig

    try:
        values = flatten(_tree(given, defaults))
    except BadConfig as error:
        raise BadInput(f"-c {error}") from error
    for key, value in values.items():
        if key not in defaults:
            known = ", ".join(sorted(defaults)) or "none at all"
            raise BadInput(f"{app} has no configuration {key!r}; its [tool.flwr.app.config] has: {known}")
        wanted = type(defaults[key])
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            words = _WORDS.get(wanted, wanted.__name__)
            raise BadInput(f"-c {key}={value!r}: {app} takes {words} there, like {defaults[key]!r}")
        values[key] = float(value) if wanted is float else value
    return values


def gate(given: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings of the update gate, which the runner will take.

    Raises:
        BadInput: one is unknown or has an impossible value.
    """
    from fedfleet_coordinator.runner.gate import Settings

    values = _values(given, "--gate", text=frozenset({"strict", "weighted_by", "weighted-by"}))
    try:
        Settings.of(values)
    except Misconfigured as error:
        raise BadInput(f"--gate: {error}") from error
    return values


def labels(given: tuple[str, ...], option: str) -> dict[str, str]:
    """Return `key=value` pairs as labels.

    Raises:
        BadInput: one is not a pair.
    """
    found = {}
    for pair in given:
        for part in pair.split(","):
            key, equals, value = part.partition("=")
            if not equals or not key.strip() or not value.strip():
                raise BadInput(f"{option} takes key=value, like {option} site=a; not {pair!r}")
            found[key.strip()] = value.strip()
    return found


def _tree(given: tuple[str, ...], defaults: dict[str, Any]) -> dict[str, Any]:
    if len(given) != 1 or not given[0].endswith(".toml") or "=" in given[0]:
        return _values(given, "-c", text=frozenset(key for key, value in defaults.items() if isinstance(value, str)))
    try:
        return tomllib.loads(Path(given[0]).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"-c {given[0]}: {error}; it has to be a TOML file with lines like key = 1") from error


def _values(given: tuple[str, ...], option: str, *, text: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return `key=value` pairs with TOML values; keys in `text` may leave the quotes out."""
    from fedfleet_flower.apps import flatten

    found: dict[str, Any] = {}
    for line in given:
        pairs = _PAIR.findall(line)
        if not pairs or _PAIR.sub("", line).strip():
            raise BadInput(f"{option} takes key=value, like {option} rounds=5; not {line!r}")
        for key, value in pairs:
            try:
                tree = tomllib.loads(f"{key} = {value}")
            except tomllib.TOMLDecodeError as error:
                if key not in text:
                    raise BadInput(
                        f"{option} {key}={value}: not a TOML value; text needs quotes, "
                        f"like {option} '{key}=\"{value}\"'"
                    ) from error
                tree = {key: value}
            found.update(flatten(tree))
    return found
