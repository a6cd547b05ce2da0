"""The same app, unmodified, reaches the same model on Flower's own SuperLink and SuperNodes and on a fleet.

Not bit by bit: Flower folds updates in the order in which they come, a fleet in the order of agent ids.
"""

from pathlib import Path

import numpy as np
import pytest

from fedfleet_coordinator.cli.localfleet import LocalFleet
from tests.e2e.fleet import DIGITS, QUICKSTART, fedfleet
from tests.e2e.flower_runtime import Model, run_on_flower

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def run_on_fleet(app: Path, *, nodes: int, folder: Path, config: dict[str, str]) -> Model:
    """Return the arrays of the model that `fedfleet run` and `fedfleet model get` bring."""
    overrides = [word for key, value in config.items() for word in ("-c", f"{key}={value}")]
    with LocalFleet(agents=nodes) as fleet:
        ended = fedfleet(fleet, "run", str(app), "-c", f"min-nodes={nodes}", *overrides)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        run = ended.stdout.split()[1]
        got = fedfleet(fleet, "model", "get", run, "-o", str(folder / "fleet.npz"))
        assert got.returncode == 0, got.stdout + got.stderr
    with np.load(folder / "fleet.npz", allow_pickle=False) as stored:
        return [stored[name] for name in stored.files]


@pytest.mark.parametrize(
    ("app", "nodes", "config"),
    [(QUICKSTART, 2, {}), (DIGITS, 3, {"num-server-rounds": "2"})],
    ids=["quickstart", "digits"],
)
def test_both_runtimes_reach_the_same_model(tmp_path: Path, app: Path, nodes: int, config: dict[str, str]) -> None:
    ours = run_on_fleet(app, nodes=nodes, folder=tmp_path, config=config)
    theirs = run_on_flower(app, nodes=nodes, folder=tmp_path, config=config)
    assert [array.shape for array in ours] == [array.shape for array in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
