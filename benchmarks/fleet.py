"""Exchanges on a real local fleet, and the same on Flower's own SuperLink and SuperNodes."""

import itertools
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Peak, memory, proportional, total
from fedfleet_coordinator.cli.children import descendants
from fedfleet_coordinator.cli.localfleet import LocalFleet
from fedfleet_coordinator.settings import Runner
from tests.e2e.fleet import QUICKSTART, submit
from tests.e2e.flower_runtime import saved_on_flower

ECHO = Path(__file__).parent / "echo"


@dataclass(frozen=True, slots=True)
class Exchange:
    """What exchanges without training took and cost.

    Attributes:
        seconds: each of them. hub_bytes: peak memory of coordinator and runner. all_bytes: of every process (Pss).
    """

    seconds: list[float]
    hub_bytes: int = 0
    all_bytes: int = 0

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)


def on_fedfleet(agents: int, megabytes: float, exchanges: int = 3) -> Exchange:
    """Return what `exchanges` with that many agents took, after one that warms up."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        LocalFleet(agents=agents, runner=Runner(writable=(scratch,))) as fleet,
    ):
        saved = Path(scratch) / "seconds.json"
        with Peak(lambda: _hub(fleet)) as hub, Peak(lambda: _everything(fleet), every_s=0.5) as everything:
            options = {"megabytes": megabytes, "exchanges": exchanges, "min-nodes": agents}
            arguments = [text for key, value in options.items() for text in ("-c", f"{key}={value}")]
            ended = submit(fleet, ECHO, *arguments, "-c", f'save="{saved}"', "--min-agents", str(agents)).wait(600)
        assert ended.snapshot["state"] == "finished", ended
        return Exchange(json.loads(saved.read_text()), hub.most, everything.most)


def on_flower(nodes: int, megabytes: float, exchanges: int = 2) -> Exchange:
    """Return the same of Flower's own runtime."""
    config = {"megabytes": str(float(megabytes)), "exchanges": str(exchanges)}
    with tempfile.TemporaryDirectory() as scratch:
        seconds = saved_on_flower(
            ECHO, nodes=nodes, folder=Path(scratch), config=config, read=lambda file: json.loads(file.read_text()),
            timeout_s=900,
        )  # fmt: skip
    return Exchange(seconds)


def quickstart_on_fedfleet() -> list[float]:
    """Return seconds from `fedfleet run` to its end, three times, on a fleet that is up and warm."""
    with LocalFleet(agents=2) as fleet:
        submit(fleet, QUICKSTART).wait()
        took = []
        for _ in range(3):
            began = time.perf_counter()
            ended = submit(fleet, QUICKSTART).wait()
            took.append(time.perf_counter() - began)
            assert ended.snapshot["state"] == "finished", ended
        return took


def quickstart_on_flower() -> float:
    """Return seconds from `flwr run` to its end, SuperLink and SuperNodes being up."""
    with tempfile.TemporaryDirectory() as scratch:
        began: list[float] = []
        saved_on_flower(
            QUICKSTART, nodes=2, folder=Path(scratch), config={}, read=lambda file: file.stat(), submitted=began.append
        )
        return time.perf_counter() - began[0]


@dataclass(frozen=True, slots=True)
class Idle:
    """An idle agent: its processes, resident memory, and bytes it sends and receives in a day."""

    processes: int
    resident_bytes: int
    bytes_a_day: float


def idle_agent(seconds: float = 260.0) -> Idle:
    """Return what an agent costs that does nothing, watched for `seconds` (more than one keep-alive interval)."""
    with LocalFleet(agents=1) as fleet:
        time.sleep(5)
        pid = fleet.agents[0].pid
        before = _bytes_of(pid)
        time.sleep(seconds)
        moved = _bytes_of(pid) - before
        return Idle(1 + len(descendants(pid)[pid]), memory(pid, "VmRSS"), moved * 86400 / seconds)


def _bytes_of(pid: int) -> float:
    """Return bytes that the sockets of a process have sent and received, with 60 bytes a segment for IP and TCP."""
    import re
    import subprocess

    said = subprocess.run(["ss", "-tinpH"], capture_output=True, text=True, check=True).stdout
    amount = 0
    lines = said.splitlines()
    for line, detail in itertools.pairwise(lines):
        if f"pid={pid}," in line:
            numbers = {
                key: int(value)
                for key, value in re.findall(r"(bytes_sent|bytes_received|segs_out|segs_in):(\d+)", detail)
            }
            amount += numbers.get("bytes_sent", 0) + numbers.get("bytes_received", 0)
            amount += 60 * (numbers.get("segs_out", 0) + numbers.get("segs_in", 0))
    return amount


def _hub(fleet: LocalFleet) -> int:
    """Memory of the coordinator and its runner, mapped files left out."""
    pid = fleet.coordinator.pid
    return total([pid, *descendants(pid)[pid]], "RssAnon") if pid else 0


def _everything(fleet: LocalFleet) -> int:
    roots = [child.pid for child in (fleet.coordinator, fleet.broker, *fleet.agents) if child.pid]
    pids = {*roots, *(pid for root in descendants(*roots).values() for pid in root)}
    return sum(proportional(pid) for pid in pids)
