"""A coordinator whose disk is full in mid-run: it says so, loses nothing, and goes on when there is room."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedfleet_coordinator.cli.localfleet import LocalFleet
from tests.e2e import fleet as fleets
from tests.e2e.fleet import QUICKSTART
from tests.e2e.test_agent_full_disk import fill

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
OPTIONS = ("-c", "num-server-rounds=40", "-c", "min-nodes=2", "--seed", "7")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 32 MB in place of the coordinator's state folder."""
    folder = tmp_path / "fleet" / "hub"
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m,mode=0700", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can make a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_in_mid_run_costs_time_and_nothing_else(small_disk: Path, tmp_path: Path) -> None:
    with LocalFleet(agents=2, state=tmp_path / "fleet") as fleet:
        undisturbed = fleets.submit(fleet, QUICKSTART, *OPTIONS).wait()
        assert undisturbed.snapshot["state"] == "finished", undisturbed
        run = fleets.submit(fleet, QUICKSTART, *OPTIONS)
        run.wait_for_round(3)
        fill(small_disk / "filler")
        time.sleep(8)
        log = (fleet.state / "log" / "coordinator.log").read_text()
        (small_disk / "filler").unlink()
        ended = run.wait()
        assert ended.snapshot["state"] == "finished", ended
        assert ended.model == undisturbed.model
        assert "disk" in log or "full" in log, log[-2000:]
