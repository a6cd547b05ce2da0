"""Runs on a real local fleet, and ways to hurt it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfleet_coordinator.cli.children import descendants
from fedfleet_coordinator.cli.localfleet import LocalFleet

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits"
QUICKSTART = ROOT / "examples" / "quickstart"


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has ended, and what the command said."""

    code: int
    snapshot: dict[str, Any]
    said: str

    @property
    def model(self) -> str:
        """The digest of the final model: equal digests, bit-identical models."""
        return str(self.snapshot["model"]["digest"])


class Submitted:
    """A run under way."""

    def __init__(self, fleet: LocalFleet, run: str) -> None:
        self.run, self._fleet = run, fleet

    def snapshot(self) -> dict[str, Any]:
        """Return what the coordinator says of it; waits for a coordinator that is away."""
        while True:
            try:
                with self._fleet.client() as client:
                    return dict(client.get(f"/v1/runs/{self.run}"))
            except Exception:  # away: it is started again
                time.sleep(0.1)

    def wait(self, timeout_s: float = 400.0) -> Ended:
        """Return how it ended."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            snapshot = self.snapshot()
            if snapshot["state"] not in ("pending", "running"):
                return Ended(0 if snapshot["state"] == "finished" else 1, snapshot, snapshot.get("text", ""))
            time.sleep(0.1)
        raise AssertionError(f"the run did not end in {timeout_s} s: {self.snapshot()}")

    def wait_for_round(self, server_round: int, timeout_s: float = 200.0) -> None:
        """Return once that many rounds are committed."""
        deadline = time.monotonic() + timeout_s
        while self.snapshot()["server_round"] < server_round:
            assert time.monotonic() < deadline, f"round {server_round} is not there after {timeout_s} s"
            time.sleep(0.02)


def submit(fleet: LocalFleet, app: Path, *options: str) -> Submitted:
    """Submit an app and return its run."""
    said = fedfleet(fleet, "run", str(app), "--detach", "--json", *options)
    assert said.returncode == 0, said.stdout + said.stderr
    return Submitted(fleet, json.loads(said.stdout)["run"])


def fedfleet(fleet: LocalFleet, *arguments: str, timeout_s: float = 180.0) -> subprocess.CompletedProcess[str]:
    """Run the command line against a fleet."""
    environment = os.environ | {"FEDFLEET_CONTEXT": str(fleet.context_file)}
    command = [sys.executable, "-m", "fedfleet_coordinator.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout_s, check=False)


def runners(fleet: LocalFleet) -> list[int]:
    """Return the runner processes of the coordinator."""
    return _children(fleet.coordinator.pid, "fedfleet_coordinator.runner")


def trainers(fleet: LocalFleet, number: int) -> list[int]:
    """Return the trainer processes of an agent."""
    return _children(fleet.agents[number].pid, "fedfleet_trainer")


def kill(pids: list[int]) -> bool:
    """Kill processes; return whether there was one."""
    gone = False
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            gone = True
    return gone


def _children(pid: int, module: str) -> list[int]:
    found = []
    for child in descendants(pid)[pid] if pid else ():
        with contextlib.suppress(OSError):
            if module.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found
