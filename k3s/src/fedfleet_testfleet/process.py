"""Fleets of processes on this machine: `fedfleet up` as a child, its processes frozen and killed."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from fedfleet_testfleet import tree
from fedfleet_testfleet.driver import NodeState
from fedfleet_testfleet.errors import BadInput, Cannot, FleetFault
from fedfleet_testfleet.fault import Action, Fault
from fedfleet_testfleet.fleet import DriverName, Fleet, Node, Wanted, dealt
from fedfleet_testfleet.tree import Process

PATIENCE_S = 5.0
"""A part that is just being started again is waited for so long."""
READY_S, READY_PER_NODE_S, END_S = 60.0, 3.0, 30.0
_PARTS = {
    "coordinator": ("fedfleet_coordinator", "serve"),
    "broker": (),  # it becomes mosquitto
    "runner": ("fedfleet_coordinator.runner",),
}
_OURS = ("fedfleet_", "mosquitto")
_NUMBERED = re.compile(r"(agent|trainer)-([0-9]+)")
_SIGNALS = {
    Action.STOP: (signal.SIGSTOP, "frozen"), Action.START: (signal.SIGCONT, "going on"),
    Action.KILL: (signal.SIGKILL, "killed"),
}  # fmt: skip
_REMEDY = "processes can be stopped, started and killed; k3d and testcluster can do more"


class ProcessDriver:
    """Drives `fedfleet up`, which starts again what is killed.

    Stopped is frozen: to everybody else a process that does not run is a device without power, but its connections
    stay open and what it holds in memory is kept.
    """

    name: Final[DriverName] = "process"

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def up(self, wanted: Wanted) -> Fleet:
        """Return a fleet whose agents are online; see `Driver`."""
        nodes = dealt(wanted.nodes, wanted.clusters)
        folder = wanted.folder.resolve()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        context = folder / "context.toml"
        command = [*fedfleet(), "up", "--agents", str(wanted.nodes), "--state", str(folder / "fleet"), "--json"]
        for place in range(wanted.clusters):
            command += ["--label", f"site=site-{place}"]
        if wanted.data is not None:
            command += ["--data-dir", str(wanted.data.resolve())]
        said, log = folder / "up.json", folder / "up.log"
        with said.open("wb") as out, log.open("wb") as err:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
                env=os.environ | {"FEDFLEET_CONTEXT": str(context)},
            )  # fmt: skip
        self._started.append(child)
        born = tree.process(child.pid)
        fleet = Fleet(
            driver="process", folder=folder, context=context, pid=child.pid, born=born.born if born else 0.0,
            # `fedfleet up` deals a label's values out in turn.
            nodes=tuple(Node(name, place % wanted.clusters, str(place)) for place, (name, _) in enumerate(nodes)),
        )  # fmt: skip
        try:
            self._until_ready(child, said, log, READY_S + READY_PER_NODE_S * wanted.nodes)
        except BaseException:
            self.down(fleet)
            raise
        return fleet

    def do(self, fleet: Fleet, fault: Fault) -> str:
        """Return what was done to which processes; see `Driver`."""
        name = _known(fleet, fault)
        if fault.action not in _SIGNALS:
            raise Cannot(f"{_why(fault.action)}; {_REMEDY}")
        sign, word = _SIGNALS[fault.action]
        deadline = time.monotonic() + PATIENCE_S
        while not (hit := self._hit(fleet, name, fault.action, sign)):
            if not tree.alive(fleet.pid, fleet.born):
                raise FleetFault("this fleet is not there any more; start another with: fedfleet testfleet up")
            if time.monotonic() > deadline:
                hint = "is a run under way?" if name.startswith(("runner", "trainer")) else f"see {fleet.folder}"
                raise FleetFault(f"there is no {name} to {fault.action}, for {PATIENCE_S:.0f} s now; {hint}")
            time.sleep(0.02)
        return f"{', '.join(map(str, hit))} {word}"

    def states(self, fleet: Fleet) -> dict[str, NodeState]:
        """Return how each agent's process is; see `Driver`."""
        below = tree.below(fleet.pid) if tree.alive(fleet.pid, fleet.born) else []
        found: dict[str, NodeState] = {}
        for node in fleet.nodes:
            agents = _named(below, node.name)
            found[node.name] = "gone" if not agents else "stopped" if agents[0].state == "T" else "up"
        return found

    def down(self, fleet: Fleet) -> None:
        """End `fedfleet up`, which ends all others; see `Driver`."""
        left = tree.below(fleet.pid) if tree.alive(fleet.pid, fleet.born) else []
        # Frozen processes outlive a supervisor that was killed; they are known by the folder they work in.
        left += [one for one in tree.mentioning(str(fleet.folder)) if any(w in " ".join(one.words) for w in _OURS)]
        _send(left, signal.SIGCONT)
        if tree.alive(fleet.pid, fleet.born):
            with contextlib.suppress(ProcessLookupError):
                os.kill(fleet.pid, signal.SIGTERM)
        deadline = time.monotonic() + END_S
        while tree.alive(fleet.pid, fleet.born) and time.monotonic() < deadline:
            time.sleep(0.05)
        if tree.alive(fleet.pid, fleet.born):
            os.kill(fleet.pid, signal.SIGKILL)
        _send((one for one in left if one.pid != fleet.pid and tree.alive(one.pid, one.born)), signal.SIGKILL)
        for child in [child for child in self._started if child.pid == fleet.pid]:
            child.wait(END_S)
            self._started.remove(child)

    def _hit(self, fleet: Fleet, name: str, action: Action, sign: signal.Signals) -> list[int]:
        below = tree.below(fleet.pid) if tree.alive(fleet.pid, fleet.born) else []
        found = _named(below, name)
        if action is not Action.KILL or name.startswith("trainer"):
            # A device without power computes nothing either; and a killed agent's trainer ends by itself, as a
            # device's would.
            found = list({one.pid: one for top in found for one in (top, *_offspring(below, top))}.values())
        hit = _send(found, sign)
        # Until the kernel has ended it, a process that was killed looks like one that is there.
        deadline = time.monotonic() + PATIENCE_S
        while (
            sign is signal.SIGKILL
            and time.monotonic() < deadline
            and any(tree.alive(one.pid, one.born) for one in found)
        ):
            time.sleep(0.01)
        return hit

    def _until_ready(self, child: subprocess.Popen[bytes], said: Path, log: Path, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            with contextlib.suppress(ValueError):
                json.loads(said.read_bytes())
                return
            if child.poll() is not None:
                lines = log.read_text(errors="replace").strip().splitlines() or ["it says nothing"]
                raise FleetFault(f"fedfleet up ends with exit code {child.returncode}: {_told(lines[-1])}")
            time.sleep(0.05)
        raise FleetFault(f"the fleet is not ready after {patience_s:.0f} s; is this machine overloaded? log: {log}")


def fedfleet() -> tuple[str, ...]:
    """Return the command `fedfleet`: the one beside our Python, else the one on the PATH.

    Raises:
        BadInput: it is not installed.
    """
    beside = Path(sys.executable).with_name("fedfleet")
    found = str(beside) if beside.exists() else shutil.which("fedfleet")
    if found is None:
        raise BadInput("fedfleet is not installed here; install it with: pip install fedfleet-coordinator")
    return (found,)


def _known(fleet: Fleet, fault: Fault) -> str:
    found = _NUMBERED.fullmatch(fault.target)
    if found is not None:
        fleet.node(f"agent-{found[2]}")
    elif fault.target and fault.target not in _PARTS:
        fleet.node(fault.target)
    return fault.target


def _why(action: Action) -> str:
    if action in (Action.API_DOWN, Action.API_UP):
        return "no Kubernetes is here; stop the coordinator"
    return "a process on this machine has no cable and no processor of its own"


def _named(below: Iterable[Process], name: str) -> list[Process]:
    """Return the processes that are a part or a numbered agent or trainer."""
    found = _NUMBERED.fullmatch(name)
    if name == "broker":
        return [one for one in below if one.words and Path(one.words[0]).name == "mosquitto"]
    if found is None:
        return [one for one in below if set(_PARTS[name]) <= set(one.words)]
    below = list(below)
    agents = [one for one in below if {"fedfleet_agent", "run"} <= set(one.words)]
    agents = [one for one in agents if one.words[-1].endswith(f"/agents/{found[2]}")]
    if found[1] == "agent":
        return agents
    return [one for top in agents for one in _offspring(below, top) if "fedfleet_trainer" in " ".join(one.words)]


def _offspring(below: Iterable[Process], top: Process) -> list[Process]:
    pids, found = {top.pid}, []
    for one in below:  # parents come first
        if one.parent in pids:
            pids.add(one.pid)
            found.append(one)
    return found


def _send(processes: Iterable[Process], sign: signal.Signals) -> list[int]:
    hit = []
    for one in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, sign)
            hit.append(one.pid)
    return hit


def _told(line: str) -> str:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(line)["error"])
    return line[:400]
