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
        assert "is full; the run goes on when there is room" in log, log[-2000:]


def test_a_run_that_is_submitted_on_a_full_disk_begins_when_there_is_room(small_disk: Path, tmp_path: Path) -> None:
    with LocalFleet(agents=2, state=tmp_path / "fleet") as fleet:
        first = fleets.submit(fleet, QUICKSTART, "-c", "num-server-rounds=1").wait()
        assert first.snapshot["state"] == "finished", first
        fleet.coordinator.hold()
        fill(small_disk / "filler")
        with (small_disk / "filler").open("r+b") as filler:  # room for rows and a log line, not for a runner's files
            filler.truncate(filler.seek(0, 2) - (256 << 10))
        fleet.coordinator.release()
        fleet.wait_ready()
        run = fleets.submit(fleet, QUICKSTART, "-c", "num-server-rounds=1")
        time.sleep(6)
        assert run.snapshot()["state"] in ("pending", "running"), run.snapshot()
        (small_disk / "filler").unlink()
        ended = run.wait()
        assert ended.snapshot["state"] == "finished", ended
