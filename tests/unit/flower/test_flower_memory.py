"""Stock FedAvg over replies in files holds one layer at a time, however many replies there are."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedfleet_flower import compat
from fedfleet_flower.contents import from_records, read_content, write_content

LAYER = 1 << 20
LAYERS = 8
MODEL = LAYER * LAYERS


def resident() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return {name: int(fields[name].split()[0]) << 10 for name in ("RssAnon", "RssFile")}


@contextmanager
def peak() -> Iterator[dict[str, int]]:
    start, most, stop = resident(), {"RssAnon": 0, "RssFile": 0}, threading.Event()

    def watch() -> None:
        while not stop.wait(0.001):
            now = resident()
            for name, value in now.items():
                most[name] = max(most[name], value - start[name])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()


def replies(path: Path, count: int) -> list[Message]:
    return [
        compat.reply(read_content(path).records(), run=1, node=node, message_id="r", reply_to="m", message_type="train")
        for node in range(2, count + 2)
    ]


def test_stock_fedavg_over_files_stays_flat(tmp_path: Path) -> None:
    arrays = ArrayRecord({f"layer{i}": Array(np.full(LAYER // 4, i, np.float32)) for i in range(LAYERS)})
    content = from_records(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 3})}))
    write_content(tmp_path / "reply", content)
    del arrays, content
    strategy = FedAvg()
    strategy.aggregate_train(1, replies(tmp_path / "reply", 2))
    with peak() as used:
        aggregated, _ = strategy.aggregate_train(1, replies(tmp_path / "reply", 100))
    assert aggregated is not None
    np.testing.assert_allclose(aggregated["layer3"].numpy(), 3, rtol=1e-5)
    # The sum, its serialisation and what the allocator keeps are a few models; the replies were a hundred.
    assert used["RssAnon"] < 5 * MODEL
    assert used["RssFile"] < 2 * MODEL


def test_dropping_a_written_view_gives_its_memory_back_at_once(tmp_path: Path) -> None:
    record = ArrayRecord({"a": Array(np.zeros(MODEL, np.uint8))})
    write_content(tmp_path / "content", from_records(RecordDict({"arrays": record})))
    del record
    array = read_content(tmp_path / "content").records()["arrays"]["a"]
    with peak() as used:
        for _ in range(30):
            view = array.numpy()
            view += 1
            del view
    assert used["RssAnon"] < 2 * MODEL
