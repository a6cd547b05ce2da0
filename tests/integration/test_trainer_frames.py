"""Trainers that say what they must not say now: an app can speak for the process that it is in."""

import socket
import threading
from pathlib import Path

import pytest

from fedfleet_agent.supervisor import Failed
from fedfleet_protocol import handover
from tests.integration.test_trainer import HEAD, Bench, bundle

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]
FORGED = (
    HEAD
    + """
import socket
from fedfleet_protocol import handover
@app.train()
def train(message, context):
    print("forging")
    for name in os.listdir("/proc/self/fd"):
        try:
            keeper = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        keeper.sendall(handover.pack(FRAME))
    time.sleep(30)
"""
)


@pytest.mark.parametrize("frame", ["handover.LoadFailed(code='isolation', text='Ada')", "handover.Loaded()"])
def test_an_app_that_works_cannot_say_again_how_it_was_loaded(tmp_path: Path, frame: str) -> None:
    bench = Bench(tmp_path)
    try:
        failed, _ = bench.do(bench.work(bundle(tmp_path, FORGED.replace("FRAME", frame)), limit_s=10))
        assert isinstance(failed, Failed)
        # The keeper says it, which knows what was printed.
        assert (failed.code, failed.text.startswith("the trainer said what it must not")) == ("app", True)
        assert failed.text.endswith("forging")
    finally:
        bench.supervisor.close()


@pytest.mark.parametrize("frame", [handover.LoadFailed(code="isolation", text="Ada"), handover.Loaded()])
def test_nor_can_a_trainer_without_a_keeper(tmp_path: Path, frame: handover.LoadFailed | handover.Loaded) -> None:
    path = tmp_path / "socket"

    def play(listener: socket.socket) -> None:
        agent, _ = listener.accept()
        with agent:
            reader = handover.FrameReader()
            while data := agent.recv(1 << 16):
                for body in reader.feed(data):
                    work = isinstance(handover.for_trainer(body), handover.Work)
                    agent.sendall(handover.pack(frame if work else handover.Loaded()))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        trainer = threading.Thread(target=play, args=(listener,))
        trainer.start()
        (tmp_path / "trainers" / "trainer").mkdir(parents=True)
        bench = Bench(tmp_path, attach=path)
        try:
            failed, _ = bench.do(bench.work(bundle(tmp_path, HEAD), limit_s=10))
            assert isinstance(failed, Failed)
            assert (failed.code, "what it must not" in failed.text) == ("app", True)
        finally:
            bench.supervisor.close()
            trainer.join()
