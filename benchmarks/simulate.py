"""What a simulated client call costs beside the app's own work: the echo app on virtual devices."""

import json
import resource
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fedfleet_coordinator.simulation.fleet import Fleet
from fedfleet_coordinator.simulation.session import Simulation
from fedfleet_flower.compat import build_bundle

ECHO = Path(__file__).parent / "echo"
COUNT = 1000
VALUES = 1000
"""Four kilobytes of float32."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """What calls took from the ServerApp's point of view.

    Attributes:
        per_call_s: of each exchange, its time divided by its calls, from the send until every reply was looked at.
        processor_s: of all processes, per call; what a busy machine does not change.
    """

    per_call_s: list[float]
    processor_s: float

    @property
    def median_s(self) -> float:
        """The exchange in the middle."""
        return statistics.median(self.per_call_s)


def overhead(count: int = COUNT, *, workers: int = 2, exchanges: int = 5) -> Overhead:
    """Return what a call costs when the app does next to nothing."""
    _, first = _run(count, workers, 1)
    per_call_s, processor_s = _run(count, workers, exchanges)
    # The difference leaves out what starting costs; each run has one exchange more, to warm up.
    return Overhead(per_call_s, (processor_s - first) / (count * (exchanges - 1)))


def _run(count: int, workers: int, exchanges: int) -> tuple[list[float], float]:
    before = _processor_s()
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "seconds.json"
        config = {"megabytes": VALUES * 4 / 1e6, "exchanges": exchanges, "min-nodes": count, "save": str(saved)}
        with Simulation(build_bundle(ECHO), Fleet(count), workers=workers, run={"config": config}) as simulation:
            ended = simulation.execute()
            assert ended.state == "finished", ended.text
            assert simulation.pool.made == count * (exchanges + 1)
        return [took / count for took in json.loads(saved.read_text())], _processor_s() - before


def _processor_s() -> float:
    """Return the processor time of this process and of its children that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )
