"""A scenario on a fleet of real processes: what is done to it, and what the run makes of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

from fedfleet_testfleet.fixture import FleetUnderTest
from fedfleet_testfleet.report import lines_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
ROUNDS = 10
"""A round of quickstart takes a tenth of a second: with a few, the run would be over before the fault."""


def scenario(folder: Path, name: str, *steps: str, agents: int = 2, rounds: int = ROUNDS) -> Path:
    file = folder / f"{name}.yaml"
    run = {
        "app": str(QUICKSTART), "options": ["--seed", "7"],
        "config": {"num-server-rounds": rounds, "min-nodes": agents},
    }  # fmt: skip
    file.write_text(yaml.safe_dump({"name": name, "run": run, "steps": list(steps), "within": "5m"}))
    return file


@pytest.mark.fedfleet(nodes=2)
def test_a_run_whose_coordinator_is_killed_in_round_two_finishes_with_the_undisturbed_model(
    fedfleet_fleet: FleetUnderTest, tmp_path: Path
) -> None:
    undisturbed = fedfleet_fleet.scenario(scenario(tmp_path, "undisturbed"))
    assert undisturbed.good, "\n".join(lines_of(undisturbed))
    report = fedfleet_fleet.scenario(scenario(tmp_path, "dies", "at round 2: kill coordinator"))
    assert report.good, "\n".join(lines_of(report))
    (hit,) = [one for one in report.observations if one.kind == "fault"]
    assert hit.fault == "kill coordinator" and hit.step == "at round 2: kill coordinator"
    assert 2 <= hit.round < ROUNDS and hit.text.endswith(" killed")
    assert {"away", "back"} <= {one.kind for one in report.observations}, "it was not gone"
    (run,) = report.runs
    assert (run.state, run.rounds, run.faults) == ("finished", ROUNDS, 1)
    assert run.model == undisturbed.runs[0].model != ""


def testfleet(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fedfleet_coordinator.cli", "testfleet", *words]
    environment = os.environ | {"FEDFLEET_TESTFLEET": str(folder / "fleet")}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)


testfleet.__test__ = False  # type: ignore[attr-defined]


def test_a_fleet_is_hurt_from_another_terminal_and_the_report_tells_it(tmp_path: Path) -> None:
    up = testfleet(tmp_path, "up", "--nodes", "1", "--json")
    assert up.returncode == 0, up.stderr
    try:
        assert json.loads(up.stdout)["nodes"] == ["agent-0"]
        again = testfleet(tmp_path, "up", "--nodes", "1")
        assert again.returncode == 2 and "already" in again.stderr
        hurt = testfleet(tmp_path, "fault", "stop", "agent-0", "--for", "500ms", "--json")
        assert [one["fault"] for one in json.loads(hurt.stdout)] == ["stop agent-0 for 0.5s", "start agent-0"], hurt
        cut = testfleet(tmp_path, "fault", "cut", "agent-0")
        assert cut.returncode == 2 and "can be stopped" in cut.stderr
        late = scenario(tmp_path, "late", "at round 99: kill coordinator", agents=1, rounds=1)
        played = testfleet(tmp_path, "scenario", str(late), "--junit", str(tmp_path / "played.xml"))
        assert played.returncode == 1 and "the run was over before" in played.stderr, played
    finally:
        down = testfleet(tmp_path, "down")
    assert down.returncode == 0 and testfleet(tmp_path, "down").returncode == 0
    report = testfleet(tmp_path, "report", "--json", "-", "--junit", str(tmp_path / "all.xml"))
    told = json.loads(report.stdout)
    assert told["runs"][0]["state"] == "finished" and told["good"] is False
    assert ET.fromstring((tmp_path / "played.xml").read_text()).attrib["failures"] == "1"
    assert ET.fromstring((tmp_path / "all.xml").read_text()).attrib["failures"] == "2"  # the cut as well
    assert {file.stat().st_mode & 0o077 for file in (tmp_path / "fleet").iterdir()} == {0}
    assert (tmp_path / "fleet").stat().st_mode & 0o077 == 0
