"""The system calls of a confinement, through ctypes: ask what this kernel can do, and do it to this process."""

import ctypes
import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from fedfleet_sandbox import landlock, seccomp
from fedfleet_sandbox.policy import Policy

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every processor
_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_CAPSET: Final = {"x86_64": 126, "aarch64": 91}
_ASK_VERSION, _PATH_BENEATH, _NET_PORT = 1, 1, 2
_SET_FILTER, _IS_AVAILABLE, _ALL_THREADS = 1, 2, 1
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 24, 38
_CAPABILITIES: Final = 64
_CAPABILITY_VERSION: Final = 0x20080522
_DAC_OVERRIDE: Final = 1 << 1
"""Kept where it was had: root's own files may belong to other users, and Landlock still guards the rest."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Abilities:
    """What this kernel lets a process without privileges do to itself.

    Attributes:
        landlock: the interface's version; 0 is none. 4 guards TCP, 6 signals.
        seccomp: whether programs can be installed, and there is a table of calls for this processor.
    """

    landlock: int
    seccomp: bool
    machine: str


@dataclass(frozen=True, slots=True)
class Applied:
    """What confines this process now; 0 and False where the kernel could not."""

    landlock: int
    seccomp: bool


class Threaded(Exception):
    """The process has several threads, of which Landlock would confine only one."""


def probe() -> Abilities:
    """Return what this kernel can do; changes nothing."""
    machine = os.uname().machine
    version = _syscall(_CREATE_RULESET, None, 0, _ASK_VERSION)
    action = ctypes.c_uint32(seccomp.REFUSE)
    number = _SECCOMP.get(machine)
    able = number is not None and _syscall(number, _IS_AVAILABLE, 0, ctypes.byref(action)) == 0
    return Abilities(max(0, version), able, machine)


def apply(policy: Policy) -> Applied:
    """Confine this process and all it will start, for good, as far as this kernel can.

    Raises:
        Threaded: it has more than one thread; the programmer's fault.
        OSError: the kernel refused a step that it had said it could do; the process is to end.
    """
    if len(os.listdir("/proc/self/task")) != 1:
        raise Threaded("a process is confined before it has threads")
    able = probe()
    refuse_privileges()
    if able.landlock:
        _restrict(policy, able.landlock)
    _drop_capabilities(able.machine)
    if able.seccomp:
        _filter(seccomp.program(policy, able.machine, abi=able.landlock), able.machine)
    return Applied(able.landlock, able.seccomp)


def refuse_privileges() -> None:
    """See to it that no program run from here gains rights by a set-uid bit."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def hide_memory(hidden: bool = True) -> None:
    """See to it that no other process of this user reads this one's memory, or traces it; or undo that."""
    _prctl(_PR_SET_DUMPABLE, 0 if hidden else 1)


def _restrict(policy: Policy, abi: int) -> None:
    attributes = landlock.ruleset(policy, abi)
    ruleset = _checked(_syscall(_CREATE_RULESET, attributes, len(attributes), 0), "landlock_create_ruleset")
    try:
        for rule in landlock.rules(policy, abi):
            _grant(ruleset, rule)
        for port in policy.ports if abi >= 4 else ():
            _checked(_syscall(_ADD_RULE, ruleset, _NET_PORT, landlock.port_rule(port), 0), "landlock_add_rule")
        _checked(_syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _grant(ruleset: int, rule: landlock.Rule) -> None:
    try:
        descriptor = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # it does not exist here, or is nobody's to see: nothing is granted
    try:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        rights = rule.rights if folder else rule.rights & landlock.FILE_RIGHTS
        _checked(
            _syscall(_ADD_RULE, ruleset, _PATH_BENEATH, landlock.path_rule(rights, descriptor), 0),
            f"landlock_add_rule {rule.path}",
        )
    finally:
        # A file of /proc may come back as another inode, which no rule names, once nobody holds it open.
        if not rule.path.startswith("/proc"):
            os.close(descriptor)


def _drop_capabilities(machine: str) -> None:
    """Give up what a root user may do beyond others; somebody without capabilities has nothing to give up."""
    for capability in range(_CAPABILITIES):
        with suppress(OSError):
            _prctl(_PR_CAPBSET_DROP, capability)
    if os.geteuid() != 0 or machine not in _CAPSET:
        return
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    kept = (ctypes.c_uint32 * 6)(_DAC_OVERRIDE, _DAC_OVERRIDE, 0, 0, 0, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if _syscall(_CAPSET[machine], ctypes.byref(header), ctypes.byref(kept)) != 0:
        _checked(_syscall(_CAPSET[machine], ctypes.byref(header), ctypes.byref(nothing)), "capset")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def _filter(code: bytes, machine: str) -> None:
    program = _Program(len(code) // 8, code)
    _checked(_syscall(_SECCOMP[machine], _SET_FILTER, _ALL_THREADS, ctypes.byref(program)), "seccomp")


def _prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    _checked(_libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero), "prctl")


def _syscall(number: int, *arguments: object) -> int:
    """Return what a system call returns; numbers go as whole registers."""
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return int(_libc.syscall(ctypes.c_long(number), *wide))


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)} ({errno.errorcode.get(number, number)})")
    return result
