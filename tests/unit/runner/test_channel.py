"""Blobs by descriptor: what the coordinator's end answers, and what becomes of it when that dies."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedfleet_coordinator.runner.channel import ENVIRONMENT, BlobChannel
from fedfleet_protocol.blocks import blocks_of
from fedfleet_protocol.messages import BlobRef

BLOB = BlobRef(blocks_of([b"the blob"]).digest, 8)


@contextmanager
def answered(*answers: tuple[bytes, int | None]) -> Iterator[tuple[BlobChannel, list[bytes]]]:
    ours, theirs = socket.socketpair()
    asked: list[bytes] = []

    def serve() -> None:
        for data, fd in answers:
            asked.append(theirs.recv(100))
            socket.send_fds(theirs, [data], [] if fd is None else [fd])
        theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    channel = BlobChannel(ours)
    try:
        yield channel, asked
    finally:
        channel.close()
        thread.join()


def a_file(folder: Path, data: bytes) -> int:
    (folder / "file").write_bytes(data)
    return os.open(folder / "file", os.O_RDONLY)


def test_a_blob_is_the_file_that_was_handed_over(tmp_path: Path) -> None:
    theirs = a_file(tmp_path, b"the blob")
    with answered((b"ok\n", theirs)) as (channel, asked):
        fd = channel.ask(BLOB)
        assert fd is not None and os.pread(fd, 100, 0) == b"the blob"
        assert asked == [f"{BLOB.digest}\n".encode()] and not os.get_inheritable(fd)
        os.close(fd)
    os.close(theirs)


def test_no_is_an_answer_and_the_next_blob_is_asked_for_again(tmp_path: Path) -> None:
    theirs = a_file(tmp_path, b"the blob")
    with answered((b"no\n", None), (b"ok\n", theirs)) as (channel, _):
        assert channel.ask(BLOB) is None
        fd = channel.ask(BLOB)
        assert fd is not None
        os.close(fd)
    os.close(theirs)


def test_a_file_of_another_size_is_not_taken(tmp_path: Path) -> None:
    theirs = a_file(tmp_path, b"the blo")
    with answered((b"ok\n", theirs)) as (channel, _):
        assert channel.ask(BLOB) is None
    os.close(theirs)


def test_after_the_coordinator_is_gone_nothing_is_asked_any_more() -> None:
    with answered() as (channel, _):
        assert channel.ask(BLOB) is None
        assert channel.ask(BLOB) is None


def test_without_a_channel_in_the_environment_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "many", "987654"):
        monkeypatch.setenv(ENVIRONMENT, value)
        assert BlobChannel.inherited() is None
        assert ENVIRONMENT not in os.environ


def test_an_inherited_channel_is_not_inherited_further(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    os.set_inheritable(ours.fileno(), True)
    fd = ours.detach()
    monkeypatch.setenv(ENVIRONMENT, str(fd))
    channel = BlobChannel.inherited()
    assert channel is not None and not os.get_inheritable(fd)
    channel.close()
    theirs.close()
