"""The loop and what hangs on it: other threads, signals, sockets, systemd, and memory that is given back."""

import ctypes
import json
import logging
import mmap
import os
import selectors
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from fedfleet_agent import memory
from fedfleet_agent.errands import Errands
from fedfleet_agent.logs import JsonLines
from fedfleet_agent.loop import Loop, now
from fedfleet_agent.output import LINE_CHARACTERS, Forwarder
from fedfleet_agent.systemd import Notifier
from fedfleet_protocol.ids import RunId
from fedfleet_protocol.messages import FromAgent, Log


def test_the_clock_does_not_jump_when_somebody_sets_the_time() -> None:
    before, began = now(), time.monotonic()
    assert now() - before <= time.monotonic() - began + 0.01
    assert abs(now() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 1


def test_what_another_thread_posts_wakes_the_loop() -> None:
    loop = Loop()
    seen: list[str] = []

    def posted() -> None:
        seen.append("posted")
        loop.stop()

    thread = threading.Timer(0.05, lambda: loop.post(posted))
    thread.start()
    began = time.monotonic()
    loop.run()
    assert seen == ["posted"]
    assert time.monotonic() - began < 5
    thread.join()
    loop.close()


def test_a_signal_is_handled_in_the_loop() -> None:
    loop = Loop()
    before = signal.getsignal(signal.SIGUSR1)
    loop.on_signal(signal.SIGUSR1, loop.stop)
    loop.post(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    loop.run()
    signal.signal(signal.SIGUSR1, before)
    loop.close()


def test_a_descriptor_is_watched_for_what_was_asked_last() -> None:
    loop = Loop()
    mine, theirs = socket.socketpair()
    seen: list[int] = []

    def act(events: int) -> None:
        seen.append(events)
        loop.stop()

    loop.watch(mine.fileno(), selectors.EVENT_READ, act)
    loop.watch(mine.fileno(), selectors.EVENT_READ | selectors.EVENT_WRITE, act)
    loop.run()
    loop.watch(mine.fileno(), selectors.EVENT_READ, act)
    theirs.send(b"x")
    loop.run()
    assert seen == [selectors.EVENT_WRITE, selectors.EVENT_READ]
    loop.unwatch(mine.fileno())
    loop.unwatch(mine.fileno())
    mine.close()
    theirs.close()
    loop.close()


def test_the_loop_waits_no_longer_than_the_most_impatient_wants() -> None:
    loop = Loop()
    calls: list[float] = []

    def look() -> float:
        calls.append(time.monotonic())
        if len(calls) == 3:
            loop.stop()
        return 0.02

    loop.each_time(look)
    loop.each_time(lambda: None)
    loop.run()
    assert calls[-1] - calls[0] < 2
    loop.close()


def test_an_errand_that_fails_is_logged_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    errands = Errands()

    def fail() -> None:
        raise ZeroDivisionError

    errands.send("risky", fail)
    errands.close(timeout_s=5)
    assert "the errand risky failed" in caplog.text


def test_a_line_of_the_log_is_one_json_object() -> None:
    record = logging.LogRecord("x", logging.INFO, "f", 1, "declined: %s", ("no\nway",), None)
    record.run, record.n = "r-1", 3
    lines = JsonLines()
    lines.agent = "a-1"
    line = lines.format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert (told["event"], told["level"]) == ("declined: no\nway", "info")
    assert (told["agent"], told["run"], told["exchange"]) == ("a-1", "r-1", 3)


def test_systemd_is_told_and_its_absence_is_no_matter(tmp_path: Path) -> None:
    Notifier({}).say("READY=1")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).say("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"}
        notifier = Notifier(environment)
        notifier.say("READY=1", "STATUS=connected")
        assert manager.recv(100) == b"READY=1\nSTATUS=connected"
    assert notifier.watchdog_s == 15
    assert Notifier({**environment, "WATCHDOG_PID": "1"}).watchdog_s == 0


def test_only_untouched_copies_of_files_are_dropped() -> None:
    smaps = """7f00-7f10 r-xp 00000000 08:01 1 /usr/lib/libx.so
Rss: 64 kB
Anonymous: 0 kB
7f10-7f20 r--p 00000000 08:01 1 /usr/lib/libx.so
Anonymous: 4 kB
7f20-7f30 rw-p 00000000 08:01 1 /usr/lib/libx.so
Anonymous: 0 kB
7f30-7f40 r--p 00000000 00:00 0 [vvar]
Anonymous: 0 kB
7f40-7f50 r--p 00000000 00:00 0
Anonymous: 0 kB
"""
    assert memory.droppable(smaps) == [(0x7F00, 0x7F10)]


def test_what_was_given_back_is_still_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    with (tmp_path / "file").open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        memory.give_back()
        assert data[99_999] == ord("x")
    assert ctypes.CDLL(None).getpid() == os.getpid()


def test_lines_are_cut_counted_and_sent_in_pieces() -> None:
    said: list[FromAgent] = []
    heard = [False, True, True, True]
    clock = [0.0]

    def say(message: FromAgent) -> bool:
        said.append(message)
        return heard.pop(0)

    forwarder = Forwarder(say, lambda: clock[0])
    run = RunId("r-1")
    forwarder.forward(run, 1, ("lost",), 2, lines_per_s=20)
    forwarder.forward(run, 1, ("y" * 5000,), 0, lines_per_s=20)
    last = said[-1]
    assert isinstance(last, Log)
    assert last.dropped == 3
    assert len(last.lines[0]) < LINE_CHARACTERS + 10
    clock[0] += 100
    forwarder.forward(run, 1, tuple("z" * 120), 0, lines_per_s=20)
    assert [len(message.lines) for message in said[2:] if isinstance(message, Log)] == [50, 50]
