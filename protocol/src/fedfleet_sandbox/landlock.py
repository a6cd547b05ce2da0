"""A policy as Landlock rules, for each version of the kernel's interface; values only.

A right that a ruleset handles is refused everywhere but where a rule grants it. Numbers are those of
`linux/landlock.h`; the interface's versions are described in the kernel's documentation (userspace-api/landlock).
"""

import socket
import struct
from dataclasses import dataclass
from typing import Final

from fedfleet_sandbox.policy import FACTS, HARMLESS_DEVICES, PROGRAMS, Policy

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = (1 << bit for bit in range(13, 16))
CONNECT_TCP: Final = 2
_ALL_TCP: Final = 3
_SCOPES: Final = 3  # abstract Unix sockets, signals
FILE_RIGHTS: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""What a rule about a file, not a folder, may grant."""

_READ: Final = READ_FILE | READ_DIR
_CHANGE: Final = WRITE_FILE | TRUNCATE | REMOVE_FILE | MAKE_REG
_WRITE: Final = _READ | _CHANGE | REMOVE_DIR | MAKE_DIR | MAKE_SOCK | MAKE_FIFO | MAKE_SYM | REFER


@dataclass(frozen=True, slots=True)
class Rule:
    """Rights on a path and everything below it."""

    path: str
    rights: int


def handled(abi: int) -> int:
    """Return the rights on files that version `abi` of the interface can refuse; those it does not know stay free."""
    first = MAKE_SYM | (MAKE_SYM - 1)
    return first | (REFER if abi >= 2 else 0) | (TRUNCATE if abi >= 3 else 0) | (IOCTL_DEV if abi >= 5 else 0)


def ruleset(policy: Policy, abi: int) -> bytes:
    """Return `struct landlock_ruleset_attr`, as long as version `abi` knows it."""
    attributes = struct.pack("=Q", handled(abi))
    if abi >= 4:
        attributes += struct.pack("=Q", _ALL_TCP)
    if abi >= 6:
        # With Unix sockets allowed, those without a path are too.
        scopes = _SCOPES & ~1 if int(socket.AF_UNIX) in policy.families else _SCOPES
        attributes += struct.pack("=Q", scopes)
    return attributes


def rules(policy: Policy, abi: int) -> tuple[Rule, ...]:
    """Return the rules on files; the paths need not exist."""
    granted = (
        *(Rule(path, EXECUTE | _READ) for path in (*PROGRAMS, *policy.programs)),
        *(Rule(path, _READ) for path in (*FACTS, *policy.readable)),
        *(Rule(path, _WRITE) for path in policy.writable),
        *(Rule(path, READ_FILE | WRITE_FILE) for path in HARMLESS_DEVICES),
        *(Rule(path, _READ | WRITE_FILE | IOCTL_DEV) for path in policy.devices),
        Rule("/proc/self", _READ | WRITE_FILE),
    )
    if policy.shared_memory:  # without READ_DIR: a name nobody tells is a name nobody knows
        granted += (Rule("/dev/shm", READ_FILE | _CHANGE),)  # noqa: S108 - POSIX shared memory is there
    known = handled(abi)
    return tuple(Rule(rule.path, rule.rights & known) for rule in granted)


def path_rule(rights: int, descriptor: int) -> bytes:
    """Return `struct landlock_path_beneath_attr`, which is packed."""
    return struct.pack("=Qi", rights, descriptor)


def port_rule(port: int) -> bytes:
    """Return `struct landlock_net_port_attr` for connecting."""
    return struct.pack("=QQ", CONNECT_TCP, port)
