"""The processes below one process, as /proc tells of them. Linux only."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec


class Process(msgspec.Struct, frozen=True):
    """A process at one moment.

    Attributes:
        state: one letter of proc(5): T is stopped, Z has ended and waits to be buried.
        born: the kernel's tick; with the pid it names one process for good.
    """

    pid: int
    parent: int
    state: str
    born: float
    words: tuple[str, ...]


def process(pid: int) -> Process | None:
    """Return a process; None if there is none with this id."""
    try:
        # What follows the command: state, parent, ... (proc(5)); a command may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        return Process(pid, int(fields[1]), fields[0], float(fields[19]), tuple(words[:-1]))
    except (OSError, ValueError, IndexError):
        return None


def alive(pid: int, born: float) -> bool:
    """Return whether the process that was born then still runs."""
    found = process(pid) if pid else None
    return found is not None and found.born == born and found.state not in "ZX"


def below(pid: int) -> list[Process]:
    """Return a process's children, their children and so on, parents first; those that have ended are left out."""
    children: dict[int, list[Process]] = {}
    for found in _all():
        children.setdefault(found.parent, []).append(found)
    todo, mine = [pid], list[Process]()
    while todo:
        for child in children.get(todo.pop(0), []):
            mine.append(child)
            todo.append(child.pid)
    return mine


def mentioning(text: str) -> list[Process]:
    """Return the processes with a word in their command line that begins with `text`, but not this one."""
    own = os.getpid()
    return [one for one in _all() if one.pid != own and any(word.startswith(text) for word in one.words)]


def _all() -> Iterator[Process]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(ValueError):
            found = process(int(entry.name))
            if found is not None and found.state not in "ZX":
                yield found
