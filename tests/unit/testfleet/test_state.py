"""What is kept of a fleet is read by another terminal, and by its owner only."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedfleet_testfleet.errors import BadInput
from fedfleet_testfleet.fleet import Cluster, Fleet, Node
from fedfleet_testfleet.report import Observation
from fedfleet_testfleet.state import State

FLEET = Fleet(
    "k3d", (Node("agent-0", 0, "k3d-x"),), Path("/nowhere"), (Cluster("x", Path("/kube")),), Path("/c.toml"), 7, 9.0
)


def test_what_is_kept_is_read_in_another_terminal_and_by_its_owner_only(tmp_path: Path) -> None:
    State(tmp_path / "deep" / "it").begin(FLEET)
    other = State(tmp_path / "deep" / "it")
    assert other.fleet() == FLEET
    other.note(Observation(1.0, "up"))
    assert {file.name: file.stat().st_mode & 0o777 for file in other.folder.iterdir()} == {
        "fleet.json": 0o600, "observations.jsonl": 0o600,
    }  # fmt: skip
    assert other.folder.stat().st_mode & 0o777 == 0o700


def test_a_report_can_be_written_after_the_end_and_a_new_fleet_begins_anew(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.begin(FLEET)
    state.note(Observation(1.0, "up"))
    state.end()
    with pytest.raises(BadInput, match="fedfleet testfleet up"):
        state.fleet()
    assert len(state.observations()) == 1
    state.begin(FLEET)
    assert state.observations() == [] and state.fleet() == FLEET


def test_several_terminals_may_note_at_a_time(tmp_path: Path) -> None:
    State(tmp_path).begin(FLEET)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: State(tmp_path).note(Observation(float(n), "fault", "x" * 500)), range(200)))
    assert sorted(one.at for one in State(tmp_path).observations()) == [float(n) for n in range(200)]


def test_where_no_fleet_was_none_is_up(tmp_path: Path) -> None:
    state = State(tmp_path / "never")
    assert state.kept() is None and state.observations() == []
    state.end()
    assert not state.folder.exists()


@pytest.mark.parametrize("name", ["fleet.json", "observations.jsonl"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    State(tmp_path).begin(FLEET)
    (tmp_path / name).write_bytes(b"{\n")
    with pytest.raises(BadInput, match=name):
        _ = (State(tmp_path).fleet(), State(tmp_path).observations())


def test_a_last_line_that_was_being_written_is_left_out(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.begin(FLEET)
    state.note(Observation(1.0, "up"))
    with (tmp_path / "observations.jsonl").open("ab") as file:
        file.write(b'{"at": 2')
    assert len(state.observations()) == 1
