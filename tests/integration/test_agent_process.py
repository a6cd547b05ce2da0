"""The resident agent as a real process, with a real hub: small, moved by signals and commands, hard to kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from fedfleet_agent import identity
from fedfleet_agent.home import Home
from fedfleet_coordinator.cli.localfleet import LocalFleet

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
IDLE_KIB = 35 * 1024


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    with LocalFleet(agents=1) as fleet:
        yield fleet


@pytest.fixture
def mortal_fleet() -> Iterator[LocalFleet]:
    """A fleet of the test's own, whose processes it may kill."""
    with LocalFleet(agents=1) as fleet:
        yield fleet


def state(fleet: LocalFleet) -> Path:
    return fleet.state / "agents" / "0"


def command(name: str, fleet: LocalFleet, *options: str) -> "subprocess.CompletedProcess[str]":
    arguments = [sys.executable, "-m", "fedfleet_agent", name, "--state", str(state(fleet)), *options]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=30)


def row(fleet: LocalFleet) -> dict[str, Any]:
    """Return the agent as the hub sees it."""
    me = identity.load(state(fleet)).agent
    with fleet.client() as client:
        return next(dict(found) for found in client.get("/v1/agents")["agents"] if found["agent"] == me)


def until(holds: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.05)


def rss_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))


def test_an_idle_agent_is_one_small_process_that_sleeps(fleet: LocalFleet) -> None:
    pid = fleet.agents[0].pid
    process = psutil.Process(pid)
    until(lambda: rss_kib(pid) <= IDLE_KIB)
    began = process.cpu_times()
    time.sleep(3)
    spent = process.cpu_times()
    print(f"idle agent: {rss_kib(pid) / 1024:.1f} MiB, {process.num_threads()} threads")
    assert rss_kib(pid) <= IDLE_KIB
    assert process.children() == []
    assert process.num_threads() <= 3
    assert spent.user + spent.system - began.user - began.system <= 0.1


def test_its_files_are_for_its_user_only(fleet: LocalFleet) -> None:
    assert state(fleet).stat().st_mode & 0o077 == 0
    for name in ("identity.pem", "journal.sqlite"):
        assert (state(fleet) / name).stat().st_mode & 0o077 == 0


def test_status_says_that_it_is_connected(fleet: LocalFleet) -> None:
    until(lambda: json.loads(command("status", fleet, "--json").stdout)["connected"])
    told = json.loads(command("status", fleet, "--json").stdout)
    assert (told["running"], told["pid"], told["stage"]) == (True, fleet.agents[0].pid, "idle")
    assert told["agent"] == row(fleet)["agent"]


def test_the_hub_hears_of_a_pause_and_of_its_end(fleet: LocalFleet) -> None:
    assert command("pause", fleet).returncode == 0
    until(lambda: row(fleet)["code"] == "paused")
    assert "fedfleet-agent resume" in row(fleet)["text"]
    assert command("resume", fleet).returncode == 0
    until(lambda: row(fleet)["eligible"])


def test_a_broken_configuration_changes_nothing_in_an_agent_that_runs(fleet: LocalFleet) -> None:
    file, pid = state(fleet) / "agent.toml", fleet.agents[0].pid
    before = file.read_text()
    file.write_text(before + "\n[eligibility]\nbatery_min_percent = 3\n")
    os.kill(pid, signal.SIGHUP)
    log = fleet.state / "log" / "agent-0.log"
    until(lambda: "did you mean battery_min_percent?" in log.read_text())
    file.write_text(before + '\n[eligibility]\nwindows = ["mon 00:00-00:01"]\n')
    os.kill(pid, signal.SIGHUP)
    until(lambda: row(fleet)["code"] == "window" or time.strftime("%a %H:%M") == "Mon 00:00")
    file.write_text(before)
    os.kill(pid, signal.SIGHUP)
    until(lambda: row(fleet)["eligible"])
    assert fleet.agents[0].pid == pid


def test_a_second_agent_in_the_same_folder_is_refused(fleet: LocalFleet) -> None:
    done = command("run", fleet)
    assert done.returncode == 1
    assert f"another agent (process {fleet.agents[0].pid}) works in" in done.stderr
    assert "Traceback" not in done.stderr


def test_joining_twice_is_refused_and_a_used_token_is_worth_nothing(fleet: LocalFleet, tmp_path: Path) -> None:
    with fleet.client() as client:
        token = client.post("/v1/tokens", {"labels": {}, "uses": 1, "expires_s": 60})["token"]
    again = subprocess.run(
        [sys.executable, "-m", "fedfleet_agent", "join", "--token-file", "-", "--state", str(state(fleet))],
        input=token, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert again.returncode == 1
    assert "is agent" in again.stderr
    first, second = (
        subprocess.run(
            [sys.executable, "-m", "fedfleet_agent", "join", "--token-file", "-", "--name", "b\"'d",
             "--state", str(tmp_path / str(number))],
            input=token, capture_output=True, text=True, check=False, timeout=30,
        )
        for number in range(2)
    )  # fmt: skip
    assert (first.returncode, second.returncode) == (0, 1)
    assert "token" in second.stderr
    assert not (tmp_path / "1" / "agent.toml").exists()
    check = [sys.executable, "-m", "fedfleet_agent", "run", "--check", "--state", str(tmp_path / "0")]
    done = subprocess.run(check, capture_output=True, text=True, check=False, timeout=30)
    assert "trusted publishers: none: every task is declined" in done.stdout
    assert 'name = "b\\"\'d"' in (tmp_path / "0" / "agent.toml").read_text()


def test_it_ends_cleanly_on_sigterm_and_comes_back_as_the_same_agent_after_a_kill(mortal_fleet: LocalFleet) -> None:
    before, child = row(mortal_fleet)["agent"], mortal_fleet.agents[0]
    for sign in (signal.SIGTERM, signal.SIGKILL):
        pid = child.kill(sign)
        until(lambda pid=pid: Home(state(mortal_fleet)).running() not in (None, pid))  # type: ignore[misc]
        until(lambda: json.loads(command("status", mortal_fleet, "--json").stdout)["connected"])
        until(lambda: row(mortal_fleet)["online"])
    assert row(mortal_fleet)["agent"] == before
    assert "Traceback" not in (mortal_fleet.state / "log" / "agent-0.log").read_text()


def test_a_certificate_is_renewed_with_a_new_key_at_two_thirds_of_its_life(mortal_fleet: LocalFleet) -> None:
    folder = state(mortal_fleet)
    before = identity.load(folder)
    about = msgspec.structs.replace(before.about, begins_wall=0.0)  # so two thirds of its life are long over
    identity.write_file(folder / "identity.json", msgspec.json.encode(about))
    mortal_fleet.agents[0].kill(signal.SIGKILL)
    until(lambda: identity.load(folder).about.begins_wall > 0)
    after = identity.load(folder)
    assert after.agent == before.agent
    assert after.key.private_bytes_raw() != before.key.private_bytes_raw()
    until(lambda: json.loads(command("status", mortal_fleet, "--json").stdout)["connected"])
    pid = mortal_fleet.agents[0].pid
    time.sleep(1)
    assert mortal_fleet.agents[0].pid == pid
    assert command("renew", mortal_fleet).returncode == 0
