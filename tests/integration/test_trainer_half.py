"""The client half of a strategy in a real trainer: around an unmodified app, and gone when the message is done."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedfleet_agent.supervisor import Done
from tests.integration.test_trainer import TRAIN, Bench, bundle, reply_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.supervisor.close()


def a_message(*, half: bool) -> RecordDict:
    content = RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(2, np.float32))}), "config": ConfigRecord()})
    if half:
        parts = {"parts": ["scaffold"], "round": 1, "accepted": 0, "arrays": "arrays", "local": [], "settings": "{}"}
        content["fedfleet"] = ConfigRecord(parts)  # type: ignore[arg-type]
        content["fedfleet.c"] = ArrayRecord({"vector": Array(np.full(2, 3, np.float32))})
    return content


def test_the_half_runs_around_an_app_that_does_not_name_it_and_lends_nothing_to_the_next(
    bench: Bench, tmp_path: Path
) -> None:
    body = (
        "    from fedfleet_strategies.client import correction, done\n"
        "    lent = correction()\n"
        "    done(steps=2, lr=0.5)\n"
        "    return answer(message, lent=float(lent.linear['w'][0]) if lent else 0.0, records=len(message.content))\n"
    )
    app = bundle(tmp_path, TRAIN + body)
    found: list[Any] = []
    for half in (True, False):
        ended, _ = bench.do(bench.work(app, a_message(half=half)))
        assert isinstance(ended, Done)
        found.append(reply_of(ended).records())
        assert (ended.state is not None) == half
    assert found[0]["metrics"]["lent"] == 3.0 and found[0]["metrics"]["records"] == 2
    assert found[0]["fedfleet.c"]["vector"].numpy().tolist() == [-3.0, -3.0]
    assert found[1]["metrics"]["lent"] == 0.0 and "fedfleet.c" not in found[1]
