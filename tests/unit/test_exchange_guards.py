"""What the exchange machine, runs and the agent's core do with what only a broken or hostile other side sends."""

import math
import random
from contextlib import suppress
from typing import Literal

import msgspec
import pytest

from fedfleet_agent import core
from fedfleet_coordinator import runs
from fedfleet_coordinator.capabilities import Capabilities
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.errors import BadRequest, NotAllowed
from fedfleet_coordinator.exchanges import Exchanges
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.rows import Agent, Blob, Exchange, Ref, Run, Task, Turn
from fedfleet_coordinator.store.memory import MemoryStore
from fedfleet_protocol.blocks import BLOCK_BYTES, BlockList, blocks_of
from fedfleet_protocol.errors import Malformed
from fedfleet_protocol.exchange import TaskState
from fedfleet_protocol.ids import AgentId, Digest, agent_id, run_id
from fedfleet_protocol.messages import (
    Ask,
    BlobRef,
    Checkpoint,
    Grant,
    Need,
    Notice,
    Open,
    Reply,
    ToAgent,
    Verdict,
)

RUN, AGENT, NOW = run_id(bytes(16)), agent_id(bytes([1]) * 16), Now(1.0, 1.0)
PAYLOAD = b"payload"
REF = BlobRef(blocks_of([PAYLOAD]).digest, len(PAYLOAD))


class Scene:
    """A live run with one agent, and the machine."""

    def __init__(self) -> None:
        self.store, self.machine = MemoryStore(), Exchanges(Capabilities(bytes(32)))
        with self.store.transaction() as tx:
            tx.put(
                Run(run=RUN, state="running", epoch="e", bundle=REF.digest, bundle_size=REF.size),
                Blob(digest=REF.digest, size=REF.size, inline=PAYLOAD),
                Agent(agent=AGENT),
            )

    def open(
        self,
        n: int = 1,
        *,
        cohort: dict[AgentId, BlobRef] | None = None,
        deadline_s: float = 60.0,
        late: Literal["refuse", "keep"] = "refuse",
    ) -> list[ToAgent]:
        """Open an exchange; return what is sent."""
        out = Outbox()
        request = Open(run=RUN, epoch="e", n=n, cohort=cohort or {AGENT: REF}, deadline_s=deadline_s, late=late)
        with self.store.transaction() as tx:
            self.machine.open(tx, request, NOW, out)
        return [message for _, message in out.sends]

    def reply(self, notice: Notice, data: bytes, *, size: int | None = None, now: Now = NOW) -> None:
        """Say that the work is done, with its bytes."""
        reply = Reply(run=RUN, n=1, order=notice.order, digest=blocks_of([data]).digest,
                      size=len(data) if size is None else size, inline=data)  # fmt: skip
        with self.store.transaction() as tx:
            self.machine.reply(tx, AGENT, reply, now, Outbox())

    def exit_runner(self, code: int) -> None:
        """Launch a runner and let it die."""
        with self.store.transaction() as tx:
            assert runs.launch(tx, RUN, "next", NOW, Outbox()) is not None
            runs.runner_exited(tx, RUN, "next", code, self.machine, NOW, Outbox())

    def run(self) -> Run:
        """Return the run's row."""
        with self.store.transaction() as tx:
            row = tx.get(Run, RUN)
        assert row is not None
        return row


@pytest.mark.parametrize("deadline_s", [math.nan, 0.0, -1.0])
def test_deadline_that_never_comes_is_refused(deadline_s: float) -> None:
    with pytest.raises(BadRequest, match="deadline"):
        Scene().open(deadline_s=deadline_s)


def test_infinite_deadline_is_made_finite() -> None:
    (notice,) = Scene().open(deadline_s=math.inf)
    assert isinstance(notice, Notice) and math.isfinite(notice.remaining_s)


def test_short_list_of_blocks_rides_in_the_task() -> None:
    scene, digests = Scene(), bytes(range(64))
    large = BlobRef(BlockList(BLOCK_BYTES + 1, digests).digest, BLOCK_BYTES + 1)
    with scene.store.transaction() as tx:
        tx.put(Blob(digest=large.digest, size=large.size, file="large", blocks=digests))
    (notice,) = scene.open(cohort={AGENT: large})
    assert isinstance(notice, Notice) and notice.payload.blocks == digests


def test_cohort_with_a_wildcard_for_an_agent_is_refused() -> None:
    with pytest.raises(Malformed):
        Scene().open(cohort={AgentId("+"): REF})


def test_cohort_with_an_agent_that_the_run_does_not_select_is_refused() -> None:
    scene, other = Scene(), agent_id(bytes([2]) * 16)
    with scene.store.transaction() as tx:
        tx.put(Run(run=RUN, state="running", epoch="e", bundle=REF.digest, selector={"site": "a"}))
        tx.put(Agent(agent=AGENT, labels={"site": "a"}), Agent(agent=other, labels={"site": "b"}))
    with pytest.raises(NotAllowed, match=f"agent {other} is not one of run {RUN}: it selects site=a"):
        scene.open(cohort={AGENT: REF, other: REF})
    assert scene.run().exchanges == 0 and len(scene.open(cohort={AGENT: REF})) == 1


def test_reply_in_the_settle_time_does_not_close_an_exchange_whose_time_is_over() -> None:
    scene, other = Scene(), agent_id(bytes([2]) * 16)
    with scene.store.transaction() as tx:
        tx.put(Agent(agent=other))
    notice, _ = scene.open(cohort={AGENT: REF, other: REF}, deadline_s=60.0)
    assert isinstance(notice, Notice)
    scene.reply(notice, b"reply", now=Now(61.0, 1.0, settling=True))
    with scene.store.transaction() as tx:
        exchange = tx.get(Exchange, RUN, 1)
        assert exchange is not None and (exchange.accepted, exchange.reason) == (1, "")
        scene.machine.tick(tx, Now(61.0, 1.0), Outbox())
        exchange = tx.get(Exchange, RUN, 1)
    assert exchange is not None and exchange.reason == "deadline"


@pytest.mark.parametrize("restarted", [False, True])
def test_late_reply_that_never_comes_is_given_up_a_deadline_later(restarted: bool) -> None:
    scene, out = Scene(), Outbox()
    with scene.store.transaction() as tx:
        tx.put(Run(run=RUN, state="running", epoch="e", bundle=REF.digest, late="keep", deadline_s=60.0))
    scene.open(deadline_s=60.0, late="keep")
    with scene.store.transaction() as tx:
        scene.machine.tick(tx, Now(62.0, 1.0), out)
        if restarted:
            scene.machine = Exchanges(Capabilities(bytes(32)))
            scene.machine.recover(tx, Now(62.0, 1.0))
        scene.machine.tick(tx, Now(120.0, 1.0), out)
        view = scene.machine.view(tx, RUN, 1)
        assert (view.closed, view.replies, out.sends[1:]) == ("deadline", (), [])
        scene.machine.tick(tx, Now(122.0, 1.0), out)
        view = scene.machine.view(tx, RUN, 1)
        assert [(ref.agent, ref.blob, ref.code, ref.late) for ref in view.replies] == [(AGENT, None, "deadline", True)]
        assert not tx.find(Ref), "nobody fetches the payload any more"
    assert isinstance(out.sends[-1][1], Verdict) and out.sends[-1][1].code == "closed"


def test_late_reply_is_given_up_though_the_first_try_was_rolled_back() -> None:
    scene, out = Scene(), Outbox()
    with scene.store.transaction() as tx:
        tx.put(Run(run=RUN, state="running", epoch="e", bundle=REF.digest, late="keep", deadline_s=60.0))
    scene.open(deadline_s=60.0, late="keep")
    with scene.store.transaction() as tx:
        scene.machine.tick(tx, Now(62.0, 1.0), Outbox())
    with suppress(ZeroDivisionError), scene.store.transaction() as tx:
        scene.machine.tick(tx, Now(122.0, 1.0), Outbox())
        raise ZeroDivisionError  # somebody else's work in the same batch
    with scene.store.transaction() as tx:
        scene.machine.tick(tx, Now(122.0, 1.0), out)
        assert [ref.code for ref in scene.machine.view(tx, RUN, 1).replies] == ["deadline"]
    assert isinstance(out.sends[-1][1], Verdict) and out.sends[-1][1].code == "closed"


@pytest.mark.parametrize("next_n", [0, 3, 1 << 40])
def test_checkpoint_before_an_exchange_that_was_not_opened_is_refused(next_n: int) -> None:
    scene = Scene()
    scene.open()
    with scene.store.transaction() as tx, pytest.raises(BadRequest, match="the next one is 2"):
        scene.machine.checkpoint(tx, Checkpoint(run=RUN, epoch="e", next_n=next_n), NOW, Outbox())


def test_only_the_accepted_reply_is_kept_inline() -> None:
    scene = Scene()
    (notice,) = scene.open()
    assert isinstance(notice, Notice)
    for number in range(5):
        scene.reply(notice, b"reply %d" % number)
    with scene.store.transaction() as tx:
        kept = {blob.inline for blob in tx.find(Blob)}
    assert kept == {PAYLOAD, b"reply 0"}


def test_inline_reply_of_another_size_than_announced_is_declined() -> None:
    scene = Scene()
    (notice,) = scene.open()
    assert isinstance(notice, Notice)
    scene.reply(notice, b"reply", size=6)
    with scene.store.transaction() as tx:
        task = tx.get(Task, RUN, 1, AGENT)
    assert task is not None and (task.state, task.code) == (TaskState.DECLINED, "digest")


def test_revoking_settles_each_task_once_and_asks_nothing_more() -> None:
    scene, out = Scene(), Outbox()
    scene.open(1)
    scene.open(2)
    with scene.store.transaction() as tx:
        scene.machine.withdraw(tx, AGENT, NOW, out)
        turn = tx.get(Turn, RUN, AGENT)
        states = {task.state for task in tx.find(Task, run=RUN)}
    assert turn is not None and turn.waiting == 0 and states == {TaskState.DECLINED}
    assert not [message for _, message in out.sends if isinstance(message, Notice)]


def test_restarts_of_the_coordinator_are_no_deaths_of_runners() -> None:
    scene = Scene()
    for _ in range(5):  # launched, and gone with the coordinator: nobody reports an exit
        with scene.store.transaction() as tx:
            runs.launch(tx, RUN, "next", NOW, Outbox())
    scene.exit_runner(1)
    assert scene.run().live


@pytest.mark.parametrize("code", [1, 4, -9])
def test_runner_that_dies_three_times_without_getting_further_ends_its_run(code: int) -> None:
    scene = Scene()
    for _ in range(runs.MAX_BARREN):
        assert scene.run().live
        scene.exit_runner(code)
    assert scene.run().reason == "runner_died"


def test_repeated_notice_does_not_change_the_code_that_was_vouched_for() -> None:
    machine = core.Core(Ask(agent=AGENT), random.Random(1))
    good, evil = Grant(BlobRef(Digest("a" * 64), 1), "/v1/good"), Grant(BlobRef(Digest("b" * 64), 1), "/v1/evil")
    (notice,) = Scene().open()
    assert isinstance(notice, Notice)
    notice = msgspec.structs.replace(notice, bundle=good, publisher=b"p", signature=b"s")
    machine.handle(notice, 0.0)
    machine.handle(msgspec.structs.replace(notice, bundle=evil, publisher=b"x", signature=b"y", attempt=2), 1.0)
    assert machine.entry is not None
    held = machine.entry.notice
    assert (held.bundle, held.publisher, held.signature, held.attempt) == (good, b"p", b"s", 2)


def test_upload_settles_the_reply_that_waited_for_it_and_no_other() -> None:
    scene = Scene()
    (notice,) = scene.open()
    assert isinstance(notice, Notice)
    blob, other = BlobRef(Digest("a" * 64), 1 << 20), Digest("b" * 64)
    said = Reply(run=RUN, n=1, order=notice.order, digest=blob.digest, size=blob.size)
    with scene.store.transaction() as tx:
        scene.machine.reply(tx, AGENT, said, NOW, need := Outbox())
        tx.put(Blob(digest=blob.digest, size=blob.size, file="f"), Blob(digest=other, size=1, file="g"))
        scene.machine.uploaded(tx, AGENT, other, NOW, nothing := Outbox())
        scene.machine.uploaded(tx, AGENT, blob.digest, NOW, verdict := Outbox())
        for act in verdict.commits:
            act()
        scene.machine.uploaded(tx, AGENT, blob.digest, NOW, again := Outbox())
        task = tx.get(Task, RUN, 1, AGENT)
    assert [type(message) for _, message in need.sends] == [Need]
    assert not nothing.sends and not again.sends
    assert task is not None and (task.state, task.reply) == (TaskState.ACCEPTED, blob.digest)
    assert Verdict(order=notice.order, digest=blob.digest, code="accepted") in [message for _, message in verdict.sends]
