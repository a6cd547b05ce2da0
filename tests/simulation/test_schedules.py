"""A thousand schedules of faults over the real machines; `make soak` plays a hundred thousand."""

import os
from random import Random

import pytest

from tests.simulation.faults import Faults, draw
from tests.simulation.schedule import play

pytestmark = pytest.mark.simulation
SCHEDULES = int(os.environ.get("FEDFLEET_SCHEDULES", "1000"))
FIRST = int(os.environ.get("FEDFLEET_FIRST_SEED", "0"))
SHARDS = 20


@pytest.fixture(scope="module")
def undisturbed() -> dict[int, tuple[str, ...]]:
    """The models of a fleet where nothing fails, by how many exchanges are open at a time."""
    return {window: play(0, faults=Faults(window=window)).models for window in (1, 2, 3)}


@pytest.mark.parametrize("shard", range(SHARDS))
def test_no_schedule_of_faults_loses_or_repeats_an_accepted_update(
    shard: int, undisturbed: dict[int, tuple[str, ...]]
) -> None:
    for seed in range(FIRST + shard, FIRST + SCHEDULES, SHARDS):
        try:
            outcome = play(seed)
            faults = draw(Random(seed))
            if not faults.late:
                assert outcome.models == undisturbed[faults.window], "the model differs from the undisturbed one"
        except AssertionError as error:
            raise AssertionError(f"seed {seed} ({draw(Random(seed))}): {error}") from error
