"""A policy as a seccomp program (classic BPF), as bytes; values only.

It lists what is refused and lets the rest pass: an app brings libraries that nobody here has seen, and files are
Landlock's to guard. Refused is what reaches other processes, the kernel's inner parts, or the network. A program of
another architecture's calls ends the process.
"""

import os
import socket
import struct
from dataclasses import dataclass
from errno import EACCES, ENOSYS, EOPNOTSUPP, EPERM
from typing import Final

from fedfleet_sandbox.calls import NUMBERS
from fedfleet_sandbox.policy import Policy

_DONE: Final = 0
"""Answered as if it had been done, and not done."""
_NAMESPACES: Final = 0x7E020000
"""CLONE_NEWNS to CLONE_NEWNET."""
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_TYPE_OF_SOCKET: Final = 0xF
_OF_ITSELF: Final = (("setpriority", 0), ("ioprio_set", 1))
"""Calls that may be about a process, with what they call one; all of a group or of a user are others too."""
_ACCESS: Final = os.O_ACCMODE | os.O_TRUNC
_CUT_UNSEEN: Final = (os.O_RDONLY | os.O_TRUNC, os.O_ACCMODE | os.O_TRUNC)
"""Ways to open a file that empty it, and for which Landlock does not ask for the right to write before version 3."""

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
KILL, REFUSE, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_NR_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_X32 = 0x40000000

_COLUMN: Final = {"x86_64": 0, "aarch64": 1}
_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_REFUSED: Final[dict[int, tuple[str, ...]]] = {
    EPERM: (
        # other processes
        "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "kcmp", "move_pages",
        "migrate_pages", "pidfd_getfd", "pidfd_send_signal",
        # the kernel's inner parts, and what only its administrator needs
        "unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "open_tree_attr",
        "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "bpf", "perf_event_open", "userfaultfd",
        "fanotify_init", "keyctl", "add_key", "request_key", "open_by_handle_at", "name_to_handle_at", "kexec_load",
        "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "swapon", "swapoff", "acct",
        "quotactl", "quotactl_fd", "syslog", "vhangup", "iopl", "ioperm", "modify_ldt", "settimeofday",
        "clock_settime", "adjtimex", "clock_adjtime", "sethostname", "setdomainname", "file_setattr",
        # memory and queues that are found by a number or a name, by any app
        "mq_open", "mq_unlink", "msgget", "semget", "shmget", "shmat", "shmctl",
    ),
    # Libraries go another way where a kernel does not have these. What clone3 asks for cannot be looked at.
    ENOSYS: ("io_uring_setup", "io_uring_enter", "io_uring_register", "clone3", "pidfd_open"),
    EOPNOTSUPP: (
        "setxattr", "lsetxattr", "fsetxattr", "setxattrat", "removexattr", "lremovexattr", "fremovexattr",
        "removexattrat",
    ),
    # Landlock does not guard modes and owners, and copying a file sets them. A session of its own is how a process
    # gets away from the signal that ends its group.
    _DONE: (
        "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "setsid", "setpgid",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Test:
    """A condition on the low half of an argument: `argument & mask == value`, or not."""

    argument: int
    value: int
    mask: int = 0xFFFFFFFF
    equal: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """A call that is answered with an error number if all tests hold."""

    call: str
    error: int
    tests: tuple[Test, ...] = ()


class UnknownMachine(Exception):
    """There is no table of system calls for this processor."""


def rules(policy: Policy, *, abi: int) -> tuple[Rule, ...]:
    """Return what is refused under a policy; `abi` is Landlock's version, which lets files be emptied before 3."""
    found = [Rule(call, error) for error, calls in _REFUSED.items() for call in calls]
    # Of other processes, also the agent's, which runs as the same user.
    found += [Rule(call, EPERM, (Test(0, 0, equal=False),)) for call in ("prlimit64", *_OF_A_PROCESS)]
    for call, process in _OF_ITSELF:
        found += [Rule(call, EPERM, (Test(0, process, equal=False),)), Rule(call, EPERM, (Test(1, 0, equal=False),))]
    found.append(Rule("clone", EPERM, (Test(0, 0, _NAMESPACES, equal=False),)))
    found += [Rule("ioctl", EPERM, (Test(1, request),)) for request in (_TIOCSTI, _TIOCLINUX)]
    if abi < 3:
        # What openat2 asks for cannot be looked at.
        found += [Rule("truncate", EPERM), Rule("openat2", ENOSYS)]
        for call, flags in (("open", 1), ("openat", 2)):
            found += [Rule(call, EACCES, (Test(flags, cut, _ACCESS),)) for cut in _CUT_UNSEEN]
    return (*found, *_sockets(policy))


_SENDING: Final = (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3))
_OF_A_PROCESS: Final = ("sched_setparam", "sched_setscheduler", "sched_setattr")


def _sockets(policy: Policy) -> list[Rule]:
    unix, stream = int(socket.AF_UNIX), int(socket.SOCK_STREAM)
    others = tuple(Test(0, family, equal=False) for family in sorted(policy.families))
    found = [Rule("socket", EACCES, others)]
    if not policy.datagrams:
        found.append(
            Rule("socket", EACCES, (Test(0, unix, equal=False), Test(1, stream, _TYPE_OF_SOCKET, equal=False)))
        )
    # Landlock's rule about ports is one about TCP, and MPTCP, say, is another protocol.
    protocols = (0, socket.IPPROTO_TCP, *((socket.IPPROTO_UDP,) if policy.datagrams else ()))
    unknown = tuple(Test(2, int(protocol), equal=False) for protocol in protocols)
    internet = (int(socket.AF_INET), int(socket.AF_INET6))
    found += [Rule("socket", EACCES, (Test(0, family), *unknown)) for family in internet]
    # What is sent along with opening a connection passes Landlock's rule about ports.
    fast = int(socket.MSG_FASTOPEN)
    found += [Rule(call, EACCES, (Test(flags, fast, fast),)) for call, flags in _SENDING]
    if unix not in policy.families:
        # A pair of streams is joined for good. One of datagrams could be sent from to any socket with a path.
        found.append(Rule("socketpair", EACCES, (Test(1, int(socket.SOCK_DGRAM), _TYPE_OF_SOCKET),)))
    if not policy.families:
        found += [Rule(call, EACCES) for call in ("connect", "bind", "listen")]
    return found


def program(policy: Policy, machine: str, *, abi: int) -> bytes:
    """Return the program for a processor ("x86_64", "aarch64"), as an array of `struct sock_filter`.

    Raises:
        UnknownMachine: there is no table of its system calls.
    """
    if machine not in _COLUMN:
        raise UnknownMachine(f"no table of system calls for {machine}")
    code = [(_LOAD, 0, 0, _ARCH_AT), (_EQUAL, 1, 0, _ARCH[machine]), (_RETURN, 0, 0, KILL), (_LOAD, 0, 0, _NR_AT)]
    if machine == "x86_64":  # the x32 calls are the same ones under other numbers
        code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, REFUSE | ENOSYS)]
    # Those with tests come last: they load anew, and each call has one place before them.
    for rule in sorted(rules(policy, abi=abi), key=lambda rule: bool(rule.tests)):
        number = NUMBERS[rule.call][_COLUMN[machine]]
        if number is not None:
            code += _compiled(rule, number)
    code.append((_RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _compiled(rule: Rule, number: int) -> list[tuple[int, int, int, int]]:
    refuse = (_RETURN, 0, 0, REFUSE | rule.error)
    if not rule.tests:
        return [(_EQUAL, 0, 1, number), refuse]
    pieces: list[list[tuple[int, int, int, int]]] = []
    left = 1  # instructions up to and with `refuse` that a failed test jumps over
    for test in reversed(rule.tests):
        jump = (_EQUAL, 0, left, test.value) if test.equal else (_EQUAL, left, 0, test.value)
        piece = [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * test.argument), jump]
        if test.mask != 0xFFFFFFFF:
            piece.insert(1, (_AND, 0, 0, test.mask))
        pieces.insert(0, piece)
        left += len(piece)
    body = [instruction for piece in pieces for instruction in piece]
    return [(_LOAD, 0, 0, _NR_AT), (_EQUAL, 0, left, number), *body, refuse]
