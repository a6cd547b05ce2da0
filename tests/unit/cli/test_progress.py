"""A simulated run as it is shown: once per piece of news in a pipe, and in numbers at the end."""

import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedfleet_coordinator.cli.errors import BadInput
from fedfleet_coordinator.cli.progress import Progress, clock, screen, spelled, summary


def snapshot(**simulation: Any) -> dict[str, Any]:
    told = {
        "agents": 1000, "cohort": 50, "virtual_s": 3725.26, "calls": 90, "crashes": 0, "exchanges": {"quorum": 2},
        "tasks": 100, "replies": 85, "errors": 3, "left_out": 1, "dropped_out": 10, "missed": 14,
        "declined": {"killed": 1},
    }  # fmt: skip
    metrics = [{"round": 1, "kind": "train", "values": {"loss": 0.25}}]
    return {
        "app": "lab/app", "state": "running", "server_round": 1, "num_rounds": 3, "metrics": metrics,
        "exchange": {"n": 3, "label": "train round 2", "settled": 7, "expected": 50, "left_out": 1},
        "simulation": told | simulation,
    }  # fmt: skip


def drawn(picture: Any) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(picture)
    return capture.get()


def test_times_are_told_as_people_say_them() -> None:
    assert clock(snapshot()) == "1:02:05.3"
    assert [spelled(s) for s in (0.25, 59, 125, 3725.26)] == ["0.25 s", "59 s", "2 min 5 s", "1 h 2 min"]


def test_the_screen_shows_round_clock_and_exchange() -> None:
    text = drawn(screen(snapshot()))
    for part in ("lab/app", "round 1/3", "1:02:05.3", "90 calls", "7 of 50 settled, 1 left out", "train loss"):
        assert part in text, text


def test_the_summary_tells_what_became_of_all_tasks() -> None:
    text = drawn(summary(snapshot(), real_s=2.5))
    for part in (
        "1000 agents, 50 at a time",
        "1 h 2 min virtual, 2.5 s real",
        "2 by quorum",
        "1 killed",
        "in vain    4",
    ):
        assert part in text, text
    quiet = drawn(summary(snapshot(dropped_out=0, missed=0, errors=0, left_out=0, declined={}), real_s=1))
    assert not any(part in quiet for part in ("drop-outs", "in vain", "errors", "left out", "declined"))


def test_in_a_pipe_each_metric_is_told_once_and_what_is_printed_is_caught(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with Progress(log=log, quiet=False) as progress:
        progress.show(snapshot())
        progress.show(snapshot())
        os.write(1, b"from the app\n")
    out = capfd.readouterr().out
    assert out.count("round 1 train: loss 0.25") == 1
    assert out.count("from the app") == 1
    assert log.read_text() == "from the app\n"


def test_a_program_that_wants_json_is_shown_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress(log=None, quiet=True) as progress:
        progress.look(snapshot)
        os.write(1, b"from the app\n")
        os.write(2, b"from flower\n")
    assert capfd.readouterr() == ("", "")


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--log"):
        Progress(log=tmp_path / "no" / "log", quiet=True)
