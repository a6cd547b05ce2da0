"""FedAvg takes the memory of a few models in the runner, however many agents reply."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

import fedfleet_strategies as own
from fedfleet_coordinator.runner.testing import MemoryHub
from fedfleet_flower.contents import from_records
from fedfleet_protocol.messages import BlobRef
from tests.unit.runner.apps import run_once

LAYERS, LAYER_BYTES = 8, 1 << 20
MODEL_BYTES = LAYERS * LAYER_BYTES


class OneFile(MemoryHub):
    """A hub whose devices all send the same bytes, which it keeps once."""

    _file = -1

    def fetch(self, blob: BlobRef) -> int:
        if self._file < 0:
            self._file = super().fetch(blob)
        return os.dup(self._file)


def model(value: float) -> ArrayRecord:
    layer = np.full(LAYER_BYTES // 4, value, np.float32)
    return ArrayRecord({f"layer{i}": Array(layer) for i in range(LAYERS)})


REPLY = b"".join(
    from_records(RecordDict({"arrays": model(1.0), "metrics": MetricRecord({"num-examples": 3})})).pieces()
)


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    raise AssertionError("this kernel does not say how much memory is anonymous")


def peak_of(agents: int, folder: Path, strategy: Callable[[], Strategy]) -> int:
    """Return by how many bytes this process grew while it trained two rounds."""
    hub = OneFile(lambda message, context: REPLY, agents=agents, at_once=agents)
    stop, most, start = threading.Event(), [0], [0]

    def watch() -> None:
        while not stop.wait(0.004):
            most[0] = max(most[0], anonymous_bytes())

    def app(grid: Grid, context: Context) -> Any:
        start[0] = anonymous_bytes()
        thread = threading.Thread(target=watch)
        thread.start()
        try:
            strategy().start(grid, model(0.0), num_rounds=2)
        finally:
            stop.set()
            thread.join()

    assert run_once(hub, app, folder).state == "finished"
    os.close(hub._file)
    return most[0] - start[0]


@pytest.mark.parametrize("strategy", [FedAvg, own.FedAvg, own.FedTrimmedAvg])
def test_memory_does_not_grow_with_the_number_of_agents(tmp_path: Path, strategy: Callable[[], Strategy]) -> None:
    peak_of(2, tmp_path, strategy)  # what is imported late
    few, many = peak_of(4, tmp_path, strategy), peak_of(24, tmp_path, strategy)
    assert many < few + MODEL_BYTES // 2, (few / MODEL_BYTES, many / MODEL_BYTES)
    # The app's initial model, the sum, its serialisation, and what the twin of the hub keeps of the last.
    assert many < 7 * MODEL_BYTES, many / MODEL_BYTES
