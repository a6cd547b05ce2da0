"""The runner's confinement: Python, its own folder, and the API's port; of the coordinator's state nothing.

It happens before anything is imported that makes threads, Flower included, so for a spare runner before it knows its
run: the launcher makes its folder ahead.
"""

import ipaddress
import json
import os
import site
import socket
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import fedfleet_sandbox

ENVIRONMENT = "FEDFLEET_CONFINEMENT"


def spelled(home: Path, url: str, *, readable: tuple[str, ...] = (), writable: tuple[str, ...] = ()) -> str:
    """Return what a runner finds in its environment: its folder, the API, and what the operator lets it have."""
    return json.dumps({"home": str(home), "url": url, "readable": readable, "writable": writable})


def policy(
    home: Path, url: str, *, readable: tuple[str, ...] = (), writable: tuple[str, ...] = ()
) -> fedfleet_sandbox.Policy:
    """Return what a runner may do whose folder is `home`, and whose coordinator is at `url`."""
    parts = urlsplit(url)
    return fedfleet_sandbox.Policy(
        programs=fedfleet_sandbox.python_folders(),
        readable=("/etc/resolv.conf", "/run/systemd/resolve", *readable),
        writable=(str(home), *writable),
        families=frozenset({int(socket.AF_INET), int(socket.AF_INET6)}),
        datagrams=not _has_address(parts.hostname or ""),
        ports=(parts.port or 443,),
    )


def enter(environment: MutableMapping[str, str], arguments: Sequence[str]) -> bool:
    """Confine this process as its environment says, or to the folder it is given (`--home`); return whether it is.

    Raises:
        OSError: the kernel refused what it had said it could do.
    """
    said = environment.pop(ENVIRONMENT, "") or _of_a_pod(arguments)
    if not said:
        return False
    told = json.loads(said)
    home = Path(told["home"])
    temporary = home / "tmp"
    temporary.mkdir(exist_ok=True)
    environment["PYTHONUSERBASE"] = site.getuserbase()
    environment.update(HOME=str(home), TMPDIR=str(temporary), XDG_CACHE_HOME=str(home / ".cache"))
    os.chdir(home)
    rest = {name: tuple(told[name]) for name in ("readable", "writable")}
    fedfleet_sandbox.apply(policy(home, told["url"], **rest))
    return True


def _of_a_pod(arguments: Sequence[str]) -> str:
    if list(arguments[:1]) != ["--home"] or len(arguments) != 2:
        return ""
    home = Path(arguments[1]).resolve()
    try:
        return spelled(home, str(json.loads((home / "runner.json").read_bytes())["url"]))
    except (OSError, ValueError, KeyError):
        return ""  # not a runner's folder, which the runner says itself


def _has_address(host: str) -> bool:
    """Whether a host is found without asking a name server."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True
