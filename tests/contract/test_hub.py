"""What a runner may rely on at its hub: the in-memory twin and the real API over TLS keep the same promises."""

import os
import select
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fedfleet_coordinator.errors import Fenced, HubRefused, Nondeterministic
from fedfleet_coordinator.pki import Pki
from fedfleet_coordinator.rows import Agent, GridAnswer, Metrics, Ref, Run, Task
from fedfleet_coordinator.runner.https import HttpHub
from fedfleet_coordinator.runner.hub import Hub
from fedfleet_coordinator.runner.scratch import Scratch
from fedfleet_coordinator.runner.testing import MemoryHub
from fedfleet_coordinator.runner.wire import Address, Wire
from fedfleet_coordinator.store.memory import MemoryStore
from fedfleet_protocol.blocks import blocks_of
from fedfleet_protocol.ids import AgentId, agent_id
from fedfleet_protocol.messages import BlobRef, Checkpoint, Open, Reply
from tests.api_fixture import Api, running_api

AGENTS = [agent_id(bytes([i] * 16)) for i in (1, 9, 17)]
BIG = bytes(range(256)) * (3 << 12) + b"and a bit"


class Place(ABC):
    """A hub, and what its other side can do."""

    hub: Hub
    run: Run

    @abstractmethod
    def do(self, work: Callable[..., Any]) -> Any: ...
    @abstractmethod
    def exchanges(self) -> Any: ...
    @abstractmethod
    def keep(self, data: bytes) -> BlobRef: ...

    def agents(self, *names: AgentId) -> None:
        def put(tx: Any, now: Any, out: Any) -> None:
            for agent in [*tx.find(Agent)]:
                tx.delete(agent)
            tx.put(*(Agent(agent=name, online=True) for name in names))

        self.do(put)

    def accept(self, n: int, agent: AgentId, data: bytes) -> None:
        """Let an agent's reply be accepted."""
        blob = self.keep(data)

        def reply(tx: Any, now: Any, out: Any) -> None:
            task = tx.get(Task, self.run.run, n, agent)
            said = Reply(run=self.run.run, n=n, order=task.order, digest=blob.digest, size=blob.size)
            self.exchanges().reply(tx, agent, said, now, out)

        self.do(reply)

    def replace_runner(self) -> None:
        def put(tx: Any, now: Any, out: Any) -> None:
            tx.put(msgspec.structs.replace(tx.get(Run, self.run.run), epoch="another"))

        self.do(put)

    def row(self) -> Run:
        found = self.do(lambda tx, now, out: tx.get(Run, self.run.run))
        assert isinstance(found, Run)
        return found


class Memory(Place):
    def __init__(self) -> None:
        self.twin = MemoryHub(lambda message, context: None, agents=0)
        self.hub, self.run = self.twin, self.twin.row()

    def do(self, work: Callable[..., Any]) -> Any:
        return self.twin._do(work)

    def exchanges(self) -> Any:
        return self.twin.exchanges

    def keep(self, data: bytes) -> BlobRef:
        return self.twin._keep(data)


class OverTls(Place):
    def __init__(self, api: Api, number: int, scratch: Path) -> None:
        self.api, self.run = api, api.run(number)
        self.hub = http_hub(api.pki, api.url, self.run, scratch)

    def do(self, work: Callable[..., Any]) -> Any:
        return self.api.do(work)

    def exchanges(self) -> Any:
        return self.api.services.exchanges

    def keep(self, data: bytes) -> BlobRef:
        blocks = self.api.stored(data)
        return BlobRef(blocks.digest, blocks.size)


def http_hub(pki: Pki, url: str, run: Run, folder: Path) -> HttpHub:
    certificate, key = pki.issue_runner(run.run, now_wall=time.time())
    for name, data in (("runner.pem", certificate), ("runner.key", key), ("ca.pem", pki.ca_pem("services").encode())):
        (folder / name).write_bytes(data)
    address = Address(url, run.run, run.epoch, folder / "runner.pem", folder / "runner.key", folder / "ca.pem")
    return HttpHub(Wire(address, first_wait_s=0.01, longest_wait_s=0.2), Scratch(folder))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("api")) as running:
        yield running


_number = iter(range(100, 1000))


@pytest.fixture(params=["memory", pytest.param("tls", marks=pytest.mark.integration)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "memory":
        yield Memory()
        return
    there = OverTls(request.getfixturevalue("api"), next(_number), tmp_path)
    yield there
    there.hub.close()  # type: ignore[attr-defined]


def a_file(data: bytes, folder: Path) -> int:
    fd = Scratch(folder).file()
    os.write(fd, data)
    return fd


def stored(place: Place, data: bytes, folder: Path) -> BlobRef:
    blocks, fd = blocks_of([data]), a_file(data, folder)
    try:
        place.hub.store(fd, blocks)
    finally:
        os.close(fd)
    return BlobRef(blocks.digest, blocks.size)


def opening(place: Place, payload: BlobRef, n: int = 1, **fields: Any) -> Open:
    return Open(run=place.run.run, epoch=place.run.epoch, n=n, cohort=dict.fromkeys(AGENTS, payload), **fields)


def opened(place: Place, folder: Path, **fields: Any) -> Open:
    place.agents(*AGENTS)
    request = opening(place, stored(place, b"a payload", folder), **fields)
    assert place.hub.open(request).need == ()
    return request


def test_a_run_is_what_was_submitted_and_has_no_position_before_its_first_checkpoint(place: Place) -> None:
    run, position = place.hub.look()
    assert run == place.row() and position is None


def test_an_exchange_opens_once_its_payload_is_there_and_is_the_same_when_opened_again(
    place: Place, tmp_path: Path
) -> None:
    place.agents(*AGENTS)
    data = b"the payload"
    blocks = blocks_of([data])
    request = opening(place, BlobRef(blocks.digest, blocks.size), label="train")
    assert place.hub.open(request).need == (blocks.digest,)
    assert place.row().exchanges == 0
    stored(place, data, tmp_path)
    first = place.hub.open(request)
    assert first.need == () and first.expected == 3 and first.closed == "" and place.row().exchanges == 1
    assert place.hub.open(request) == first


def test_a_number_that_is_opened_with_something_else_ends_the_run(place: Place, tmp_path: Path) -> None:
    opened(place, tmp_path)
    other = opening(place, stored(place, b"another payload", tmp_path))
    assert place.hub.open(other).closed == "nondeterministic"
    assert place.row().reason == "nondeterministic"
    with pytest.raises(Fenced):
        place.hub.look()


def test_a_view_has_replies_in_the_order_of_agents_and_says_when_it_is_closed(place: Place, tmp_path: Path) -> None:
    opened(place, tmp_path)
    for i in (2, 0):
        place.accept(1, AGENTS[i], f"reply {i}".encode())
    view = place.hub.view(1, seen=1, wait_s=5)
    assert [ref.agent for ref in view.replies] == [AGENTS[0], AGENTS[2]] and view.closed == ""
    place.accept(1, AGENTS[1], b"reply 1")
    view = place.hub.view(1, seen=3, wait_s=5)
    assert view.closed == "all" and len(view.replies) == 3
    assert view.replies[0].blob == BlobRef(blocks_of([b"reply 0"]).digest, 7)


def test_a_view_that_waits_for_more_comes_back_when_the_time_is_over(place: Place, tmp_path: Path) -> None:
    opened(place, tmp_path)
    assert place.hub.view(1, seen=0, wait_s=0.2).replies == ()


@pytest.mark.parametrize("data", [b"x", BIG[: 1 << 20], BIG])
def test_blobs_come_back_as_they_were_stored(data: bytes, place: Place, tmp_path: Path) -> None:
    blob = stored(place, data, tmp_path)
    assert stored(place, data, tmp_path) == blob
    place.do(lambda tx, now, out: tx.put(Ref(digest=blob.digest, holder="test", run=place.run.run)))
    fd = place.hub.fetch(blob)
    assert os.fstat(fd).st_size == len(data) and os.pread(fd, len(data), 0) == data
    os.close(fd)


def test_a_checkpoint_needs_its_blobs_and_is_where_a_new_runner_goes_on(place: Place, tmp_path: Path) -> None:
    opened(place, tmp_path)
    data = b"a state"
    blocks = blocks_of([data])
    blob = BlobRef(blocks.digest, blocks.size)
    request = Checkpoint(run=place.run.run, epoch=place.run.epoch, next_n=2, next_answer=4, server_round=1,
                         blobs={"state": blob})  # fmt: skip
    assert place.hub.checkpoint(request) == (blob.digest,)
    assert place.hub.look()[1] is None
    stored(place, data, tmp_path)
    assert place.hub.checkpoint(request) == () == place.hub.checkpoint(request)
    run, position = place.hub.look()
    assert position is not None and run.server_round == 1
    assert (position.next_n, position.next_answer, position.blobs) == (2, 4, {"state": [blob.digest, blob.size]})


def test_nodes_are_recorded_once_and_only_if_they_are_what_is_waited_for(place: Place) -> None:
    place.agents(*AGENTS[:2])
    assert place.hub.nodes(1, at_least=3, unlike=None) == (AGENTS[:2], False)
    assert place.hub.nodes(1, at_least=1, unlike=AGENTS[:2]) == (AGENTS[:2], False)
    assert place.hub.nodes(1, at_least=1, unlike=AGENTS[1:]) == (AGENTS[:2], True)
    place.agents(*AGENTS)
    assert place.hub.nodes(1, at_least=3, unlike=AGENTS[:2]) == (AGENTS[:2], True)
    assert place.hub.nodes(2, at_least=3, unlike=AGENTS[:2]) == (AGENTS, True)


def test_for_how_many_agents_an_app_waits_is_known_while_it_waits(place: Place) -> None:
    place.agents(*AGENTS[:2])
    place.hub.nodes(1, at_least=1, unlike=AGENTS[:2], needs=5)
    assert place.row().needs == 5
    place.hub.nodes(1, at_least=3, unlike=None)
    assert place.row().needs == 3
    place.hub.nodes(1, at_least=1, unlike=None, needs=5)
    assert place.row().needs == 5, "the app is told of two and asks again"
    place.agents(*AGENTS)
    place.hub.nodes(2, at_least=3, unlike=None, needs=3)
    assert place.row().needs == 0


def test_an_answer_is_recorded_once(place: Place) -> None:
    assert place.hub.answer(1, "pull", None) is None
    assert place.hub.answer(1, "pull", ["a", "b"]) == ["a", "b"]
    assert place.hub.answer(1, "pull", ["c"]) == ["a", "b"] == place.hub.answer(1, "pull", None)


def test_an_answer_to_another_question_is_no_answer(place: Place) -> None:
    place.agents(*AGENTS)
    place.hub.answer(1, "pull", ["a"])
    with pytest.raises(Nondeterministic):
        place.hub.nodes(1, at_least=0, unlike=None)
    place.hub.nodes(2, at_least=0, unlike=None)
    for value in (None, ["a"]):
        with pytest.raises(Nondeterministic):
            place.hub.answer(2, "pull", value)


def test_why_replies_were_left_out_is_kept_with_their_tasks(place: Place, tmp_path: Path) -> None:
    opened(place, tmp_path)
    place.accept(1, AGENTS[0], b"a reply")
    for _ in range(2):
        place.hub.tell_left_out(1, {AGENTS[0]: ("not_finite", "array 'w' holds NaN"), AGENTS[1]: ("app_error", "why")})
    tasks = {task.agent: task for task in place.do(lambda tx, now, out: tx.find(Task, run=place.run.run))}
    assert (tasks[AGENTS[0]].state, tasks[AGENTS[0]].code) == ("accepted", "not_finite")
    assert tasks[AGENTS[0]].text == "array 'w' holds NaN"
    assert (tasks[AGENTS[1]].state, tasks[AGENTS[1]].code) == ("published", ""), "it did not reply"


def test_metrics_are_kept(place: Place) -> None:
    values = {"loss": 0.5, "counts": [1, 2]}
    for _ in range(2):
        place.hub.tell_metrics(3, "train", values, 7)
    place.hub.tell_metrics(0, "server", {}, 7)
    rows = place.do(lambda tx, now, out: tx.find(Metrics, run=place.run.run))
    assert [(row.server_round, row.kind, row.values) for row in rows] == [(3, "train", values)]
    assert place.row().num_rounds == 7


def test_an_end_is_said_twice_without_harm_and_fences_everything_else(place: Place, tmp_path: Path) -> None:
    model = stored(place, b"the model", tmp_path)
    for _ in range(2):
        place.hub.end("finished", "finished", "", model)
    row = place.row()
    assert (row.state, row.model, row.model_size) == ("finished", model.digest, model.size)
    with pytest.raises(Fenced):
        place.hub.answer(1, "pull", ["a"])


def test_a_runner_that_was_replaced_writes_nothing(place: Place, tmp_path: Path) -> None:
    request = opened(place, tmp_path)
    place.replace_runner()
    checkpoint = Checkpoint(run=place.run.run, epoch=place.run.epoch)
    asks: list[Callable[[], Any]] = [
        lambda: place.hub.open(request),
        lambda: place.hub.checkpoint(checkpoint),
        lambda: place.hub.nodes(5, at_least=0, unlike=None),
        lambda: place.hub.answer(5, "pull", ["a"]),
        lambda: place.hub.tell_metrics(1, "train", {"a": 1.0}, 1),
        lambda: place.hub.tell_left_out(1, {AGENTS[0]: ("not_finite", "")}),
        lambda: place.hub.end("finished", "finished", "", None),
    ]
    for ask in asks:
        with pytest.raises(Fenced):
            ask()
    assert place.do(lambda tx, now, out: tx.find(GridAnswer, run=place.run.run)) == []


# --- over the network only --------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_coordinator_that_is_away_is_waited_for(tmp_path: Path) -> None:
    store, folder = MemoryStore(), tmp_path / "hub"
    with running_api(folder, store=store) as first:
        port, run = first.server.port, first.run(1)
        hub = http_hub(first.pki, first.url, run, tmp_path)
        hub.answer(1, "pull", ["before"])
        pki = first.pki
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(hub.answer(2, "pull", ["meanwhile"])))
    asking.start()
    time.sleep(0.3)
    assert asking.is_alive() and not answers
    with running_api(folder, pki=pki, store=store, port=port):
        asking.join(20)
        assert answers == [["meanwhile"]] and hub.answer(1, "pull", None) == ["before"]
        data = os.urandom(2 << 20)
        blocks, fd = blocks_of([data]), a_file(data, tmp_path)
        hub.store(fd, blocks)
        os.close(fd)
    hub.close()


@pytest.mark.integration
def test_what_is_not_there_is_a_bug_and_not_waited_for(api: Api, tmp_path: Path) -> None:
    run = api.run(next(_number))
    hub = http_hub(api.pki, api.url, run, tmp_path)
    with pytest.raises(HubRefused, match="404"):
        hub.fetch(BlobRef(blocks_of([b"nowhere"]).digest, 7))
    hub.tell_alive()
    hub.tell_lines(["a line", "and another"])
    hub.close()


class CuttingProxy:
    """Forwards connections to a port, and cuts each one after so many bytes in either direction."""

    def __init__(self, port: int, after_bytes: int) -> None:
        self._target, self._after, self.cuts, self.total = port, after_bytes, 0, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._forward, args=(near,))
            self._threads.append(thread)
            thread.start()

    def _forward(self, near: socket.socket) -> None:
        left = self._after
        with near, socket.create_connection(("127.0.0.1", self._target)) as far:
            while True:
                ready, _, _ = select.select([near, far], [], [], 30)
                for one in ready:
                    try:
                        data = one.recv(min(16384, left))
                        (far if one is near else near).sendall(data)
                    except OSError:
                        return
                    left -= len(data)
                    self.total += len(data)
                    if not data:
                        return
                    if left <= 0:
                        self.cuts += 1
                        return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(30)


@pytest.mark.integration
def test_a_transfer_that_is_cut_again_and_again_goes_on_where_it_was(api: Api, tmp_path: Path) -> None:
    run, proxy = api.run(next(_number)), CuttingProxy(api.server.port, 400_000)
    hub = http_hub(api.pki, f"https://127.0.0.1:{proxy.port}", run, tmp_path)
    data = os.urandom(3_000_000)
    blocks, fd = blocks_of([data]), a_file(data, tmp_path)
    hub.store(fd, blocks)
    os.close(fd)
    sent, cuts = proxy.total, proxy.cuts
    assert cuts >= 7 and sent < 3 * len(data)
    api.do(lambda tx, now, out: tx.put(Ref(digest=blocks.digest, holder="test", run=run.run)))
    fd = hub.fetch(BlobRef(blocks.digest, blocks.size))
    assert os.pread(fd, len(data) + 1, 0) == data
    assert proxy.cuts >= cuts + 7 and proxy.total - sent < 3 * len(data)
    os.close(fd)
    hub.close()
    proxy.close()
