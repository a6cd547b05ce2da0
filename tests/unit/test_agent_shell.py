"""The agent between its machine and the world: what it tells the hub, keeps on disk, and does when either fails."""

import queue
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedfleet_agent import supervisor
from fedfleet_agent.agent import Agent
from fedfleet_agent.blobs import BlobFolder
from fedfleet_agent.config import Config, Limits
from fedfleet_agent.egress import Policy
from fedfleet_agent.eligibility import Eligible, Ineligible
from fedfleet_agent.errors import DiskFull, GrantRefused, HubUnreachable
from fedfleet_agent.testing import MemoryJournal, MemoryMover, ScriptedTrainers
from fedfleet_protocol import records
from fedfleet_protocol.blocks import blocks_of
from fedfleet_protocol.exchange import order_of
from fedfleet_protocol.ids import NO_BASE, AgentId, Digest, RunId
from fedfleet_protocol.messages import (
    Answer,
    Ask,
    BlobRef,
    Decline,
    FromAgent,
    Grant,
    Log,
    Need,
    Notice,
    Over,
    Progress,
    Reply,
    Verdict,
)
from fedfleet_protocol.reasons import DECLINE
from fedfleet_protocol.task import Stage
from fedfleet_protocol.trust import sign_bundle

ME, RUN = AgentId("a-" + "0" * 26), RunId("r-" + "0" * 26)
PUBLISHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
BUNDLE = b"a bundle"


def content(message_type: str = "train", loss: float = 0.5) -> bytes:
    made = records.encode((records.RecordValue("m", "metrics", (), {"loss": loss}),), message_type=message_type)
    return b"".join(made.pieces())


def ref(data: bytes) -> BlobRef:
    blocks = blocks_of([data])
    return BlobRef(blocks.digest, blocks.size)


class Scene:
    """An agent, everything around it, and its hub as far as the test plays it."""

    def __init__(self, folder: Path, *, journal: MemoryJournal | None = None, **sections: object) -> None:
        self.folder = folder
        self.journal = journal or MemoryJournal()
        self.blobs = BlobFolder(folder / "blobs")
        self.trainers = ScriptedTrainers()
        self.mover = MemoryMover()
        self.config = Config(trusted={PUBLISHER.public_key().public_bytes_raw(): "lab"}, **sections)  # type: ignore[arg-type]
        self.verdict: Eligible | Ineligible = Eligible()
        self.said: list[FromAgent] = []
        self.asked: list[Ask] = []
        self.answers: list[Answer | Exception] = []
        self.time = 0.0
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.mover.blobs[ref(BUNDLE).digest] = BUNDLE
        self.agent = Agent(
            agent=ME,
            around=self,
            journal=self.journal,
            blobs=self.blobs,
            trainers=self.trainers,
            post=self._posted.put,
            clock=lambda: self.time,
            rng=random.Random(1),
        )

    # --- surroundings ---

    def say(self, message: FromAgent) -> bool:
        self.said.append(message)
        return True

    def ask(self, question: Ask) -> Answer:
        self.asked.append(question)
        answer = self.answers.pop(0) if self.answers else Answer()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def transfer(self) -> MemoryMover:
        return self.mover

    def judge(self) -> Eligible | Ineligible:
        return self.verdict

    # --- the test's hands ---

    def until(self, holds: Callable[[], bool]) -> None:
        """Run what the errands post until `holds`."""
        end = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < end, (self.agent.stage, self.said)
            self.agent.look()
            try:
                self._posted.get(timeout=0.02)()
            except queue.Empty:
                continue

    def notice(self, n: int = 1, base: Digest = NO_BASE, payload: bytes = content(), **changes: object) -> Notice:
        bundle = ref(BUNDLE)
        fields: dict[str, object] = {
            "run": RUN,
            "n": n,
            "agent": ME,
            "base": base,
            "order": order_of(run=RUN, n=n, agent=ME, payload=ref(payload).digest, base=base),
            "payload": Grant(ref(payload), inline=payload),
            "bundle": Grant(bundle, "/v1/blobs/x", "old"),
            "remaining_s": 100.0,
            "publisher": PUBLISHER.public_key().public_bytes_raw(),
            "signature": sign_bundle(PUBLISHER, bundle.digest),
        }
        return Notice(**{**fields, **changes})  # type: ignore[arg-type]

    def hear(self, message: Notice | Need | Verdict | Over) -> bool:
        """Return whether the message was acknowledged at once."""
        acked: list[bool] = []
        self.agent.hear(message, lambda: acked.append(True))
        return bool(acked)

    def train(self, notice: Notice) -> None:
        """Bring the agent to where its trainer works on the task."""
        begun = len(self.trainers.started)
        self.hear(notice)
        self.until(lambda: len(self.trainers.started) > begun)

    def done(self, notice: Notice, reply: bytes, state: bytes | None = None, *, failed: bool = False) -> None:
        """Have the trainer be done, and wait until the agent is no longer busy with it."""
        handed = [self._handed(data) for data in (reply, state)]
        assert handed[0] is not None
        self.trainers.tell(supervisor.Done(notice.order, handed[0], handed[1], failed))
        self.until(lambda: self.agent.stage is not Stage.TRAINING)

    def _handed(self, data: bytes | None) -> supervisor.Handed | None:
        if data is None:
            return None
        path = self.folder / f"handed-{len(list(self.folder.iterdir()))}"
        path.write_bytes(data)
        return supervisor.Handed(path, blocks_of([data]))

    def heard_of(self, kind: type[FromAgent]) -> list[FromAgent]:
        return [message for message in self.said if isinstance(message, kind)]

    def close(self) -> None:
        self.agent.close()


@pytest.fixture
def play(tmp_path: Path) -> "Callable[..., Scene]":
    def make(**arguments: object) -> Scene:
        return Scene(tmp_path, **arguments)  # type: ignore[arg-type]

    return make


Play = Callable[..., Scene]


def test_a_task_goes_from_notice_to_accepted_reply(play: Play) -> None:
    scene = play()
    scene.agent.start()
    notice = scene.notice()
    assert scene.hear(notice)
    assert scene.journal.load().entry is not None
    scene.until(lambda: bool(scene.trainers.started))
    work = scene.trainers.started[0]
    assert work.message.read_bytes() == content()
    assert work.bundle.read_bytes() == BUNDLE
    assert (work.state, work.limit_s) == (None, 100.0)
    reply = content(loss=0.25)
    scene.done(notice, reply, b"state")
    (said,) = scene.heard_of(Reply)
    assert said == Reply(
        run=RUN, n=1, order=notice.order, digest=ref(reply).digest, size=len(reply), attempt=1, inline=reply
    )
    scene.hear(Verdict(order=notice.order, digest=ref(reply).digest, code="accepted"))
    assert scene.agent.stage is Stage.IDLE
    held = scene.journal.load()
    assert (held.entry, held.lineages[0].newest) == (None, ref(reply).digest)
    assert scene.blobs.has(ref(b"state").digest)
    assert not scene.blobs.has(ref(reply).digest)
    assert [line.what for line in scene.journal.ledger()] == ["trusted", "ready", "accepted"]
    scene.hear(Over(run=RUN))
    assert scene.trainers.ended == [RUN]
    assert list(scene.blobs.folder.iterdir()) == []
    scene.close()


def test_the_next_task_starts_from_the_state_of_the_accepted_one_and_fetches_the_bundle_once(play: Play) -> None:
    scene = play()
    first = scene.notice()
    scene.train(first)
    scene.done(first, content(), b"state")
    scene.hear(Verdict(order=first.order, digest=ref(content()).digest, code="accepted"))
    second = scene.notice(n=2, base=ref(content()).digest)
    scene.train(second)
    state = scene.trainers.started[1].state
    assert state is not None
    assert state.read_bytes() == b"state"
    assert scene.mover.capabilities.count("old") == 1
    scene.close()


def test_a_large_reply_is_uploaded_when_the_hub_needs_it(play: Play) -> None:
    scene = play()
    notice = scene.notice()
    scene.train(notice)
    reply = content() + bytes(100_000)
    scene.done(notice, reply)
    (said,) = scene.heard_of(Reply)
    assert isinstance(said, Reply)
    assert said.inline is None
    scene.hear(Need(order=notice.order, digest=said.digest, upload=Grant(BlobRef(said.digest, said.size), "/u", "c")))
    scene.until(lambda: len(scene.heard_of(Reply)) == 2)
    assert scene.mover.blobs[said.digest] == reply
    scene.close()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"signature": bytes(64)}, "untrusted"),
        ({"publisher": bytes(32)}, "untrusted"),
        ({"payload": content("secret")}, "egress"),
        ({"payload": b"garbage"}, "payload"),
    ],
)
def test_what_must_not_be_worked_on_is_declined_before_a_trainer_starts(
    play: Play, change: dict[str, object], code: str
) -> None:
    scene = play()
    scene.hear(scene.notice(**change))  # type: ignore[arg-type]
    scene.until(lambda: bool(scene.heard_of(Decline)))
    (said,) = scene.heard_of(Decline)
    assert isinstance(said, Decline)
    assert said.code == code
    assert said.text
    assert (scene.trainers.started, scene.agent.stage, scene.journal.load().entry) == ([], Stage.IDLE, None)
    assert scene.journal.ledger()[-1].what == "declined"
    scene.close()


def test_an_ineligible_device_declines_with_the_reason(play: Play) -> None:
    scene = play()
    scene.verdict = Ineligible("battery", "battery 11% < 20%")
    notice = scene.notice()
    scene.hear(notice)
    assert scene.said == [Decline(run=RUN, n=1, order=notice.order, code="battery", text="battery 11% < 20%")]
    scene.close()


def test_a_reply_larger_than_the_owner_allows_stays(play: Play) -> None:
    scene = play(egress=Policy(max_reply_mb=0.001))
    notice = scene.notice()
    scene.train(notice)
    scene.done(notice, content() + bytes(2000))
    (said,) = scene.heard_of(Decline)
    assert isinstance(said, Decline)
    assert said.code == "too_large"
    assert scene.heard_of(Reply) == []
    scene.close()


def test_a_task_that_needs_more_disk_than_the_owner_allows_is_declined(play: Play) -> None:
    scene = play(limits=Limits(disk_mb=1))
    scene.hear(scene.notice(payload=content(), bundle=Grant(BlobRef(ref(BUNDLE).digest, 2_000_000))))
    scene.until(lambda: bool(scene.heard_of(Decline)))
    assert "[limits] disk_mb" in scene.heard_of(Decline)[0].text  # type: ignore[union-attr]
    scene.close()


def test_an_app_that_crashes_is_called_once_more_and_then_reported_as_flowers_error(play: Play) -> None:
    scene = play()
    notice = scene.notice()
    scene.train(notice)
    scene.trainers.tell(supervisor.Failed(notice.order, "app", "signal 11"))
    scene.until(lambda: len(scene.trainers.started) == 2)
    scene.trainers.tell(supervisor.Failed(notice.order, "app", "signal 11 again"))
    scene.until(lambda: bool(scene.heard_of(Reply)))
    (said,) = scene.heard_of(Reply)
    assert isinstance(said, Reply)
    assert said.inline is not None
    manifest = records.decode(said.inline)
    assert manifest.failure == records.Failure(2, "signal 11 again")
    assert manifest.message_type == "train"
    scene.close()


def failure(reason: str, code: int = 2) -> bytes:
    made = records.encode(message_type="train", failure=records.Failure(code, reason))
    return b"".join(made.pieces())


def said_of(scene: Scene) -> records.Failure:
    """Return the Flower `Error` that left the device."""
    (said,) = scene.heard_of(Reply)
    assert isinstance(said, Reply)
    assert said.inline is not None
    found = records.decode(said.inline).failure
    assert found is not None
    return found


def test_what_an_app_printed_before_it_crashed_stays_where_the_owner_keeps_logs(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    scene = play(egress=Policy(logs=False))
    notice = scene.notice()
    scene.train(notice)
    for tries in (2, 3):
        scene.trainers.tell(supervisor.Failed(notice.order, "app", "the last it printed:\nname: Ada", status=3))
        scene.until(lambda tries=tries: len(scene.trainers.started) == tries or bool(scene.heard_of(Reply)))  # type: ignore[misc]
    reason = said_of(scene).reason
    assert "Ada" not in reason
    assert "exit status 3" in reason
    assert "[egress] logs" in reason
    assert "Ada" in caplog.text
    scene.close()


@pytest.mark.parametrize("failed", [True, False])
def test_the_traceback_of_an_app_stays_where_the_owner_keeps_logs(
    play: Play, caplog: pytest.LogCaptureFixture, failed: bool
) -> None:
    scene = play(egress=Policy(logs=False))
    notice = scene.notice()
    scene.train(notice)
    scene.done(notice, failure("KeyError: 'Ada'", 7), failed=failed)
    assert said_of(scene).code == 7
    assert "Ada" not in said_of(scene).reason
    assert "Ada" in caplog.text
    scene.close()


def test_what_an_app_raised_when_loaded_stays_where_the_owner_keeps_logs(play: Play) -> None:
    scene = play(egress=Policy(logs=False))
    notice = scene.notice()
    scene.train(notice)
    scene.trainers.tell(supervisor.Failed(notice.order, "bundle", "KeyError: 'Ada'"))
    scene.until(lambda: bool(scene.heard_of(Decline)))
    (said,) = scene.heard_of(Decline)
    assert isinstance(said, Decline)
    assert said.code == "bundle"
    assert "Ada" not in said.text
    assert not any("Ada" in line.text for line in scene.journal.ledger())
    scene.close()


def test_the_report_of_a_crash_is_a_reply_that_the_policy_judges(play: Play) -> None:
    scene = play(egress=Policy(max_reply_mb=0.001))
    notice = scene.notice()
    scene.train(notice)
    for tries in (2, 3):
        scene.trainers.tell(supervisor.Failed(notice.order, "app", "x" * 5000))
        scene.until(lambda tries=tries: len(scene.trainers.started) == tries or bool(scene.said))  # type: ignore[misc]
    scene.until(lambda: bool(scene.heard_of(Decline)))
    assert scene.heard_of(Decline)[0].code == "too_large"  # type: ignore[union-attr]
    assert scene.heard_of(Reply) == []
    scene.close()


def test_a_device_that_lacks_packages_says_which_device_it_is(play: Play) -> None:
    scene = play()
    notice = scene.notice()
    scene.train(notice)
    scene.trainers.tell(supervisor.Failed(notice.order, "packages", "torch is not installed here"))
    scene.until(lambda: bool(scene.heard_of(Decline)))
    assert scene.heard_of(Decline)[0].text == f"torch is not installed here (on agent {ME})"  # type: ignore[union-attr]
    scene.close()


@pytest.mark.parametrize("code", ["packages", "bundle", "disk", "isolation"])
def test_why_a_trainer_declines_is_said_in_the_agents_words_where_the_owner_keeps_logs(
    play: Play, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    scene = play(egress=Policy(logs=False))
    notice = scene.notice()
    scene.train(notice)
    scene.trainers.tell(supervisor.Failed(notice.order, code, "name: Ada"))
    scene.until(lambda: bool(scene.heard_of(Decline)))
    (said,) = scene.heard_of(Decline)
    assert isinstance(said, Decline)
    assert (said.code, said.text.startswith(DECLINE[code]), "[egress] logs" in said.text) == (code, True, True)
    assert "Ada" not in said.text
    assert "Ada" in caplog.text
    scene.close()


def test_that_the_time_is_over_is_the_agents_own_word(play: Play) -> None:
    scene = play(egress=Policy(logs=False))
    notice = scene.notice()
    scene.train(notice)
    scene.trainers.tell(supervisor.Failed(notice.order, "deadline", "ended after 60 seconds"))
    scene.until(lambda: bool(scene.heard_of(Decline)))
    assert scene.heard_of(Decline)[0].text == "ended after 60 seconds"  # type: ignore[union-attr]
    scene.close()


def test_how_a_trainer_was_killed_stays_where_the_owner_keeps_logs(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    scene = play(egress=Policy(logs=False))
    notice = scene.notice()
    scene.train(notice)
    scene.time = 99.9
    scene.trainers.tell(supervisor.Failed(notice.order, "outside", "name: Ada", status=-9))
    scene.until(lambda: bool(scene.heard_of(Decline)))
    (said,) = scene.heard_of(Decline)
    assert isinstance(said, Decline)
    assert (said.code, said.text.startswith("killed 1 times"), "signal 9" in said.text) == ("killed", True, True)
    assert "Ada" not in said.text
    assert "Ada" in caplog.text
    scene.close()


def test_what_is_wrong_with_a_reply_stays_where_the_owner_keeps_logs(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    scene = play(egress=Policy(logs=False))
    notice = scene.notice()
    scene.train(notice)
    scene.done(notice, content()[:8] + b"how long a manifest is can be a word, too")
    scene.until(lambda: bool(scene.heard_of(Decline)))
    (said,) = scene.heard_of(Decline)
    assert isinstance(said, Decline)
    assert (said.code, said.text) == (
        "killed",
        "what the trainer left cannot be kept; the device keeps what it said in its own log ([egress] logs = false)",
    )
    assert "what the trainer left" in caplog.text
    scene.close()


def test_a_trainer_killed_from_outside_is_started_again_until_the_deadline(play: Play) -> None:
    scene = play()
    notice = scene.notice()
    scene.train(notice)
    for tries in range(2, 5):
        scene.trainers.tell(supervisor.Failed(notice.order, "outside", "signal 9"))
        scene.agent.look()
        scene.time += 10
        scene.until(lambda tries=tries: len(scene.trainers.started) == tries)  # type: ignore[misc]
    assert scene.trainers.started[-1].limit_s == pytest.approx(70)
    scene.time = 99.9
    scene.trainers.tell(supervisor.Failed(notice.order, "outside", "signal 9"))
    scene.until(lambda: bool(scene.heard_of(Decline)))
    assert scene.heard_of(Decline)[0].code == "killed"  # type: ignore[union-attr]
    scene.close()


def test_an_error_of_the_app_leaves_its_state_as_it_was(play: Play) -> None:
    scene = play()
    first = scene.notice()
    scene.train(first)
    scene.done(first, content(), b"state")
    scene.hear(Verdict(order=first.order, digest=ref(content()).digest, code="accepted"))
    second = scene.notice(n=2, base=ref(content()).digest)
    scene.train(second)
    scene.done(second, b"error", None, failed=True)
    entry = scene.journal.load().entry
    assert entry is not None
    assert entry.state == ref(b"state").digest
    scene.close()


def test_a_pause_gives_back_what_is_being_trained(play: Play) -> None:
    scene = play()
    notice = scene.notice()
    scene.train(notice)
    scene.agent.unfit(Ineligible("load", "too busy"))
    assert scene.trainers.cancelled == []
    scene.agent.unfit(Ineligible("paused", "paused by the owner"))
    assert scene.trainers.cancelled == [notice.order]
    assert scene.heard_of(Decline)[0].code == "paused"  # type: ignore[union-attr]
    scene.trainers.tell(supervisor.Progressed(notice.order))
    scene.agent.look()
    assert scene.agent.stage is Stage.IDLE
    scene.close()


def test_a_grant_that_expired_is_replaced_by_asking(play: Play) -> None:
    scene = play()
    scene.mover.refusals.append(GrantRefused("expired"))
    notice = scene.notice()
    renewed = scene.notice(attempt=2, bundle=Grant(ref(BUNDLE), "/v1/blobs/x", "new"))
    scene.answers = [Answer(open=(renewed,))]
    scene.train(notice)
    assert scene.mover.capabilities[:2] == ["old", "new"]
    scene.close()


def test_a_question_that_gets_no_answer_is_asked_again(play: Play) -> None:
    scene = play()
    scene.answers = [HubUnreachable("no route")]
    scene.agent.connected()
    scene.until(lambda: bool(scene.agent.trouble))
    assert scene.agent.trouble == "no route"
    scene.time += 60
    scene.until(lambda: len(scene.asked) == 2 and not scene.agent.trouble)
    scene.close()


def test_a_task_that_a_full_disk_cannot_take_is_declined_and_nothing_else_is_lost(play: Play) -> None:
    journal = MemoryJournal()
    scene = play(journal=journal)
    first = scene.notice()
    scene.train(first)
    scene.done(first, content(), b"state")
    scene.hear(Verdict(order=first.order, digest=ref(content()).digest, code="accepted"))
    kept = journal.load()

    def full(moment: str) -> None:
        if moment == "before":
            raise DiskFull("no room left; free some space")

    journal.hook = full
    second = scene.notice(n=2, base=ref(content()).digest)
    assert scene.hear(second)
    (said,) = scene.heard_of(Decline)
    assert said == Decline(run=RUN, n=2, order=second.order, code="disk", text="no room left; free some space")
    assert (journal.load(), scene.agent.stage) == (kept, Stage.IDLE)
    journal.hook = lambda _: None
    scene.train(second)
    scene.close()


class Crash(BaseException):
    """The process dies."""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_crash_on_either_side_of_the_commit_of_a_reply_loses_nothing(play: Play, moment: str) -> None:
    journal = MemoryJournal()
    scene = play(journal=journal)
    notice = scene.notice()
    scene.train(notice)

    def crash(at: str) -> None:
        if at == moment:
            raise Crash

    journal.hook = crash
    with pytest.raises(Crash):
        scene.done(notice, content(), b"state")
    scene.close()
    journal.hook = lambda _: None
    again = play(journal=journal)
    again.agent.start()
    if moment == "before":
        again.until(lambda: bool(again.trainers.started))
        again.done(notice, content(), b"state")
    else:
        again.agent.connected()
    assert again.heard_of(Reply)[0].digest == ref(content()).digest  # type: ignore[union-attr]
    assert again.trainers.started == [] or moment == "before"
    assert again.blobs.has(ref(b"state").digest)
    again.close()


def test_progress_renews_the_lease_with_the_newest_attempt_and_standing_still_does_not(play: Play) -> None:
    scene = play()
    notice = scene.notice(lease_s=0.15)
    scene.train(notice)
    time.sleep(0.2)
    scene.said.clear()
    time.sleep(0.2)
    assert scene.heard_of(Progress) == []
    scene.hear(scene.notice(lease_s=0.15, attempt=3))
    scene.trainers.tell(supervisor.Progressed(notice.order))
    scene.until(lambda: bool(scene.heard_of(Progress)))
    assert scene.heard_of(Progress)[0] == Progress(order=notice.order, run=RUN, n=1, attempt=3)
    scene.close()


def test_what_an_app_prints_leaves_within_the_owners_limits(play: Play) -> None:
    scene = play(limits=Limits(log_lines_per_s=2))
    notice = scene.notice()
    scene.train(notice)
    lines = tuple(f"line {number}" for number in range(30))
    scene.trainers.tell(supervisor.Output(notice.order, RUN, "stdout", lines, 5))
    scene.agent.look()
    assert scene.heard_of(Log) == [Log(run=RUN, n=1, lines=lines[:10], dropped=25)]
    scene.close()


def test_no_line_leaves_if_the_owner_says_so(play: Play) -> None:
    scene = play(egress=Policy(logs=False))
    notice = scene.notice()
    scene.train(notice)
    scene.trainers.tell(supervisor.Output(notice.order, RUN, "stdout", ("secret",), 0))
    scene.agent.look()
    assert scene.heard_of(Log) == []
    scene.close()


def test_a_clock_that_somebody_sets_changes_nothing(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    leaps = random.Random(3)
    monkeypatch.setattr("time.time", lambda: leaps.uniform(0, 4e9))
    scene = play()
    notice = scene.notice()
    scene.train(notice)
    assert scene.trainers.started[0].limit_s == 100
    scene.time = 40
    scene.hear(scene.notice(attempt=2, remaining_s=60.0))
    scene.trainers.tell(supervisor.Failed(notice.order, "app", "signal 11"))
    scene.until(lambda: len(scene.trainers.started) == 2)
    assert scene.trainers.started[1].limit_s == 60
    scene.done(notice, content())
    scene.hear(Verdict(order=notice.order, digest=ref(content()).digest, code="accepted"))
    assert [line.what for line in scene.journal.ledger()] == ["trusted", "ready", "accepted"]
    scene.close()
