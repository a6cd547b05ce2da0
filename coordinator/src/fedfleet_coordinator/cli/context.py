"""Which coordinator the commands talk to, and as whom: `~/.fedfleet/context.toml`, unless FEDFLEET_CONTEXT is set."""

import os
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fedfleet_coordinator.cli.errors import BadInput

VARIABLE = "FEDFLEET_CONTEXT"
_LENT = "# lent to a local fleet; fedfleet up gives it back when it ends\n"
_FILES = ("ca", "cert", "key", "publisher_key")


@dataclass(frozen=True, slots=True)
class Context:
    """A coordinator, and who talks to it.

    Attributes:
        url: the coordinator's address, https.
        ca: PEM file of the services CA. cert, key: PEM files of the user's certificate and its key.
        publisher_key: PEM file of the Ed25519 key that signs bundles.
    """

    url: str
    ca: Path
    cert: Path
    key: Path
    publisher_key: Path

    def publisher(self) -> Ed25519PrivateKey:
        """Return the key that signs bundles.

        Raises:
            BadInput: the file cannot be read or holds another kind of key.
        """
        remedy = f"set publisher_key in {place()} to a PEM file with an Ed25519 private key"
        try:
            key = load_pem_private_key(self.publisher_key.read_bytes(), password=None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise BadInput(f"the publisher key {self.publisher_key} cannot be read ({error}); {remedy}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise BadInput(f"the publisher key {self.publisher_key} is no Ed25519 key; {remedy}")
        return key


def place() -> Path:
    """Return where the context file is."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".fedfleet" / "context.toml"


def load(file: Path | None = None) -> Context:
    """Return the context in `file`, or in the usual place. Relative paths in it start at its folder.

    Raises:
        BadInput: there is none, or it cannot be used.
    """
    file = file or place()
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(
            f"there is no {file}, so no coordinator to talk to; start a local fleet with: fedfleet up, "
            f"or let {VARIABLE} name your coordinator's context file"
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"{file} cannot be read: {error}; write it anew, or start a local fleet: fedfleet up") from error
    missing = [name for name in ("url", *_FILES) if not isinstance(table.get(name), str)]
    if missing:
        raise BadInput(f'{file} lacks {", ".join(missing)}; each is a line like: url = "https://hub.example:8443"')
    if urlsplit(table["url"]).scheme != "https":
        raise BadInput(f"{file}: url is {table['url']!r}, and has to begin with https://")
    paths = {name: file.parent / Path(table[name]).expanduser() for name in _FILES}
    return Context(url=table["url"].rstrip("/"), **paths)


@contextmanager
def borrowed(
    mine: Context, own: Path, *, file: Path, answers: Callable[[Context], bool], say: Callable[[str], None]
) -> Iterator[Path]:
    """Put a local fleet's context where the commands look; what was there comes back afterwards.

    The file is left alone while another local fleet that answers has it.

    Args:
        own: the fleet's own file with its context, which is there in any case.
        answers: whether there is somebody at a context's address.
        say: is told if it is not as usual.

    Yields:
        The file that leads to the fleet.
    """
    aside = file.with_name(file.name + ".before-up")
    other = _lent(file)
    if other is not None and answers(other):
        say(
            f"another local fleet, {other.url}, is running and keeps {file}; "
            f"for this one, set {VARIABLE}={own} in the terminal of your commands"
        )
        yield own
        return
    if other is not None:
        say(f"the local fleet before, {other.url}, did not end in order; its {file} is replaced")
    elif file.exists():
        file.replace(aside)
    save(mine, file, note=_LENT)
    try:
        yield file
    finally:
        left = _lent(file)
        if left is not None and left.url == mine.url:
            aside.replace(file) if aside.exists() else file.unlink()


def _lent(file: Path) -> Context | None:
    """Return the context of a local fleet that has the file; None if it is not lent to one."""
    try:
        return load(file) if file.read_text(encoding="utf-8").startswith(_LENT) else None
    except (OSError, UnicodeDecodeError, BadInput):
        return None


def save(context: Context, file: Path | None = None, *, note: str = "") -> Path:
    """Return the file that now holds `context`; only its owner can read it. A note is its first line."""
    file = file or place()
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [f'{name} = "{_escaped(str(value))}"\n' for name, value in asdict(context).items()]
    written = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as stream:
        stream.writelines([note, *lines])
    written.replace(file)
    return file


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
