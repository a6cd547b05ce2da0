"""From an order to a reply that may leave: the trainer is called, again where that helps, and its files are kept.

- Killed from outside: again, with back-off, until the deadline; then it is declined.
- An app that ended its own process: once more; then the reply is a Flower `Error` that says how it ended.
- A reply, also one that is an `Error`, is looked at by the egress policy before it is kept.
- Where the owner keeps logs on the device, all texts that a trainer chose (a traceback, what is missing) stay there as
  well: an app can have its trainer say anything.
- An `Error` leaves the app state as it was.
"""

import logging
import mmap
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fedfleet_agent import core, egress, supervisor
from fedfleet_agent.blobs import BlobFolder
from fedfleet_agent.config import Config
from fedfleet_agent.errands import Errands
from fedfleet_agent.errors import AgentError, DiskFull
from fedfleet_protocol.errors import ProtocolError
from fedfleet_protocol.ids import AgentId, Digest, Order, RunId
from fedfleet_protocol.messages import BlobRef
from fedfleet_protocol.reasons import DECLINE

if TYPE_CHECKING:
    from fedfleet_protocol import records

_log = logging.getLogger(__name__)
_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 60.0
_APP_TRIES = 2
_CLIENT_APP_RAISED_EXCEPTION = 2
"""Flower's `ErrorCode` for an app that failed while it was called."""
_MAX_REASON = 8000


class Trainers(Protocol):
    """Who does the work; `Supervisor` says what each method promises."""

    def start(self, work: supervisor.Work) -> None:
        """Begin with an order."""
        ...

    def poll(self) -> list[supervisor.Event]:
        """Return what happened."""
        ...

    def wait_s(self) -> float | None:
        """Return when to poll again at the latest."""
        ...

    def cancel(self, order: Order) -> None:
        """End the work on an order."""
        ...

    def over(self, run: RunId) -> None:
        """End what is kept for a run."""
        ...


@dataclass(slots=True)
class _Job:
    entry: core.Entry
    state: Digest | None
    until: float
    most: float
    app_failures: int = 0
    kills: int = 0
    again_at: float | None = None


class Training:
    """Has at most one order worked on.

    Args:
        trainers: the agent's.
        config: returns the configuration in force.
        errands: where large files are read and made durable.
        post: has something called in the agent's loop.
        happened: takes what the task machine must hear.
        printed: takes lines the app printed.
        moved: is called when the work goes on.
    """

    def __init__(
        self,
        *,
        agent: AgentId,
        trainers: Trainers,
        blobs: BlobFolder,
        config: Callable[[], Config],
        errands: Errands,
        post: Callable[[Callable[[], None]], None],
        clock: Callable[[], float],
        rng: random.Random,
        happened: Callable[[core.AnyEvent], None],
        printed: Callable[[supervisor.Output], None],
        moved: Callable[[], None],
    ) -> None:
        self._agent = agent
        self._trainers = trainers
        self._blobs = blobs
        self._config = config
        self._errands = errands
        self._post = post
        self._clock = clock
        self._rng = rng
        self._happened = happened
        self._printed = printed
        self._moved = moved
        self._job: _Job | None = None

    def begin(self, entry: core.Entry, state: Digest | None, *, until: float) -> None:
        """Work on the task, from that app state, until that time at the latest."""
        most = self._clock() + self._config().limits.time_s
        self._job = _Job(entry, state, min(until, most), most)
        self._start(self._job)

    def extend(self, order: Order, until: float) -> None:
        """The deadline of an order is another now."""
        if self._job is not None and self._job.entry.order == order:
            self._job.until = min(until, self._job.most)

    def cancel(self, order: Order) -> None:
        """End the work on the order; nothing of it is heard any more."""
        if self._job is not None and self._job.entry.order == order:
            self._job = None
        self._trainers.cancel(order)

    def over(self, run: RunId) -> None:
        """End what was kept warm for the run."""
        if self._job is not None and self._job.entry.notice.run == run:
            self._job = None
        self._trainers.over(run)

    def look(self) -> float | None:
        """Take what the trainers told; return in how many seconds to look again at the latest."""
        for event in self._trainers.poll():
            self._take(event)
        job = self._job
        if job is not None and job.again_at is not None and self._clock() >= job.again_at:
            job.again_at = None
            self._start(job)
        waits = [self._trainers.wait_s()]
        if self._job is not None and self._job.again_at is not None:
            waits.append(self._job.again_at - self._clock())
        return min((wait for wait in waits if wait is not None), default=None)

    # --- trying ------------------------------------------------------------------------------------------------------

    def _start(self, job: _Job) -> None:
        notice, config = job.entry.notice, self._config()
        left = job.until - self._clock()
        if left <= 0:
            self._fail(job, "killed" if job.kills else "deadline", "the time for the task is over")
            return
        self._trainers.start(
            supervisor.Work(
                run=notice.run,
                order=notice.order,
                agent=self._agent,
                bundle=self._blobs.path(notice.bundle.blob.digest),
                digest=notice.bundle.blob.digest,
                message=self._blobs.path(notice.payload.blob.digest),
                state=self._blobs.path(job.state) if job.state else None,
                run_config=notice.run_config,
                node_config=config.agent.node_config,
                limit_s=left,
            )
        )

    def _take(self, event: supervisor.Event) -> None:
        job = self._job
        if job is None or job.entry.order != event.order:
            _discard(event)
            return
        match event:
            case supervisor.Progressed():
                self._moved()
            case supervisor.Output():
                self._printed(event)
            case supervisor.Done():
                self._moved()
                self._keep(job, event)
            case supervisor.Failed():
                self._retry(job, event)

    def _retry(self, job: _Job, failed: supervisor.Failed) -> None:
        match failed.code:
            case "outside":
                longest = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2**job.kills)
                job.kills += 1
                job.again_at = self._clock() + self._rng.uniform(longest / 2, longest)
                if job.again_at >= job.until:
                    own = f"killed {job.kills} times"
                    text = self._sayable(job, f"{own}: {failed.text}", own=own, status=failed.status)
                    self._fail(job, "killed", text)
            case "app":
                job.app_failures += 1
                if job.app_failures < _APP_TRIES:
                    job.again_at = self._clock()
                else:
                    self._keep_failure(job, self._sayable(job, failed.text, status=failed.status))
            case "deadline":
                self._fail(job, failed.code, failed.text)  # the supervisor's word; no trainer can say that
            case _:
                own = DECLINE[failed.code]
                text = self._sayable(job, failed.text, own=own, status=failed.status)
                where = f" (on agent {self._agent})" if failed.code == "packages" else ""
                self._fail(job, failed.code, f"{text}{where}")

    def _sayable(self, job: _Job, text: str, *, own: str = "the app failed", status: int | None = None) -> str:
        """Return what may leave of a trainer's words; the device's own log has them all if that is not everything."""
        sayable = egress.judge_text(self._config().egress, text, own=own, status=status)
        if sayable != text:
            notice = job.entry.notice
            _log.warning("kept on this device: %s", text[-_MAX_REASON:], extra={"run": notice.run, "n": notice.n})
        return sayable

    def _fail(self, job: _Job, code: str, text: str) -> None:
        self._job = None
        self._happened(core.Failed(job.entry.order, code, text))

    # --- keeping what came out ---------------------------------------------------------------------------------------

    def _keep(self, job: _Job, done: supervisor.Done) -> None:
        def keep() -> core.AnyEvent:
            state = job.state
            if not done.failed:
                state = self._adopt(done.state) if done.state else None
            failure = None if self._config().egress.logs else failure_in(done.reply.path)
            if failure is not None:  # looked for whatever `failed` says: the trainer's word proves nothing
                return self._failure(job, failure.code, self._sayable(job, failure.reason))
            size = done.reply.path.stat().st_size
            withheld = self._withheld(job, size)
            return withheld or core.Worked(job.entry.order, BlobRef(self._adopt(done.reply), size), state)

        self._on_disk(job, keep, (done.reply, done.state))

    def _keep_failure(self, job: _Job, text: str) -> None:
        self._on_disk(job, lambda: self._failure(job, _CLIENT_APP_RAISED_EXCEPTION, text), ())

    def _failure(self, job: _Job, code: int, text: str) -> core.AnyEvent:
        """Keep a Flower `Error` as the reply; the app state stays as it was."""
        from fedfleet_protocol import records  # an agent whose apps do not fail never needs it

        message_type, group_id = self.about(job.entry)
        failure = records.Failure(code, text[-_MAX_REASON:])
        content = records.encode(message_type=message_type, group_id=group_id, failure=failure)
        withheld = self._withheld(job, sum(len(piece) for piece in content.pieces()))
        if withheld is not None:
            return withheld
        blocks = self._blobs.put(content.pieces())
        return core.Worked(job.entry.order, BlobRef(blocks.digest, blocks.size), job.state)

    def _withheld(self, job: _Job, size: int) -> core.Failed | None:
        verdict = egress.judge_reply(self._config().egress, self.about(job.entry)[0], size)
        if isinstance(verdict, egress.Withheld):
            return core.Failed(job.entry.order, verdict.code, verdict.text)
        return None

    def _on_disk(
        self, job: _Job, keep: Callable[[], core.AnyEvent], handed: tuple[supervisor.Handed | None, ...]
    ) -> None:
        """Do `keep` where it does not hold up the loop; what it returns, or how it failed, is heard by the machine."""

        def work() -> None:
            try:
                event = keep()
            except DiskFull as error:
                event = core.Failed(job.entry.order, "disk", str(error))
            except (AgentError, ProtocolError, OSError) as error:
                own = "what the trainer left cannot be kept"
                event = core.Failed(job.entry.order, "killed", self._sayable(job, f"{own}: {error}", own=own))
            for left in handed:
                if left is not None:
                    left.path.unlink(missing_ok=True)
            self._post(lambda: self._kept(job, event))

        self._errands.send("keep", work)

    def _kept(self, job: _Job, event: core.AnyEvent) -> None:
        if self._job is job:
            self._job = None
            self._happened(event)

    def _adopt(self, handed: supervisor.Handed) -> Digest:
        return self._blobs.adopt(handed.path).digest

    def about(self, entry: core.Entry) -> tuple[str, str]:
        """Return message type and group of a task whose payload is here.

        Raises:
            ProtocolError: the payload is no content.
        """
        return about(self._blobs.path(entry.notice.payload.blob.digest))


def about(payload: Path) -> tuple[str, str]:
    """Return the message type and the group of the content in a file. Raises `ProtocolError` if it is none."""
    from fedfleet_protocol import records  # needed once there is work

    head = records.peek(_mapped(payload))
    return head.message_type, head.group_id


def failure_in(reply: Path) -> "records.Failure | None":
    """Return the failure that the content in a file is, if it is one. Raises `ProtocolError` if it is no content."""
    from fedfleet_protocol import records

    return records.decode(_mapped(reply)).failure


def _mapped(file: Path) -> bytes | mmap.mmap:
    with file.open("rb") as stream:
        empty = os.fstat(stream.fileno()).st_size == 0
        # Not closed by hand: the traceback of a content that is refused still looks into it.
        return b"" if empty else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _discard(event: supervisor.Event) -> None:
    if isinstance(event, supervisor.Done):
        for handed in (event.reply, event.state):
            if handed is not None:
                handed.path.unlink(missing_ok=True)
