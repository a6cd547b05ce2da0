"""Landlock's rules by the version of its interface."""

import socket
import struct

import pytest

from fedfleet_sandbox import Policy, landlock


@pytest.mark.parametrize(
    ("abi", "files", "size"),
    [
        (1, 0x1FFF, 8),
        (2, 0x3FFF, 8),
        (3, 0x7FFF, 8),
        (4, 0x7FFF, 16),
        (5, 0xFFFF, 16),
        (6, 0xFFFF, 24),
        (9, 0xFFFF, 24),
    ],
)
def test_a_ruleset_handles_what_the_kernel_knows(abi: int, files: int, size: int) -> None:
    attributes = landlock.ruleset(Policy(), abi)
    assert len(attributes) == size
    assert struct.unpack_from("=Q", attributes) == (files,)


def test_all_tcp_abstract_sockets_and_signals_are_handled() -> None:
    assert struct.unpack("=QQQ", landlock.ruleset(Policy(), 6))[1:] == (3, 3)
    unix = Policy(families=frozenset({int(socket.AF_UNIX)}))
    assert struct.unpack("=QQQ", landlock.ruleset(unix, 6))[2] == 2


@pytest.mark.parametrize("abi", range(1, 8))
def test_no_rule_grants_what_is_not_handled(abi: int) -> None:
    policy = Policy(programs=("/p",), readable=("/r",), writable=("/w",), devices=("/d",))
    assert all(rule.rights & ~landlock.handled(abi) == 0 for rule in landlock.rules(policy, abi))


def test_what_is_written_is_not_run_and_what_is_read_not_written() -> None:
    policy = Policy(programs=("/p",), readable=("/r",), writable=("/w",))
    rights = {rule.path: rule.rights for rule in landlock.rules(policy, 7)}
    change = landlock.WRITE_FILE | landlock.MAKE_REG | landlock.REMOVE_FILE | landlock.TRUNCATE
    assert rights["/p"] & landlock.EXECUTE and not rights["/p"] & change
    assert not rights["/r"] & (change | landlock.EXECUTE)
    assert rights["/w"] & change == change and not rights["/w"] & landlock.EXECUTE
    assert not rights["/w"] & (landlock.MAKE_CHAR | landlock.MAKE_BLOCK)


def test_names_in_shared_memory_cannot_be_listed_and_it_may_be_left_out() -> None:
    rights = {rule.path: rule.rights for rule in landlock.rules(Policy(), 7)}
    assert not rights["/dev/shm"] & landlock.READ_DIR
    assert "/dev/shm" not in {rule.path for rule in landlock.rules(Policy(shared_memory=False), 7)}
