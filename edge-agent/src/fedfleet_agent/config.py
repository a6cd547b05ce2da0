"""What the owner of this device decided, read from `agent.toml`.

Every key has a default; an unknown key, a value of the wrong kind or a file that is no TOML is refused before anything
starts, with file, line, column and what to do. The file is read again on SIGHUP; one that is refused then changes
nothing.
"""

import re
import tomllib
from base64 import b64decode
from binascii import Error as NotBase64
from pathlib import Path
from typing import Annotated, Any, Final, get_args, get_type_hints

import msgspec
from msgspec import Meta, Struct

from fedfleet_agent.egress import Policy
from fedfleet_agent.eligibility import Rules, parse_window
from fedfleet_agent.errors import ConfigError
from fedfleet_agent.isolation import Isolation
from fedfleet_protocol.messages import ConfigValue

MAX_FILE_BYTES: Final = 1 << 20
_SPKI_ED25519: Final = bytes.fromhex("302a300506032b6570032100")
_PLACE = re.compile(r"^(?P<what>.*?) - at `\$(?P<path>[^`]*)`$")
_STEP = re.compile(r"\.([A-Za-z0-9_-]+)")

Where = tuple[str, ...]
"""The keys that lead to a value, from the outermost."""


class About(Struct, frozen=True, forbid_unknown_fields=True):
    """What this agent is."""

    labels: Annotated[
        dict[str, str], Meta(description="What the device says of itself; shown to the operator, selects nothing.")
    ] = {}
    node_config: Annotated[
        dict[str, ConfigValue], Meta(description="Flower's node_config: what an app finds in context.node_config.")
    ] = {}
    paused: Annotated[bool, Meta(description="Take no work at all; also: fedfleet-agent pause.")] = False
    log_level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$", description="How much to log.")] = "info"


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """What a task may take of this device."""

    time_s: Annotated[float, Meta(gt=0, description="Longest a task may take, in seconds.")] = 86_400.0
    memory_mb: Annotated[int, Meta(ge=0, description="Most memory the trainer may use; 0: no limit.")] = 0
    processes: Annotated[int, Meta(ge=0, description="Most processes the trainer may have at a time; 0: no limit.")] = (
        512
    )
    file_mb: Annotated[int, Meta(gt=0, description="Largest file the trainer may write.")] = 4096
    scratch_mb: Annotated[
        int, Meta(ge=0, description="Most disk space an app's own folder may take, its replies included; 0: no limit.")
    ] = 8192
    disk_mb: Annotated[int, Meta(gt=0, description="Most disk space for models, updates and apps.")] = 16_384
    log_lines_per_s: Annotated[float, Meta(ge=0, description="Lines of app output forwarded; the rest is counted.")] = (
        20.0
    )
    trainer_idle_s: Annotated[
        float, Meta(ge=0, description="How long a trainer without work is kept warm, in seconds.")
    ] = 600.0


class Trust(Struct, frozen=True, forbid_unknown_fields=True):
    """Whose code may run here."""

    publishers: Annotated[
        dict[str, str],
        Meta(
            description="Names and Ed25519 public keys: 64 hexadecimal digits, or a file with them or with a PEM key."
        ),
    ] = {}


class Config(Struct, frozen=True):
    """All that the owner decides.

    Attributes:
        trusted: the publishers' keys, 32 bytes each, and their names: [trust] publishers with its files read.
    """

    agent: About = About()
    limits: Limits = Limits()
    eligibility: Rules = Rules()
    trust: Trust = Trust()
    egress: Policy = Policy()
    trainer: Isolation = Isolation()
    trusted: dict[bytes, str] = {}


SECTIONS: Final[dict[str, type[Struct]]] = {
    "agent": About,
    "limits": Limits,
    "eligibility": Rules,
    "trust": Trust,
    "egress": Policy,
    "trainer": Isolation,
}


def load(file: Path) -> Config:
    """Return the configuration in `file`; one that does not exist says nothing, so every default holds.

    Raises:
        ConfigError: it cannot be read or does not hold; the owner's to mend.
    """
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}; make it readable for this user") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{file}: larger than {MAX_FILE_BYTES} bytes; this is no agent configuration")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line}: not UTF-8; save the file as UTF-8") from error
    return parse(text, file)


def parse(text: str, file: Path) -> Config:
    """Return the configuration that `text` spells; `file` is for errors, and where relative key files are sought.

    Raises:
        ConfigError: it does not hold; the owner's to mend.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_syntax(text, file, str(error))) from error
    page = _Page(text, file)
    _refuse_unknown(tree, page)
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise _misfit(page, str(error)) from error
    for window in config.eligibility.windows:
        try:
            parse_window(window)
        except ValueError as error:
            raise page.error(("eligibility", "windows"), str(error)) from error
    return msgspec.structs.replace(config, trusted=_trusted(config.trust.publishers, page))


def described(section: type[Struct]) -> dict[str, str]:
    """Return what each key of a section means."""
    hints = get_type_hints(section, include_extras=True)
    return {name: get_args(hints[name])[1].description or "" for name in section.__struct_fields__}


def template() -> str:
    """Return a configuration file with every key, its meaning and its default, all commented out."""
    parts = ["# What this device's owner decides. Take away the # before a key to set it. Check with:\n"]
    parts.append("#     fedfleet-agent run --check\n")
    for name, section in SECTIONS.items():
        parts.append(f"\n# {(section.__doc__ or name).splitlines()[0]}\n[{name}]\n")
        values = section()
        for key, text in described(section).items():
            parts.append(f"# {text}\n# {key} = {_toml(getattr(values, key))}\n")
    return "".join(parts)


class _Page:
    """A configuration's text, in which keys are found again."""

    def __init__(self, text: str, file: Path) -> None:
        self.text = text
        self.file = file

    def error(self, where: Where, what: str) -> ConfigError:
        """Return the error about the value at `where`, with its place."""
        line, column = self.find(where)
        return ConfigError(f"{self.file}:{line}:{column}: {'.'.join(where)}: {what}")

    def find(self, where: Where) -> tuple[int, int]:
        """Return line and column of the key at `where`, or of what is nearest around it."""
        table: Where = ()
        best, place = 0, (1, 1)
        for number, line in enumerate(self.text.splitlines(), 1):
            if header := _HEADER.match(line):
                table = found = _keys(header["keys"])
                column = header.start("keys") + 1
            elif key := _KEY.match(line):
                found = table + _keys(key["keys"])
                column = key.start("keys") + 1
                if len(where) > len(found) and where[: len(found)] == found:
                    inner = re.search(
                        rf"""[{{,\s]["']?({re.escape(where[len(found)])})["']?\s*=""", line[key.end() - 1 :]
                    )
                    if inner:
                        found, column = where, key.end() + inner.start(1)
            else:
                continue
            if len(found) > best and where[: len(found)] == found:
                best, place = len(found), (number, column)
        return place


_HEADER = re.compile(r"^\s*\[+\s*(?P<keys>[^\]]+?)\s*\]")
_KEY = re.compile(r"""^\s*(?P<keys>[\w"'-]+(?:\s*\.\s*[\w"'-]+)*)\s*=""")


def _keys(text: str) -> Where:
    return tuple(part.strip().strip("\"'") for part in text.split("."))


def _syntax(text: str, file: Path, message: str) -> str:
    place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    if not place:
        return f"{file}: {message}"
    lines = text.splitlines() or [""]
    line, column = (place[1], place[2]) if place[1] else (len(lines), len(lines[-1]) + 1)
    return f"{file}:{line}:{column}: {message[: place.start()]}; this is not TOML: see https://toml.io"


def _refuse_unknown(tree: dict[str, Any], page: _Page) -> None:
    for name, section in tree.items():
        if name not in SECTIONS:
            raise _unknown(page, (name,), list(SECTIONS), "section")
        if not isinstance(section, dict):
            raise page.error((name,), f"this is a section; write [{name}] on a line of its own")
        for key in section:
            known = SECTIONS[name].__struct_fields__
            if key not in known:
                raise _unknown(page, (name, key), list(known), "key")


def _unknown(page: _Page, where: Where, known: list[str], kind: str) -> ConfigError:
    import difflib  # only a mistake needs it, and the agent stays small

    close = difflib.get_close_matches(where[-1], known, 1)
    remedy = f"did you mean {close[0]}?" if close else f"known are: {', '.join(known)}"
    return page.error(where, f"unknown {kind}; {remedy}")


def _misfit(page: _Page, message: str) -> ConfigError:
    match = _PLACE.match(message)
    where = tuple(_STEP.findall(match["path"])) if match else ()
    what = (match["what"] if match else message).replace("`", "")
    meaning = described(SECTIONS[where[0]]).get(where[1], "") if len(where) > 1 else ""
    return page.error(where, f"{what[:1].lower()}{what[1:]}. {meaning}".rstrip(". ") + ".")


def _trusted(publishers: dict[str, str], page: _Page) -> dict[bytes, str]:
    keys: dict[bytes, str] = {}
    for name, given in publishers.items():
        where = ("trust", "publishers", name)
        key = _public_key(given)
        if key is None:
            file = page.file.parent / Path(given).expanduser()
            try:
                key = _public_key(file.read_text()[:4096])
            except (OSError, ValueError) as error:
                raise page.error(
                    where, f'"{given[:80]}" is neither 64 hexadecimal digits nor a file that can be read'
                ) from error
            if key is None:
                raise page.error(where, f"{file} holds no Ed25519 public key, as 64 hexadecimal digits or PEM")
        keys[key] = name
    return keys


def _public_key(text: str) -> bytes | None:
    text = text.strip()
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text)
    pem = re.fullmatch(r"-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----", text)
    if not pem:
        return None
    try:
        der = b64decode(pem[1])
    except NotBase64:
        return None
    return der[len(_SPKI_ED25519) :] if der.startswith(_SPKI_ED25519) and len(der) == 44 else None


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return repr(value)
