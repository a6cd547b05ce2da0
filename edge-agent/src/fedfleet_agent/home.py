"""The agent's state folder: where its files lie, who may work in it, and what `status` reads.

agent.toml       what the owner decides
identity.pem ..  key, certificate and what the coordinator said of itself (`enrol`)
journal.sqlite   the task at hand, what is kept of runs, the ledger (`journal`); `reserve` beside it
blobs/           payloads, bundles, replies, app states (`blobs`)
handover/        files on their way to and from the trainer
status.json      what the running agent last said of itself
paused           is there while the owner has paused the agent
lock             held by the running agent; its process id is in it
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

import msgspec

from fedfleet_agent.blobs import BlobFolder
from fedfleet_agent.errors import AgentError, AlreadyRunning
from fedfleet_agent.journal import SqliteJournal

DEFAULT: Final = Path("~/.fedfleet/agent")


class Report(msgspec.Struct, frozen=True):
    """What the running agent says of itself.

    Attributes:
        at: seconds since the epoch.
        connected: whether the control link is up.
        code, text: why it may not train now; empty if it may.
        run, n, stage, attempt: the task at hand; `stage` is "idle" without one.
        trouble: what last went wrong, for a person.
    """

    at: float = 0.0
    agent: str = ""
    version: str = ""
    connected: bool = False
    code: str = ""
    text: str = ""
    run: str = ""
    n: int = 0
    stage: str = "idle"
    attempt: int = 0
    trouble: str = ""


class Home:
    """One agent's state folder.

    Args:
        folder: is made if it is not there, for its owner only.

    Raises:
        AgentError: it cannot be made or entered.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().resolve()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise AgentError(
                f"the state folder {self.folder} cannot be made: {error.strerror}; choose another with --state"
            ) from error
        if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise AgentError(
                f"the state folder {self.folder} belongs to somebody else; run this as that user, or choose --state"
            )

    @property
    def config_file(self) -> Path:
        """Where the owner's configuration is, unless another file is named."""
        return self.folder / "agent.toml"

    @property
    def key_file(self) -> Path:
        """Where the agent's key is, with its certificate."""
        return self.folder / "identity.pem"

    @property
    def journal_file(self) -> Path:
        """Where the journal is."""
        return self.folder / "journal.sqlite"

    @property
    def handover(self) -> Path:
        """The folder that trainers share."""
        return self.folder / "handover"

    def journal(self) -> SqliteJournal:
        """Return the journal, opened. Raises `JournalError`."""
        return SqliteJournal(self.journal_file, self.folder / "reserve")

    def blobs(self) -> BlobFolder:
        """Return the blob folder."""
        return BlobFolder(self.folder / "blobs")

    # --- one agent at a time -----------------------------------------------------------------------------------------

    def lock(self) -> IO[str]:
        """Return the lock, held until it is closed.

        Raises:
            AlreadyRunning: another agent holds it.
        """
        stream = (self.folder / "lock").open("a+", encoding="ascii")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.close()
            raise AlreadyRunning(
                f"another agent (process {self.running() or 'unknown'}) works in {self.folder}; stop it first, "
                "or give this one a folder of its own with --state"
            ) from error
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        return stream

    def running(self) -> int | None:
        """Return the process id of the agent that works here, or None if none does."""
        try:
            with (self.folder / "lock").open(encoding="ascii") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    return int(stream.read() or 0) or None
        except (OSError, ValueError):
            pass
        return None

    # --- the owner's switch ------------------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Whether the owner paused the agent."""
        return (self.folder / "paused").exists()

    def pause(self, paused: bool) -> None:
        """Make the agent paused, or not; it outlives a restart."""
        if paused:
            (self.folder / "paused").touch(mode=0o600)
        else:
            (self.folder / "paused").unlink(missing_ok=True)

    # --- what is said of it ------------------------------------------------------------------------------------------

    def write_report(self, report: Report) -> None:
        """Replace the status file; on a full disk the old one stays, for nothing depends on it."""
        aside = self.folder / "status.json.new"
        with suppress(OSError):
            aside.write_bytes(msgspec.json.encode(report))
            aside.replace(self.folder / "status.json")

    def read_report(self) -> Report:
        """Return what the agent last said of itself; an empty report if it never did."""
        try:
            return msgspec.json.decode((self.folder / "status.json").read_bytes(), type=Report)
        except (OSError, msgspec.MsgspecError):
            return Report()
