from pathlib import Path

import pytest

from fedfleet_coordinator.cli.errors import BadInput
from fedfleet_coordinator.cli.plot import draw, split_series, timeline_spans
from tests.unit.cli.snapshots import AGENTS, snapshot, timeline


def test_shares_and_other_metrics_are_told_apart() -> None:
    shares, others = split_series(snapshot()["metrics"])
    assert shares == {"server accuracy": [(0, 0.1), (1, 0.8125)]}
    assert others == {"train loss": [(1, 1.23456)]}


def test_spans_start_at_the_run_and_open_ones_last_until_its_end() -> None:
    names, spans = timeline_spans(snapshot(ended=1020.0), timeline())
    assert names == [f"{agent[:10]} site=a" for agent in AGENTS]
    assert (0, 2.0, 0.5, "accepted", "train") in spans
    assert (1, 6.0, 13.0, "missed", "train") in spans


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_is_written(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"run.{suffix}"
    draw(snapshot(state="finished", ended=1012.0), timeline(), file)
    assert file.stat().st_size > 5000


def test_a_run_without_metrics_or_tasks_is_drawn_as_well(tmp_path: Path) -> None:
    draw(snapshot(metrics=[], exchange=None), {"tasks": []}, tmp_path / "run.png")


def test_a_name_without_a_known_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"\.png, \.svg or \.pdf"):
        draw(snapshot(), timeline(), tmp_path / "run.txt")
    with pytest.raises(BadInput, match="cannot be written"):
        draw(snapshot(), timeline(), tmp_path / "no-such-folder" / "run.png")
