"""What an app prints: cut into lines, held to a rate, and its end remembered."""

import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet_trainer.keeper import explain
from fedfleet_trainer.output import MAX_LINE, Lines


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def fed(*pieces: bytes, rate: float = 1000.0) -> Lines:
    lines = Lines(rate, Clock())
    for piece in pieces:
        lines.feed(piece)
    return lines


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=20)), st.integers(1, 9))
def test_lines_are_the_same_however_they_are_cut(texts: list[str], size: int) -> None:
    data = "".join(text + "\n" for text in texts).encode()
    lines = fed(*(data[start : start + size] for start in range(0, len(data), size)))
    assert lines.take() == (texts, 0)


def test_what_is_over_the_rate_is_counted_and_credit_comes_back_with_time() -> None:
    clock = Clock()
    lines = Lines(2.0, clock)
    lines.feed(b"x\n" * 100)
    assert lines.take() == (["x"] * 20, 80)
    lines.feed(b"y\n")
    assert lines.take() == ([], 1)
    clock.now += 1.0
    lines.feed(b"z\n" * 5)
    assert lines.take() == (["z"] * 2, 3)


def test_lines_that_nobody_takes_do_not_pile_up() -> None:
    clock = Clock()
    lines = Lines(1e6, clock)
    for _ in range(100):
        lines.feed(b"x\n" * 1000)
        clock.now += 1
    taken, dropped = lines.take()
    assert len(taken) == 5000
    assert len(taken) + dropped == 100_000


def test_of_a_progress_bar_the_last_state_is_shown() -> None:
    assert fed(b"\r 1%", b"\r 50%" * 5000, b"\r100%\r\n").take() == (["100%"], 0)


def test_a_line_without_end_is_cut() -> None:
    lines = fed(b"y" * 1_000_000)
    lines.finish()
    taken, _ = lines.take()
    assert [len(line) for line in taken] == [MAX_LINE]


def test_bytes_that_are_no_text_are_shown_all_the_same() -> None:
    assert fed(b"\xff\xfe a\n").take() == (["\ufffd\ufffd a"], 0)


def test_the_end_is_remembered_even_if_it_was_over_the_rate() -> None:
    lines = fed(*(b"%d\n" % i for i in range(100)), rate=0.0)
    assert lines.take()[1] == 90
    assert lines.tail[-1] == "99"
    assert fed(b"a\nb\n").tail == ["a", "b"]


@pytest.mark.parametrize(
    ("code", "who", "text"),
    [
        ("import os; os._exit(3)", "app", "exit status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGBUS)", "app", "signal 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "outside", "signal 9"),
    ],
)
def test_the_end_of_a_process_is_explained(code: str, who: str, text: str) -> None:
    returned = subprocess.run([sys.executable, "-c", code], check=False).returncode
    status = -returned if returned < 0 else returned << 8
    assert explain(status)[0] == who
    assert text in explain(status)[1]
    assert explain(signal.SIGTERM)[0] == "outside"
