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


def enter(environment: MutableMapping[str, str], arguments: Sequence[str]) -> str:
    """Confine this process as its environment says, or to the folder it is given (`--home`).

    Returns:
        What of that this kernel could not do, for the run's log; empty where all is done, or nothing was asked for.

    Raises:
        OSError: the kernel refused what it had said it could do.
    """
    said = environment.pop(ENVIRONMENT, "") or _of_a_pod(arguments)
    if not said:
        return ""
    told = json.loads(said)
    home = Path(told["home"])
    temporary = home / "tmp"
    temporary.mkdir(exist_ok=True)
    environment["PYTHONUSERBASE"] = site.getuserbase()
    environment.update(HOME=str(home), TMPDIR=str(temporary), XDG_CACHE_HOME=str(home / ".cache"))
    os.chdir(home)
    rest = {name: tuple(told[name]) for name in ("readable", "writable")}
    return lacking(fedfleet_sandbox.apply(policy(home, told["url"], **rest)))


def lacking(applied: fedfleet_sandbox.Applied) -> str:
    """Return a line that says what is not confined by what was applied; empty if everything is."""
    free: list[str] = []
    if not applied.landlock:
        free.append("it opens all files of its user (Landlock came with Linux 5.13)")
    if applied.landlock < 4:
        free.append("it connects to any TCP port (from Linux 6.7 on only to the coordinator's)")
    if not applied.seccomp:
        emptied = "files can be emptied, and " if 0 < applied.landlock < 3 else ""
        free.append(f"{emptied}calls to the kernel and other sockets are not refused (no seccomp)")
    return f"this kernel confines the runner only in part: {'; '.join(free)}" if free else ""


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
