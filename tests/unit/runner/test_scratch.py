"""Files of the runner on a disk that is full for a while."""

import errno
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, RecordDict

from fedfleet_coordinator.runner import payloads
from fedfleet_coordinator.runner.scratch import Scratch
from fedfleet_flower.contents import from_records


def test_a_full_disk_is_waited_for_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    naps: list[float] = []
    tries = iter([OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "full"), None])

    def act() -> str:
        error = next(tries)
        if error is not None:
            raise error
        return "written"

    with caplog.at_level(logging.WARNING, "fedfleet"):
        assert Scratch(tmp_path, sleep=naps.append).write(act) == "written"
    assert len(naps) == 2 and all(0 <= nap <= 10 for nap in naps)
    assert caplog.text.count("is full; the run goes on when there is room") == 1


def test_another_trouble_of_the_disk_is_not_waited_for(tmp_path: Path) -> None:
    def act() -> None:
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        Scratch(tmp_path, sleep=lambda _: pytest.fail("waits")).write(act)


def test_a_payload_begun_on_a_full_disk_is_written_whole_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = from_records(RecordDict({"arrays": ArrayRecord([np.arange(1000.0)])}))
    wanted = payloads.pack(content, Scratch(tmp_path)).blob
    write, calls = os.write, iter(range(100))

    def full_at_the_second(fd: int, data: bytes) -> int:
        if next(calls) == 1:
            raise OSError(errno.ENOSPC, "full")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full_at_the_second)
    assert payloads.pack(content, Scratch(tmp_path, sleep=lambda _: None)).blob == wanted
