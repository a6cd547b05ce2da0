"""The runner's memory under a stock FedAvg: the real runner and the coordinator's rules in one process, blobs on disk.

The devices are left out: their replies are files that another process made. `python -m benchmarks.memory FOLDER COUNT`
is the process that is measured, `python -m benchmarks.memory FOLDER` the one that makes the replies.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.processes import Peak, memory
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.rows import Agent, Blob
from fedfleet_coordinator.runner.execution import execute
from fedfleet_coordinator.runner.scratch import Scratch
from fedfleet_coordinator.runner.testing import Device, MemoryHub
from fedfleet_coordinator.store.port import Tx
from fedfleet_flower.contents import from_records, write_content
from fedfleet_protocol.blocks import BlockList
from fedfleet_protocol.ids import Digest, agent_id
from fedfleet_protocol.messages import BlobRef, Notice, Reply

LAYERS, VALUES = 10, 1_000_000
"""Forty megabytes of float32."""
DISTINCT = 10
"""Different replies; with more devices than that several send the same one. Each reply is read for itself."""
ROUNDS = 2


def runner_bytes(count: int) -> tuple[int, int]:
    """Return the most memory (RssAnon) of a runner with `count` updates a round, and what it had before the first."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "0"}
        command = [sys.executable, "-m", "benchmarks.memory", scratch]
        subprocess.run(command, env=environment, check=True)
        measure = [*command, str(count)]
        said = subprocess.run(measure, env=environment, check=True, capture_output=True).stdout
        peak, before = json.loads(said.splitlines()[-1])
        return peak, before


class _Disk(MemoryHub):
    """A hub whose blobs are files, and whose devices answer with files that are there already."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        super().__init__(lambda message, context: None, agents=0, at_once=count)
        replies = json.loads((folder / "replies.json").read_text())
        self._replies = [BlobRef(Digest(digest), size) for digest, size in replies]
        ids = sorted(agent_id(random.Random(number).randbytes(16)) for number in range(count))
        self.devices = {agent: Device(agent, number) for number, agent in enumerate(ids)}
        with self.store_.transaction() as tx:
            tx.put(*(Agent(agent=agent, online=True) for agent in ids))
            for blob in self._replies:
                tx.put(Blob(digest=blob.digest, size=blob.size, file=blob.digest))

    def store(self, fd: int, blocks: BlockList) -> None:
        with (self._folder / blocks.digest).open("wb") as file:
            os.sendfile(file.fileno(), fd, 0, blocks.size)

        def put(tx: Tx, now: Now, out: Outbox) -> None:
            tx.put(Blob(digest=blocks.digest, size=blocks.size, file=blocks.digest, stored_at=now.up))

        self._call(put)

    def fetch(self, blob: BlobRef) -> int:
        return os.open(self._folder / blob.digest, os.O_RDONLY)

    def _do_task(self, device: Device, notice: Notice) -> bool:
        blob = self._replies[device.partition % DISTINCT]
        said = Reply(run=self.run, n=notice.n, order=notice.order, digest=blob.digest, size=blob.size)
        self._do(lambda tx, now, out: self.exchanges.reply(tx, device.agent, said, now, out))
        return True


def _make(folder: Path) -> None:
    made = []
    for number in range(DISTINCT):
        arrays = ArrayRecord([np.full(VALUES, number + layer, np.float32) for layer in range(LAYERS)])
        records = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": number + 1})})
        aside = folder / "aside"
        blocks = write_content(aside, from_records(records, message_type="train"))
        aside.rename(folder / blocks.digest)
        made.append([blocks.digest, blocks.size])
    (folder / "replies.json").write_text(json.dumps(made))


def _measure(folder: Path, count: int) -> None:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=count, min_available_nodes=count)
        model = ArrayRecord([np.zeros(VALUES, np.float32) for _ in range(LAYERS)])
        strategy.start(grid=grid, initial_arrays=model, num_rounds=ROUNDS, timeout=600)

    scratch = folder / "scratch"
    scratch.mkdir()
    hub = _Disk(folder, count)
    run, position = hub.look()
    before = memory(os.getpid())
    with Peak(lambda: memory(os.getpid()), every_s=0.005) as peak:
        outcome = execute(app, hub, run, position, scratch=Scratch(scratch), run_config={})
    assert outcome.state == "finished", outcome
    print(json.dumps([peak.most, before]))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        _measure(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        _make(Path(sys.argv[1]))
