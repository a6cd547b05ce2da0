"""A thousand schedules of faults over the real machines; `make soak` plays a hundred thousand."""

import os

import pytest

from tests.simulation.faults import Faults
from tests.simulation.schedule import play

pytestmark = pytest.mark.simulation
SCHEDULES = int(os.environ.get("FEDFLEET_SCHEDULES", "1000"))
FIRST = int(os.environ.get("FEDFLEET_FIRST_SEED", "0"))
SHARDS = 20


@pytest.fixture(scope="module")
def undisturbed() -> tuple[str, ...]:
    """The models of a fleet where nothing fails."""
    return play(0, faults=Faults()).models


@pytest.mark.parametrize("shard", range(SHARDS))
def test_no_schedule_of_faults_loses_or_repeats_an_accepted_update(shard: int, undisturbed: tuple[str, ...]) -> None:
    from random import Random

    from tests.simulation.faults import draw

    for seed in range(FIRST + shard, FIRST + SCHEDULES, SHARDS):
        try:
            outcome = play(seed)
            if not draw(Random(seed)).late:
                assert outcome.models == undisturbed, "the model differs from the undisturbed one"
        except AssertionError as error:
            raise AssertionError(f"seed {seed} ({draw(Random(seed))}): {error}") from error
