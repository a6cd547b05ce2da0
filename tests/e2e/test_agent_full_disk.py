"""A device whose disk is full: it declines in words, loses nothing, and works again when there is room."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedfleet_agent.home import Home
from fedfleet_coordinator.cli.localfleet import LocalFleet
from tests.e2e import fleet as fleets
from tests.e2e.fleet import QUICKSTART

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB in place of the first agent's state folder."""
    folder = tmp_path / "fleet" / "agents" / "0"
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can make a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as stream:
        try:
            while stream.write(bytes(4096)):
                pass
        except OSError:
            return


def test_an_agent_on_a_full_disk_declines_and_comes_back(small_disk: Path, tmp_path: Path) -> None:
    state = tmp_path / "fleet"
    with LocalFleet(agents=2, state=state, settings={"eligibility": {"disk_min_mb": 0}}) as fleet:
        first = fleets.submit(fleet, QUICKSTART, "-c", "num-server-rounds=1").wait()
        assert first.snapshot["state"] == "finished", first
        pid = fleet.agents[0].pid
        fill(small_disk / "filler")
        second = fleets.submit(fleet, QUICKSTART, "-c", "num-server-rounds=1").wait()
        with fleet.client() as client:
            tasks = client.get(f"/v1/runs/{second.snapshot['run']}/timeline")["tasks"]
        declined = [task for task in tasks if task["code"]]
        assert {task["code"] for task in declined} == {"disk"}, tasks
        (small_disk / "filler").unlink()
        third = fleets.submit(fleet, QUICKSTART, "-c", "num-server-rounds=1").wait()
        assert [agent["code"] for agent in third.snapshot["exchange"]["agents"]] == ["", ""], third
        print(f"the agent {'lived through it' if fleet.agents[0].pid == pid else 'was started again'}")
        time.sleep(1)
        assert Home(small_disk).running() == fleet.agents[0].pid
        assert "Traceback" not in (state / "log" / "agent-0.log").read_text()
