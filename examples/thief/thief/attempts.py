"""What a thief tries from within a process. Each attempt returns nothing if it worked and raises OSError if not."""

import ctypes
import os
import platform
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

Attempt = Callable[[], object]

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWUSER = 0x10000000
_PTRACE_SEIZE = 0x4206
_PROCESS_VM_READV = {"x86_64": 310, "aarch64": 270}
_IO_URING_SETUP = 425
_FAMILIES = {"inet": 2, "inet6": 10, "unix": 1, "netlink": 16, "packet": 17, "alg": 38, "vsock": 40}


def tried(attempts: dict[str, Attempt]) -> dict[str, bool]:
    """Return which attempts worked."""
    return {name: _works(attempt) for name, attempt in attempts.items()}


def on_process(pid: int) -> dict[str, Attempt]:
    """Return attempts on another process of the same user."""
    return {
        "memory": lambda: _memory(pid),
        "environment": lambda: _read(Path(f"/proc/{pid}/environ")),
        "arguments": lambda: _read(Path(f"/proc/{pid}/cmdline")),
        "ptrace": lambda: _in_child(lambda: _call(_LIBC.ptrace(_PTRACE_SEIZE, pid, None, None))),
        "process_vm": lambda: _process_vm(pid),
        "signal": lambda: os.kill(pid, 0),
        "pidfd": lambda: os.close(os.pidfd_open(pid)),
    }


def on_files(private: dict[str, Path]) -> dict[str, Attempt]:
    """Return attempts on files and folders that are private to somebody else."""
    found: dict[str, Attempt] = {name: lambda path=path: _read(path) for name, path in private.items()}  # type: ignore[misc]
    found["outside"] = _write_outside
    return found


def on_kernel() -> dict[str, Attempt]:
    """Return attempts to get more from the kernel than an app needs."""
    return {
        **{name: lambda family=family: _socket(family) for name, family in _FAMILIES.items()},  # type: ignore[misc]
        "datagram_pair": lambda: [end.close() for end in socket.socketpair(type=socket.SOCK_DGRAM)],
        "server": _serve,
        "io_uring": lambda: os.close(_call(_LIBC.syscall(_IO_URING_SETUP, 1, ctypes.create_string_buffer(120)))),
        "namespace": lambda: _in_child(lambda: _call(_LIBC.unshare(_CLONE_NEWUSER))),
    }


def multiply(children: int) -> int:
    """Start so many children that wait; return how many there are in the end, and end them."""
    pids = []
    for _ in range(children):
        pid = os.fork()
        if pid == 0:
            time.sleep(30)
            os._exit(0)
        pids.append(pid)
        time.sleep(0.01)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return len(pids)


def leave_a_daemon() -> None:
    """Leave a process behind, in a session of its own, that nobody waits for."""
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            time.sleep(600)
        os._exit(0)
    os.waitpid(child, 0)


def _works(attempt: Attempt) -> bool:
    try:
        attempt()
    except (OSError, OverflowError):
        return False
    return True


def _read(path: Path) -> None:
    if path.is_dir():
        os.listdir(path)
        return
    with path.open("rb") as file:
        file.read(64)


def _write_outside() -> None:
    folder = "/var/tmp"  # noqa: S108 - not the one that TMPDIR names
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"stolen")


def _memory(pid: int) -> None:
    with open(f"/proc/{pid}/maps", encoding="ascii", errors="replace") as maps:
        start = next(int(line.split("-")[0], 16) for line in maps if " rw" in line)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(start)
        memory.read(64)


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _process_vm(pid: int) -> None:
    """Read from an address that is mapped in every program of this kind, or be told that this may not be."""
    mine = ctypes.create_string_buffer(8)
    here, there = _Vector(ctypes.addressof(mine), 8), _Vector(1, 8)
    number = _PROCESS_VM_READV[platform.machine()]
    try:
        one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
        _call(_LIBC.syscall(number, pid, ctypes.byref(here), one, ctypes.byref(there), one, none))
    except OSError as error:
        if error.errno != 14:  # EFAULT: it may, and only the address was wrong
            raise


def _socket(family: int) -> None:
    kind = (
        socket.SOCK_STREAM if family in (1, 2, 10, 40) else socket.SOCK_SEQPACKET if family == 38 else socket.SOCK_RAW
    )
    socket.socket(family, kind).close()


def _serve() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()


def _in_child(act: Attempt) -> None:
    """Do it in a child, so that nothing of it lasts."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise PermissionError


def _call(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
