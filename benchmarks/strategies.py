"""Aggregation: our strategies and Flower's over the same mapped replies, in turns, in one process.

`python -m benchmarks.strategies FOLDER COUNT NAME` is the process whose memory is measured.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as stock
from flwr.serverapp.strategy import Strategy

from benchmarks.processes import Peak, memory
from fedfleet_flower import compat
from fedfleet_flower.contents import from_records, read_content, write_content
from fedfleet_strategies import robust
from fedfleet_strategies.fedadam import FedAdam
from fedfleet_strategies.fedavg import FedAvg

LAYERS, VALUES = 10, 1_000_000
"""Forty megabytes of float32."""
REPEATS = 5
DISTINCT = 10


@dataclass(frozen=True, slots=True)
class Timed:
    """One line: seconds of each repeat on both sides; theirs are empty where there is no counterpart."""

    what: str
    ours: list[float]
    theirs: list[float]
    must_s: float


def timed(*, flower: bool) -> list[Timed]:
    """Measure everything that has a time to beat."""
    _quiet()
    large: dict[str, Any] = {
        "FedAvg of 10 x 40 MB": (FedAvg, stock.FedAvg, 0.058),
        "median, same": (lambda: FedAvg(rule=robust.Median()), stock.FedMedian, 0.150),
        "trimmed mean, same": (lambda: FedAvg(rule=robust.TrimmedMean(0.2)), stock.FedTrimmedAvg, 0.150),
        "Krum, same": (lambda: FedAvg(rule=robust.Krum(2)), lambda: stock.Krum(num_malicious_nodes=2), 0.150),
        "Multi-Krum, same": (
            lambda: FedAvg(rule=robust.MultiKrum(2, 5)),
            lambda: stock.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=5),
            0.150,
        ),
        "geometric median, 3 passes, same": (lambda: FedAvg(rule=robust.GeometricMedian(3)), None, 0.150),
    }
    small: dict[str, Any] = {
        "median of 100 x 0.5 MB": (lambda: FedAvg(rule=robust.Median()), _NumpyMedian, 0.110),
    }
    found = []
    for lines, count, layers, values in ((large, 10, LAYERS, VALUES), (small, 100, 1, 131_072)):
        with tempfile.TemporaryDirectory() as folder:
            base = write_replies(Path(folder), count, layers, values)
            for what, (ours, theirs, must_s) in lines.items():
                found.append(_compare(what, Path(folder), base, count, ours, theirs if flower else None, must_s))
    return found


def peak(count: int, name: str) -> int:
    """Return the most memory (RssAnon, bytes) of a process that aggregates `count` updates of 40 MB."""
    with tempfile.TemporaryDirectory() as folder:
        write_replies(Path(folder), DISTINCT, LAYERS, VALUES)
        command = [sys.executable, "-m", "benchmarks.strategies", folder, str(count), name]
        said = subprocess.run(command, check=True, capture_output=True).stdout
        return int(json.loads(said.splitlines()[-1]))


FAMILIES: dict[str, tuple[Callable[[], Strategy], int]] = {
    "FedAvg": (FedAvg, 250_000_000),
    # Its vectors: the model, the mean update, m, v and the next model.
    "FedAdam": (FedAdam, 5 * 40_000_000 + 120_000_000),
    "trimmed mean": (lambda: FedAvg(rule=robust.TrimmedMean(0.2)), 3 * 40_000_000 + 120_000_000),
}
"""Strategies whose memory is measured, and the most each may take."""


def write_replies(folder: Path, count: int, layers: int, values: int) -> ArrayRecord:
    """Write `count` replies into a folder; return the model they come from."""
    rng = np.random.default_rng(0)
    base = ArrayRecord({f"layer{i}": Array(rng.normal(size=values).astype(np.float32)) for i in range(layers)})
    for number in range(count):
        moved = ArrayRecord()
        for name, array in base.items():
            moved[name] = Array(array.numpy() + np.float32(0.01) * rng.standard_normal(values, np.float32))
        records = RecordDict({"arrays": moved, "metrics": MetricRecord({"num-examples": 10 + number})})
        write_content(folder / f"{number:04}", from_records(records))
    write_content(folder / "base", from_records(RecordDict({"arrays": base})))
    return base


class Mapped(Sequence[Message]):
    """Replies whose arrays lie in files, made when looked at, as a runner's are."""

    def __init__(self, folder: Path, count: int, distinct: int) -> None:
        self._folder, self._count, self._distinct = folder, count, distinct

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> list[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | list[Message]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index >= self._count:
            raise IndexError
        records = read_content(self._folder / f"{index % self._distinct:04}").records()
        return compat.reply(
            records, run=1, node=index + 1, message_id=f"{index}r", reply_to=f"{index}", message_type="train"
        )


class Nodes(Grid):
    """A Grid that only knows who is there."""

    def __init__(self, count: int) -> None:
        compat.identify(run=1, node=compat.SERVER_NODE)
        self._count = count

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *args: Any, **options: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(range(1, self._count + 1))

    def push_messages(self, messages: Any) -> list[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Any) -> list[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        raise NotImplementedError


class _NumpyMedian(stock.FedAvg):
    """`numpy.median` over all updates at once."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        models = [message.content["arrays"] for message in replies]
        names = list(models[0])
        return ArrayRecord(
            {name: Array(np.median([model[name].numpy() for model in models], axis=0)) for name in names}
        ), None


def _compare(
    what: str,
    folder: Path,
    base: ArrayRecord,
    count: int,
    ours: Callable[[], Strategy],
    theirs: Callable[[], Strategy] | None,
    must_s: float,
) -> Timed:
    mine, others = [], []
    for _ in range(REPEATS):
        mine.append(_seconds(ours(), folder, base, count))
        if theirs is not None:
            others.append(_seconds(theirs(), folder, base, count))
    return Timed(what, mine, others, must_s)


def _seconds(strategy: Strategy, folder: Path, base: ArrayRecord, count: int) -> float:
    for _ in _configured(strategy, base, count):
        pass
    replies = list(Mapped(folder, count, count))
    began = time.perf_counter()
    arrays, _ = strategy.aggregate_train(1, replies)
    took = time.perf_counter() - began
    assert arrays is not None
    return took


def _configured(strategy: Strategy, base: ArrayRecord, count: int) -> Iterator[Message]:
    yield from strategy.configure_train(1, base, ConfigRecord(), Nodes(count))


def _quiet() -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)


def _measure(folder: Path, count: int, name: str) -> int:
    _quiet()
    base: Any = read_content(folder / "base").records()["arrays"]
    strategy = FAMILIES[name][0]()
    with Peak(lambda: memory(os.getpid()), 0.002) as most:
        for server_round in (1, 2):
            for _ in strategy.configure_train(server_round, base, ConfigRecord(), Nodes(count)):
                pass
            arrays, _ = strategy.aggregate_train(server_round, Mapped(folder, count, DISTINCT))
            assert arrays is not None
            base = arrays
    return most.most


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
