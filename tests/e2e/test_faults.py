"""Pull any plug in the middle of a run of digits: it ends by itself, with the undisturbed model, bit by bit."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from fedfleet_coordinator.cli.localfleet import LocalFleet
from tests.e2e import fleet as fleets
from tests.e2e.fleet import DIGITS, QUICKSTART

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
AGENTS = 3
OPTIONS = ("-c", "num-server-rounds=6", "-c", "min-nodes=3", "--seed", "7")
KILLS = int(os.environ.get("FEDFLEET_KILLS", "4"))
"""Runs in which every part is killed once; `make soak` plays ten."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    data = tmp_path_factory.mktemp("shards")
    subprocess.run(
        [sys.executable, DIGITS / "shards.py", data, "--agents", str(AGENTS)], check=True, capture_output=True
    )
    with LocalFleet(agents=AGENTS, data_dir=data) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(fleet: LocalFleet) -> str:
    ended = fleets.submit(fleet, DIGITS, *OPTIONS).wait()
    assert ended.snapshot["state"] == "finished", ended
    assert ended.snapshot["server_round"] == 6
    return ended.model


def _coordinator(fleet: LocalFleet, rng: random.Random) -> bool:
    return fleet.kill("coordinator") > 0


def _broker(fleet: LocalFleet, rng: random.Random) -> bool:
    return fleet.kill("broker") > 0


def _agent(fleet: LocalFleet, rng: random.Random) -> bool:
    return fleet.kill("agent", rng.randrange(AGENTS)) > 0


def _runner(fleet: LocalFleet, rng: random.Random) -> bool:
    return fleets.kill(fleets.runners(fleet))


def _trainer(fleet: LocalFleet, rng: random.Random) -> bool:
    return fleets.kill(fleets.trainers(fleet, rng.randrange(AGENTS)))


PARTS: dict[str, Callable[[LocalFleet, random.Random], bool]] = {
    "coordinator": _coordinator, "broker": _broker, "agent": _agent, "runner": _runner, "trainer": _trainer,
}  # fmt: skip


@pytest.mark.parametrize("seed", range(KILLS))
def test_run_with_each_part_killed_once_ends_with_the_undisturbed_model(
    fleet: LocalFleet, undisturbed: str, seed: int
) -> None:
    rng = random.Random(seed)
    run = fleets.submit(fleet, DIGITS, *OPTIONS)
    run.wait_for_round(1)
    parts = list(PARTS)
    rng.shuffle(parts)
    for part in parts:
        time.sleep(rng.uniform(0.0, 0.8))
        assert _until(lambda part=part: PARTS[part](fleet, rng)), f"no {part} to kill: {run.snapshot()}"  # type: ignore[misc]
    ended = run.wait()
    assert ended.snapshot["state"] == "finished", ended
    assert ended.model == undisturbed


@pytest.mark.parametrize("part", list(PARTS))
def test_one_part_killed_in_each_round_changes_nothing(fleet: LocalFleet, undisturbed: str, part: str) -> None:
    rng = random.Random(part)
    run = fleets.submit(fleet, DIGITS, *OPTIONS)
    killed = 0
    for server_round in range(1, 4):
        run.wait_for_round(server_round)
        time.sleep(rng.uniform(0.0, 0.3))
        killed += _until(lambda: PARTS[part](fleet, rng), 5.0)
    assert killed >= 2, f"the {part} was killed {killed} times: the run was over too soon to prove anything"
    ended = run.wait()
    assert ended.snapshot["state"] == "finished", ended
    assert ended.model == undisturbed


@pytest.mark.parametrize("away_s", [15.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_broker_that_is_gone_for_a_while_costs_time_and_nothing_else(
    fleet: LocalFleet, undisturbed: str, away_s: float
) -> None:
    run = fleets.submit(fleet, DIGITS, *OPTIONS)
    run.wait_for_round(2)
    fleet.broker.hold()
    time.sleep(away_s)
    fleet.broker.release()
    ended = run.wait()
    assert ended.snapshot["state"] == "finished", ended
    assert ended.model == undisturbed


def test_agent_that_comes_back_after_the_deadline_is_told_its_task_is_closed(fleet: LocalFleet) -> None:
    fleet.agents[0].hold()
    try:
        run = fleets.submit(fleet, QUICKSTART, "-c", "num-server-rounds=1", "-c", "min-nodes=3", "--deadline", "15")
        ended = run.wait()
        assert ended.snapshot["state"] == "finished", ended
    finally:
        fleet.agents[0].release()
    fleet.wait_ready()
    again = fleets.submit(fleet, QUICKSTART, "-c", "num-server-rounds=1", "-c", "min-nodes=3").wait()
    assert again.snapshot["state"] == "finished", again


def _until(act: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if act():
            return True
        time.sleep(0.02)
    return False


def test_devices_keep_no_more_than_the_bundle_and_payload_of_a_recent_run(fleet: LocalFleet) -> None:
    folders = [fleet.state / "agents" / str(number) / "blobs" for number in range(AGENTS)]
    assert _until(lambda: all(len(list(folder.iterdir())) <= 2 for folder in folders), 30.0), [
        [file.name for file in folder.iterdir()] for folder in folders
    ]
