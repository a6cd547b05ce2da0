"""Wall clocks that jump in the middle of a run: it ends by itself, with the undisturbed model."""

from pathlib import Path

import pytest

from fedfleet_coordinator.cli.localfleet import LocalFleet
from tests.e2e import fleet as fleets
from tests.e2e.fleet import QUICKSTART

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
OPTIONS = ("-c", "num-server-rounds=24", "-c", "min-nodes=2", "--seed", "7")
HOUR = 3600


class WallClock:
    """The wall clock of the processes that are started while it is `shown`; the monotonic clock stays as it is."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.shift(0)

    def shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let processes started from now on see it."""
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "wallclock"))
        monkeypatch.setenv("FEDFLEET_TEST_CLOCK", str(self._file))

    def shift(self, seconds: int) -> None:
        """Let it be so much ahead."""
        new = self._file.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._file)


def test_wall_clocks_that_jump_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everybodys, own = WallClock(tmp_path / "everybodys"), WallClock(tmp_path / "own")
    everybodys.shown(monkeypatch)
    with LocalFleet(agents=2) as fleet:
        undisturbed = fleets.submit(fleet, QUICKSTART, *OPTIONS).wait()
        assert undisturbed.snapshot["state"] == "finished", undisturbed

        run = fleets.submit(fleet, QUICKSTART, *OPTIONS)
        for server_round, hours in ((2, 3), (8, -0.1), (14, 24), (20, 0)):
            run.wait_for_round(server_round)
            everybodys.shift(int(hours * HOUR))
        ended = run.wait()
        assert ended.snapshot["state"] == "finished", ended
        assert ended.model == undisturbed.model

        # One device alone is five hours ahead of all others.
        own.shift(5 * HOUR)
        own.shown(monkeypatch)
        assert fleet.kill("agent", 0)
        fleet.wait_ready()
        everybodys.shown(monkeypatch)
        alone = fleets.submit(fleet, QUICKSTART, *OPTIONS).wait()
        assert alone.snapshot["state"] == "finished", alone
        assert alone.model == undisturbed.model
        log = (fleet.state / "log" / "agent-0.log").read_text()
        assert "Traceback" not in log
