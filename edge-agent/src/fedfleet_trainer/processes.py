"""What Linux knows of this trainer's processes, and what it is asked to do with them."""

import ctypes
import os
import resource
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_TICKS = os.sysconf("SC_CLK_TCK")


def on_parents_death(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that none gets out of sight."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def refuse_privileges() -> None:
    """See to it that no program run from here gains rights by a set-uid bit."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def limit(*, file_bytes: int, nice: int) -> None:
    """Bound what this process and its children may write, and let others go first. No core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if file_bytes:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        most = file_bytes if hard == resource.RLIM_INFINITY else min(file_bytes, hard)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with suppress(OSError):
        os.nice(nice)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a family of processes has used.

    Attributes:
        cpu_s: processor seconds, those of ended children included.
        memory_bytes: anonymous and shared memory; mapped files are not counted, the kernel takes them back itself.
    """

    pids: tuple[int, ...] = ()
    cpu_s: float = 0.0
    memory_bytes: int = 0


def tasks_of_machine() -> int:
    """Return how many threads there are on this machine; one short read."""
    with suppress(OSError, ValueError, IndexError):
        return int(_read("/proc/loadavg").split()[3].split(b"/")[1])
    return 0


def usage_below(root: int) -> Usage:
    """Return what all descendants of process `root` use, `root` itself left out."""
    parents: dict[int, tuple[int, int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                # The name in parentheses may hold spaces and parentheses itself.
                fields = _read(f"/proc/{name}/stat").rpartition(b")")[2].split()
                parents[int(name)] = int(fields[1]), sum(int(ticks) for ticks in fields[11:15])
    family, found = {root}, True
    while found:
        found = False
        for pid, (parent, _) in parents.items():
            if parent in family and pid not in family:
                family.add(pid)
                found = True
    pids = tuple(sorted(family - {root}))
    ticks = sum(parents[pid][1] for pid in pids)
    return Usage(pids, ticks / _TICKS, memory_of(pids))


def memory_of(pids: Iterable[int]) -> int:
    """Return what these processes hold; pages they share after a fork count for each."""
    total = 0
    for pid in pids:
        with suppress(OSError, ValueError, IndexError):
            for line in _read(f"/proc/{pid}/status").splitlines():
                if line.startswith((b"RssAnon:", b"RssShmem:")):
                    total += int(line.split()[1]) << 10
    return total


def shared_out_memory_of(pids: Iterable[int]) -> int:
    """Return what these processes hold, shared pages divided among them: exact, and dearer to find out."""
    total = 0
    for pid in pids:
        with suppress(OSError, ValueError, IndexError):
            for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
                if line.startswith((b"Pss_Anon:", b"Pss_Shmem:")):
                    total += int(line.split()[1]) << 10
    return total


def size_of(folder: str) -> int:
    """Return the bytes that a folder takes of its disk; what is removed while somebody has it open is not seen."""
    total, todo = 0, [folder]
    while todo:
        with suppress(OSError), os.scandir(todo.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
    return total


def kill_below(root: int) -> None:
    """Kill all descendants of process `root`, also those that are born meanwhile, and reap those that are ours."""
    for _ in range(20):
        pids = usage_below(root).pids
        if not pids:
            return
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, 0)[0]:
                pass


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
