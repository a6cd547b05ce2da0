"""What a confined process may still do, as a value."""

import site
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROGRAMS: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store")
"""Where programs and shared libraries are; nothing of a person."""
FACTS: Final = (
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/alternatives",
    "/etc/localtime", "/etc/timezone", "/etc/os-release", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf",
    "/etc/hosts", "/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/etc/mime.types", "/etc/fonts",
    "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/loadavg", "/proc/uptime", "/proc/version",
    "/proc/filesystems", "/proc/sys/kernel", "/proc/sys/vm", "/sys/devices/system", "/sys/kernel/mm",
)  # fmt: skip
"""What libraries ask of the machine; /proc otherwise holds only the process itself."""
HARMLESS_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a process may do after `apply`. Paths that do not exist are left out; a folder stands for all below it.

    Attributes:
        programs: may be read and executed.
        readable: may be read.
        writable: may be read, written, made and removed, not executed.
        devices: device files that may be used, ioctl included.
        shared_memory: whether /dev/shm may be used, whose files then have names that cannot be listed.
        families: address families of which sockets may be made; AF_UNIX stands for sockets of this machine. None: no
            network at all.
        datagrams: whether sockets of these families may be other than streams, e.g. to ask a name server.
        ports: TCP ports that may be connected to, where `families` holds the internet's.
    """

    programs: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    shared_memory: bool = True
    families: frozenset[int] = frozenset()
    datagrams: bool = False
    ports: tuple[int, ...] = ()

    @property
    def internet(self) -> bool:
        """Whether any socket reaches beyond this machine."""
        return bool(self.families - {int(socket.AF_UNIX)})


def python_folders() -> tuple[str, ...]:
    """Return where this interpreter finds itself and its modules, and may therefore read and execute."""
    found = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    found |= {path for path in (*sys.path, site.getuserbase()) if path and Path(path).is_absolute()}
    # The interpreter may be a link to one that lies elsewhere.
    found.add(str(Path(sys.executable).resolve().parent))
    return tuple(sorted(path for path in found if path != "/"))
