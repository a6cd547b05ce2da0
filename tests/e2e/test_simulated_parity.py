"""A simulated fleet and a real one train the same model, when every device answers."""

from pathlib import Path

import pytest

from fedfleet_coordinator.cli.localfleet import LocalFleet
from fedfleet_coordinator.simulation.fleet import Fleet
from fedfleet_coordinator.simulation.session import Simulation
from fedfleet_flower.compat import build_bundle
from tests.e2e.fleet import QUICKSTART, submit

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
AGENTS = 2


def test_the_quickstart_ends_with_the_model_of_a_real_fleet(tmp_path: Path) -> None:
    with LocalFleet(agents=AGENTS) as fleet:
        ended = submit(fleet, QUICKSTART).wait()
        assert ended.snapshot["state"] == "finished", ended.said
        real = ended.model
    with Simulation(build_bundle(QUICKSTART), Fleet(AGENTS), workers=2) as simulation:
        row = simulation.execute()
    # Two updates: their weighted sum is the same in either order, whatever ids the fleet gave its agents.
    assert row.model == real, "bit-identical"
