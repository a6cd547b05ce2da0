"""The half at the hub: times `send_and_receive`, each time with another model, until every reply was looked at."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One exchange to warm up, then those that count."""
    config = context.run_config
    count = int(float(config["megabytes"]) * 1e6 / 4)
    nodes = _nodes(grid, int(config["min-nodes"]))
    took = []
    for number in range(int(config["exchanges"]) + 1):
        model = np.random.default_rng(number).standard_normal(count, dtype=np.float32)
        record = RecordDict({"arrays": ArrayRecord([model]), "config": ConfigRecord({"server-round": number})})
        messages = [Message(content=record, message_type="train", dst_node_id=node) for node in nodes]
        began = time.perf_counter()
        replies = 0
        for reply in grid.send_and_receive(messages, timeout=600):
            assert not reply.has_error(), reply.error
            replies += int(len(reply.content.array_records["arrays"]) == 1)
        took.append(time.perf_counter() - began)
        assert replies == len(nodes), f"{replies} of {len(nodes)} replies"
    Path(str(config["save"])).write_text(json.dumps(took[1:]))


def _nodes(grid: Grid, wanted: int) -> list[int]:
    while len(nodes := list(grid.get_node_ids())) < wanted:
        time.sleep(0.2)
    return nodes
