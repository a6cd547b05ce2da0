"""The seccomp programs, run by an interpreter of the few instructions they use."""

import os
import socket
import struct
from errno import EACCES, ENOSYS, EPERM

import pytest

from fedfleet_sandbox import Policy, seccomp
from fedfleet_sandbox.calls import NUMBERS

X86, ARM = "x86_64", "aarch64"
ARCH = {X86: 0xC000003E, ARM: 0xC00000B7}
COLUMN = {X86: 0, ARM: 1}
NOTHING = Policy()
WEB = Policy(families=frozenset({int(socket.AF_INET), int(socket.AF_INET6)}))


def answer(code: bytes, arch: int, number: int, *arguments: int) -> int:
    """Return what the program says of a call."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number, arch, 0, *padded)
    instructions = list(struct.iter_unpack("=HBBI", code))
    at, a = 0, 0
    while True:
        operation, yes, no, k = instructions[at]
        at += 1
        match operation:
            case 0x20:
                (a,) = struct.unpack_from("=I", data, k)
            case 0x54:
                a &= k
            case 0x15:
                at += yes if a == k else no
            case 0x35:
                at += yes if a >= k else no
            case 0x06:
                return int(k)
            case _:
                raise AssertionError(f"no such instruction: {operation:#x}")


def of(policy: Policy, machine: str, call: str, *arguments: int, abi: int = 7) -> int:
    number = NUMBERS[call][COLUMN[machine]]
    assert number is not None
    return answer(seccomp.program(policy, machine, abi=abi), ARCH[machine], number, *arguments)


@pytest.mark.parametrize("machine", [X86, ARM])
@pytest.mark.parametrize(
    ("call", "arguments", "error"),
    [
        ("ptrace", (), EPERM), ("process_vm_readv", (), EPERM), ("pidfd_getfd", (), EPERM), ("bpf", (), EPERM),
        ("unshare", (0,), EPERM), ("mount", (), EPERM), ("keyctl", (), EPERM), ("perf_event_open", (), EPERM),
        ("io_uring_setup", (), ENOSYS), ("clone3", (), ENOSYS), ("pidfd_open", (), ENOSYS),
        ("clone", (0x10000000,), EPERM), ("clone", (0x40000011,), EPERM), ("shmget", (), EPERM),
        ("socket", (socket.AF_INET, socket.SOCK_STREAM), EACCES), ("socket", (socket.AF_UNIX, 1), EACCES),
        ("socket", (40, 1), EACCES), ("connect", (3,), EACCES), ("bind", (3,), EACCES),
        ("socketpair", (socket.AF_UNIX, socket.SOCK_DGRAM | 0x80000), EACCES),
        ("prlimit64", (1,), EPERM), ("setpriority", (0, 1), EPERM), ("ioctl", (0, 0x5412), EPERM),
        ("setpriority", (1, 0), EPERM), ("setpriority", (2, 0), EPERM), ("ioprio_set", (1, 1), EPERM),
        ("ioprio_set", (2, 0), EPERM), ("ioprio_set", (3, 0), EPERM),
        ("fchmod", (), 0), ("fchownat", (), 0), ("setsid", (), 0), ("setpgid", (), 0),
    ],
)  # fmt: skip
def test_what_reaches_beyond_the_process_is_refused(
    machine: str, call: str, arguments: tuple[int, ...], error: int
) -> None:
    assert of(NOTHING, machine, call, *arguments) == seccomp.REFUSE | error


@pytest.mark.parametrize("machine", [X86, ARM])
@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("clone", (0x01200011,)), ("clone", (0x003D0F00,)), ("prlimit64", (0,)), ("setpriority", (0, 0)),
        ("socketpair", (socket.AF_UNIX, socket.SOCK_STREAM | 0x80000)), ("ioctl", (0, 0x5401)), ("truncate", ()),
        ("ioprio_set", (1, 0)), ("openat", (0, 0, os.O_TRUNC)), ("openat2", ()),
    ],
)  # fmt: skip
def test_what_an_app_needs_passes(machine: str, call: str, arguments: tuple[int, ...]) -> None:
    assert of(NOTHING, machine, call, *arguments) == seccomp.ALLOW


def test_a_kernel_whose_landlock_lets_files_be_cut_has_that_refused_here() -> None:
    assert of(NOTHING, X86, "truncate", abi=2) == seccomp.REFUSE | EPERM


@pytest.mark.parametrize("mode", [os.O_RDONLY, 3])
def test_nor_is_a_file_cut_there_by_opening_it_without_the_right_to_write(mode: int) -> None:
    refused, cut = seccomp.REFUSE | EACCES, mode | os.O_TRUNC | os.O_CLOEXEC
    assert of(NOTHING, X86, "open", 0, cut, abi=2) == refused
    assert of(NOTHING, X86, "openat", 0, 0, cut, abi=2) == of(NOTHING, ARM, "openat", 0, 0, cut, abi=2) == refused
    assert of(NOTHING, X86, "openat2", abi=2) == of(NOTHING, ARM, "openat2", abi=2) == seccomp.REFUSE | ENOSYS


@pytest.mark.parametrize("flags", [0, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_CREAT | os.O_TRUNC, os.O_CLOEXEC])
def test_files_that_may_be_written_or_only_read_open_there_as_ever(flags: int) -> None:
    assert of(NOTHING, X86, "open", 0, flags, abi=2) == of(NOTHING, X86, "openat", 0, 0, flags, abi=2) == seccomp.ALLOW


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_of_the_internets_protocols_only_those_that_landlock_guards_are_left(family: int) -> None:
    stream, refused = int(socket.SOCK_STREAM) | 0x80000, seccomp.REFUSE | EACCES
    names = Policy(families=WEB.families, datagrams=True)
    for policy in (WEB, names):
        assert of(policy, X86, "socket", family, stream, socket.IPPROTO_TCP) == seccomp.ALLOW
        assert of(policy, X86, "socket", family, stream, 262) == refused  # MPTCP
        assert of(policy, X86, "socket", family, stream, socket.IPPROTO_SCTP) == refused
    datagram = int(socket.SOCK_DGRAM)
    assert of(names, X86, "socket", family, datagram, socket.IPPROTO_UDP) == seccomp.ALLOW
    assert of(names, X86, "socket", family, datagram, socket.IPPROTO_ICMP) == refused
    assert of(WEB, X86, "socket", family, datagram, socket.IPPROTO_UDP) == refused


def test_with_a_network_only_its_families_and_only_streams_are_made() -> None:
    stream, datagram = int(socket.SOCK_STREAM) | 0x80000, int(socket.SOCK_DGRAM)
    refused = seccomp.REFUSE | EACCES
    assert of(WEB, X86, "socket", socket.AF_INET, stream) == seccomp.ALLOW
    assert of(WEB, X86, "socket", socket.AF_INET6, stream) == seccomp.ALLOW
    assert of(WEB, X86, "connect", 3) == seccomp.ALLOW
    assert of(WEB, X86, "socket", socket.AF_INET, datagram) == refused
    assert of(WEB, X86, "socket", socket.AF_UNIX, stream) == refused
    assert of(WEB, X86, "socket", 17, 3) == refused
    names = Policy(families=WEB.families, datagrams=True)
    assert of(names, X86, "socket", socket.AF_INET, datagram) == seccomp.ALLOW
    unix = Policy(families=frozenset({int(socket.AF_UNIX)}))
    assert of(unix, X86, "socket", socket.AF_UNIX, datagram) == seccomp.ALLOW
    assert of(unix, X86, "socket", socket.AF_INET, stream) == refused


def test_another_processors_calls_end_the_process_and_x32_is_not_there() -> None:
    code = seccomp.program(NOTHING, X86, abi=7)
    assert answer(code, 0x40000003, 11) == seccomp.KILL
    assert answer(code, ARCH[X86], 0x40000000 + 101) == seccomp.REFUSE | ENOSYS
    assert answer(code, ARCH[X86], 0) == seccomp.ALLOW


def test_an_unknown_processor_is_named() -> None:
    with pytest.raises(seccomp.UnknownMachine, match="riscv64"):
        seccomp.program(NOTHING, "riscv64", abi=7)


def test_the_program_stays_within_what_a_kernel_takes() -> None:
    everything = Policy(families=frozenset(range(1, 12)))
    assert max(len(seccomp.program(policy, X86, abi=1)) // 8 for policy in (NOTHING, WEB, everything)) < 4096


@pytest.mark.parametrize("machine", [X86, ARM])
def test_nothing_is_sent_along_with_opening_a_connection(machine: str) -> None:
    fast, plain = int(socket.MSG_FASTOPEN), int(socket.MSG_NOSIGNAL)
    for call, before in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        arguments = [0] * before
        assert of(WEB, machine, call, *arguments, plain) == seccomp.ALLOW
        assert of(WEB, machine, call, *arguments, plain | fast) == seccomp.REFUSE | EACCES
