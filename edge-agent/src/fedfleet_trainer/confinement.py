"""The trainer's confinement: what an app may do here, and the proof that the rest is out of its reach.

What was asked of the kernel is not believed: once confined, the process tries what must not work. So it does not
matter by which means something is out of reach: Landlock, another user, another container.
"""

import os
import site
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import fedfleet_sandbox
from fedfleet_protocol.handover import ISOLATION, Sandbox

_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET, 40)  # the last is AF_VSOCK
_WORDS = {"key": "the agent's key", "journal": "the agent's journal", "network": "the network"}


class Unconfined(Exception):
    """The owner's minimum does not hold here; the device's owner's to mend, not the app's."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What this process can get at; tried, not assumed.

    Attributes:
        landlock, seccomp: what confines it; 0 and False are nothing.
        key, journal, network: as `ISOLATION` names them.
        memory: of the agent. signals: to the agent. sockets: of this machine.
    """

    landlock: int = 0
    seccomp: bool = False
    key: bool = False
    journal: bool = False
    network: bool = False
    memory: bool = False
    signals: bool = False
    sockets: bool = False

    def missing(self, minimum: str) -> tuple[str, ...]:
        """Return what a level wants out of reach and is not; an unknown level wants all."""
        return tuple(name for name in ISOLATION.get(minimum, ISOLATION["landlock"]) if getattr(self, name))


def confine(folder: Path, own: Path, sandbox: Sandbox) -> Reach:
    """Confine this process, and return what is still in its reach.

    Args:
        folder: shared with the agent; may be read.
        own: within `folder`; may be written.

    Raises:
        Unconfined: less than the owner's minimum is out of reach.
        OSError: no file can be made in `folder`.
    """
    trial = _nameless(folder)
    applied = fedfleet_sandbox.Applied(0, False)
    if sandbox.confine:
        _move_in(own)
        try:
            applied = fedfleet_sandbox.apply(policy(folder, own, sandbox))
        except OSError as error:
            raise Unconfined(f"this kernel does not confine a process as it says it does: {error}") from error
    reach = tried(sandbox, applied, trial)
    missing = reach.missing(sandbox.minimum)
    if missing:
        raise Unconfined(explained(missing, reach, sandbox))
    return reach


def policy(folder: Path, own: Path, sandbox: Sandbox) -> fedfleet_sandbox.Policy:
    """Return what an app may do: read Python, its work and the owner's data, write its own folder, nothing else."""
    devices = sandbox.devices
    return fedfleet_sandbox.Policy(
        programs=fedfleet_sandbox.python_folders(),
        # Drivers of devices look for them there.
        readable=(str(folder), *sandbox.readable, *(("/sys", "/proc/driver") if devices else ())),
        writable=(str(own),),
        devices=devices,
        families=frozenset({int(socket.AF_UNIX)}) if sandbox.unix_sockets else frozenset(),
    )


def tried(sandbox: Sandbox, applied: fedfleet_sandbox.Applied, trial: int | None) -> Reach:
    """Return what is in this process's reach, by trying; nothing is changed by that.

    Args:
        trial: an empty file that an app is not to write, which is closed; None: what it would have shown holds.
    """
    agent = sandbox.agent
    empties = trial is None or _empties(trial)
    return Reach(
        landlock=applied.landlock,
        seccomp=applied.seccomp,
        key=_opens(sandbox.key) or (empties and os.access(sandbox.key, os.W_OK)),
        journal=_opens(sandbox.journal) or (empties and os.access(sandbox.journal, os.W_OK)),
        network=any(_socket(family) for family in _FAMILIES),
        memory=bool(agent) and _opens(f"/proc/{agent}/environ"),
        signals=bool(agent) and _signals(agent),
        sockets=_socket(socket.AF_UNIX),
    )


def explained(missing: tuple[str, ...], reach: Reach, sandbox: Sandbox) -> str:
    """Return a sentence that says what is in reach, why, and what to do."""
    names = [_WORDS[name] for name in missing]
    listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    what = f"{listed} would be within an app's reach on this device"
    named = [path for path in sandbox.readable if any(_within(file, path) for file in (sandbox.key, sandbox.journal))]
    if not sandbox.confine:
        why = "its owner has switched the sandbox off ([trainer] sandbox)"
    elif named:
        why = f"its owner makes {named[0]} readable, and they lie in it: name a narrower folder"
    elif "network" in missing and not reach.seccomp:
        why = "its kernel or processor has no seccomp for this"
    elif not reach.landlock:
        why = "its kernel has no Landlock: Linux 5.13 and later have, with landlock among the names of lsm="
    elif reach.landlock < 3 and not reach.seccomp:
        why = "its Landlock lets files be emptied: that of Linux 6.2 and later does not, nor does one with seccomp"
    else:
        why = "they lie where Python itself does: give the agent another state folder"
    return f"{what}, because {why}; the owner asks for [trainer] isolation_minimum = {sandbox.minimum!r}"


def _move_in(own: Path) -> None:
    """Have libraries put into the app's own folder what they would put into the user's."""
    os.environ["PYTHONUSERBASE"] = site.getuserbase()
    temporary = own / "scratch" / "tmp"
    temporary.mkdir(exist_ok=True)
    os.environ.update(HOME=str(own / "scratch"), TMPDIR=str(temporary), XDG_CACHE_HOME=str(own / "scratch" / ".cache"))


def _nameless(folder: Path) -> int | None:
    """Return a descriptor of an empty file of the folder; None if this user may not make one there."""
    path = folder / ".trial"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except PermissionError:
        return None  # as where a trainer of another user has been attached
    path.unlink()
    return descriptor


def _empties(trial: int) -> bool:
    """Whether a file is emptied by opening it without the right to write; Landlock asks for that from version 3 on."""
    try:
        return any(_opens(f"/proc/self/fd/{trial}", mode | os.O_TRUNC) for mode in (os.O_RDONLY, os.O_ACCMODE))
    finally:
        os.close(trial)


def _opens(path: str, flags: int = os.O_RDONLY) -> bool:
    if not path:
        return False
    try:
        os.close(os.open(path, flags | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _socket(family: int) -> bool:
    kind = socket.SOCK_RAW if family in (socket.AF_NETLINK, socket.AF_PACKET) else socket.SOCK_STREAM
    with suppress(OSError):
        socket.socket(family, kind).close()
        return True
    return False


def _signals(pid: int) -> bool:
    with suppress(OSError):
        os.kill(pid, 0)
        return True
    return False


def _within(file: str, folder: str) -> bool:
    return bool(file) and Path(file).resolve().is_relative_to(Path(folder).resolve())
