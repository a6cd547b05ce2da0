"""Fleets begin, take the place of dead ones, and leave nothing behind that nobody knows of."""

from pathlib import Path

import pytest

from fedfleet_testfleet.errors import BadInput
from fedfleet_testfleet.fleet import Wanted
from fedfleet_testfleet.k3d import K3dDriver
from fedfleet_testfleet.report import Observation, build
from fedfleet_testfleet.session import begin, complaints, driver_named, play, write
from fedfleet_testfleet.state import State
from fedfleet_testfleet.testing import FakeK3d


def test_a_fleet_that_cannot_be_kept_is_ended(tmp_path: Path) -> None:
    shell, state = FakeK3d(), State(tmp_path / "it")
    (tmp_path / "it" / "observations.jsonl").mkdir(parents=True)
    with pytest.raises(BadInput, match="cannot be written to"):
        begin(state, K3dDriver(shell), Wanted(nodes=1, clusters=1, folder=state.driver))
    assert shell.said[-1] == "k3d cluster delete fedfleet-0"


def test_the_context_of_a_hub_in_a_cluster_is_kept(tmp_path: Path) -> None:
    state = State(tmp_path / "it")
    wanted = Wanted(nodes=1, clusters=1, folder=state.driver)
    begin(state, K3dDriver(FakeK3d()), wanted, context=tmp_path / "context.toml")
    assert state.fleet().context == tmp_path / "context.toml"
    assert [one.text for one in state.observations()] == ["1 nodes are up"]
    assert complaints(build(state.fleet(), state.observations())) == []


def test_what_is_not_as_it_should_be_is_listed(tmp_path: Path) -> None:
    state = State(tmp_path)
    fleet = begin(state, K3dDriver(FakeK3d()), Wanted(nodes=1, clusters=1, folder=state.driver))
    seen = [
        Observation(1.0, "run", run="r-1", expected="finished"),
        Observation(2.0, "refused", "not here", fault="slow agent-0", run="r-1", round=2),
        Observation(3.0, "ended", "the app raised", run="r-1", state="failed"),
    ]
    assert complaints(build(fleet, seen)) == [
        "NOT DONE: slow agent-0, in round 2 of r-1: not here", "run r-1 is failed: the app raised",
    ]  # fmt: skip


def test_an_unknown_driver_is_told_with_those_there_are() -> None:
    with pytest.raises(BadInput, match="process, k3d, testcluster"):
        driver_named("vagrant")


def test_where_no_coordinator_is_known_a_scenario_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedfleet_testfleet.scenario import Scenario

    monkeypatch.delenv("FEDFLEET_CONTEXT", raising=False)
    state, driver = State(tmp_path), K3dDriver(FakeK3d())
    fleet = begin(state, driver, Wanted(nodes=1, clusters=1, folder=state.driver))
    with pytest.raises(BadInput, match="FEDFLEET_CONTEXT"):
        play(fleet, driver, Scenario("it", tmp_path, ()), state.note)


def test_a_report_that_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    state = State(tmp_path)
    fleet = begin(state, K3dDriver(FakeK3d()), Wanted(nodes=1, clusters=1, folder=state.driver))
    with pytest.raises(BadInput, match=r"gone/r\.xml cannot be written"):
        write(build(fleet, []), junit=tmp_path / "gone" / "r.xml")
    write(build(fleet, []), junit=tmp_path / "r.xml", json_file=tmp_path / "r.json")
    assert (tmp_path / "r.xml").exists() and (tmp_path / "r.json").exists()
