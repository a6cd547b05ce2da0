"""`fedfleet up`: a fleet of real processes that heals, keeps its identities, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fedfleet_coordinator.cli.errors import BadInput
from fedfleet_coordinator.cli.localfleet import LocalFleet
from fedfleet_coordinator.settings import Runner
from tests.e2e import fleet as fleets
from tests.e2e.fleet import fedfleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
UP = (sys.executable, "-m", "fedfleet_coordinator.cli", "up", "--json", "--agents", "2")


def until(holds: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.05)


def working_in(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(str(folder) in word for word in words):
            found.append(process)
    return found


def started(folder: Path, *options: str) -> subprocess.Popen[str]:
    environment = os.environ | {"FEDFLEET_CONTEXT": str(folder / "context.toml")}
    command = [*UP, "--state", str(folder / "state"), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def until_ready(process: subprocess.Popen[str]) -> dict[str, object]:
    assert process.stdout is not None
    lines = []
    while (line := process.stdout.readline()) != "}\n":
        assert line, f"it ended: {process.communicate()}"
        lines.append(line)
    return dict(json.loads("".join([*lines, line])))


def test_every_part_that_is_killed_is_started_again(tmp_path: Path) -> None:
    said: list[str] = []
    with LocalFleet(agents=2, labels={"site": ["a", "b"]}, say=said.append) as fleet:
        with fleet.client() as client:
            before = {row["agent"]: row["labels"]["site"] for row in client.get("/v1/agents")["agents"]}
        assert sorted(before.values()) == ["a", "b"]
        for part in ("coordinator", "broker", "agent"):
            old = fleet.kill(part)
            until(lambda part=part, old=old: fleet.part(part).pid not in (0, old))  # type: ignore[misc]
            fleet.wait_ready()
        listed = fedfleet(fleet, "agents", "--json")
        assert {row["agent"]: row["labels"]["site"] for row in json.loads(listed.stdout)} == before
        assert [line.split(" ended (killed by SIGKILL)")[0] for line in said[:3]] == [
            "coordinator",
            "broker",
            "agent 0",
        ]
        state = fleet.state
    assert working_in(state) == [] and not state.exists()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_and_gives_the_context_back(tmp_path: Path, sign: signal.Signals) -> None:
    (tmp_path / "context.toml").write_text("what was there before")
    process = started(tmp_path)
    ready = until_ready(process)
    assert ready["agents"] == 2 and len(working_in(tmp_path / "state")) >= 4
    process.send_signal(sign)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, out + err
    assert "Traceback" not in err
    assert working_in(tmp_path) == []
    assert (tmp_path / "context.toml").read_text() == "what was there before"


def test_nothing_outlives_a_fleet_whose_starter_is_killed_and_the_next_one_is_the_same(tmp_path: Path) -> None:
    process = started(tmp_path)
    until_ready(process)
    identities = [(tmp_path / "state" / "agents" / n / "identity.pem").read_bytes() for n in ("0", "1")]
    process.kill()
    process.communicate()
    until(lambda: working_in(tmp_path) == [])
    process = started(tmp_path)
    until_ready(process)
    process.terminate()
    process.communicate(timeout=30)
    again = [(tmp_path / "state" / "agents" / n / "identity.pem").read_bytes() for n in ("0", "1")]
    assert again == identities and working_in(tmp_path) == []


def test_a_fleet_that_cannot_start_says_why_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "state" / "hub").mkdir(parents=True)
    (tmp_path / "state" / "hub" / "hub.toml").write_text("nonsense")
    process = started(tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (2, 5) and "Traceback" not in err
    assert "hub" in json.loads(err.strip().splitlines()[-1])["error"]


def test_a_second_fleet_in_the_same_folder_is_refused_and_the_first_stays_whole(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with LocalFleet(agents=1, state=state) as first:
        with pytest.raises(BadInput, match="a fleet runs in"), LocalFleet(agents=2, state=state):
            pass
        first.wait_ready()
        assert first.coordinator.restarts == 0
    with LocalFleet(agents=1, state=state):
        pass


def test_a_state_folder_below_a_file_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot hold a fleet: Not a directory"):
        LocalFleet(agents=0, state=tmp_path / "file" / "state").start()


def test_an_app_may_write_a_folder_that_up_was_told_and_no_other(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    with LocalFleet(agents=2, runner=Runner(writable=(str(results),))) as fleet:
        kept = fleets.submit(fleet, fleets.QUICKSTART, "-c", f'save="{results}/model.npz"').wait()
        assert kept.snapshot["state"] == "finished" and (results / "model.npz").is_file()
        lost = fleets.submit(fleet, fleets.QUICKSTART, "-c", f'save="{tmp_path}/model.npz"').wait()
        assert lost.snapshot["state"] == "failed" and not (tmp_path / "model.npz").exists()
