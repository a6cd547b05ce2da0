"""Starts runners and follows them: as child processes here; in a cluster the operator makes Jobs instead.

A runner gets a folder of its own with a certificate for its run, and one end of a socket pair over which it may ask for
read-only descriptors of blobs. It gets neither the database, nor the blob folder, nor a CA. When it dies without
having ended its run another one is started after a back-off.

Python and Flower take half a second to start. So once a run has ended here one process is started ahead: it waits at
its end of the socket pair, knows nothing, and is told its folder when there is a run. It ends when that end closes.
"""

import array
import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import fedfleet_sandbox
from fedfleet_coordinator import runs
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.engine import Engine
from fedfleet_coordinator.errors import CoordinatorError
from fedfleet_coordinator.exchanges import Exchanges
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.rows import Blob, Managed, Ref, Run
from fedfleet_coordinator.runner.confinement import ENVIRONMENT as CONFINEMENT
from fedfleet_coordinator.runner.confinement import spelled
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.errors import Malformed
from fedfleet_protocol.ids import Digest, RunId, parse_digest

_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_POLL_S = 1.0
_MAX_ASKED_BYTES = 8192
_SAFE_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "HOME", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "FLWR_HOME")
_log = logging.getLogger(__name__)


class Credentials(Protocol):
    """Makes what a runner proves its run with."""

    def runner_files(self, run: RunId) -> dict[str, bytes]:
        """Return the files a runner of this run needs to speak to the coordinator, by name."""
        ...


@dataclass(frozen=True, slots=True)
class _Started:
    """A runner process, our end of its socket pair, and its folder."""

    process: asyncio.subprocess.Process
    end: socket.socket
    home: Path


class Launcher:
    """Keeps one runner process for each live run.

    Args:
        folder: where runners' own folders are; removed with each runner.
        url: the coordinator's address.
        blob_path: returns the path of a stored blob's file.
        confined: whether runners confine themselves to their folder and the API.
        readable, writable: what confined ones may read, and write, besides.
        memory_bytes, file_bytes: what a runner may take, and how large its files may be; 0 for no bound.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        exchanges: Exchanges,
        credentials: Credentials,
        folder: Path,
        url: str,
        blob_path: Callable[[str], Path],
        confined: bool = True,
        readable: tuple[str, ...] = (),
        writable: tuple[str, ...] = (),
        memory_bytes: int = 0,
        file_bytes: int = 0,
    ) -> None:
        self._engine, self._exchanges, self._credentials = engine, exchanges, credentials
        self._folder, self._url, self._blob_path = folder, url, blob_path
        self._confined, self._readable, self._writable = confined, readable, writable
        if confined and not fedfleet_sandbox.probe().landlock:
            _log.warning(
                "this kernel has no Landlock, so a ServerApp can read what this user can: run the coordinator on Linux "
                "5.13 or later with landlock among the names of lsm="
            )
        self._bounds = {"memory_bytes": memory_bytes, "file_bytes": file_bytes}
        self._followed: dict[RunId, asyncio.Task[None]] = {}
        self._processes: dict[RunId, asyncio.subprocess.Process] = {}
        self._spare: _Started | None = None
        self._renewing = False
        shutil.rmtree(folder, ignore_errors=True)  # keys of runners that a killed coordinator left behind

    async def follow(self) -> None:
        """Start a runner for every live run that has none, now and whenever there is a new one; stop the others."""
        while True:
            live = await self._engine.do(_ours)
            for run in live:
                if run.run not in self._followed:
                    self._followed[run.run] = asyncio.create_task(self._keep(run.run))
            for ended in self._followed.keys() - {run.run for run in live}:
                if self._followed[ended].done():
                    del self._followed[ended]
                elif ended in self._processes:
                    asyncio.get_running_loop().call_later(5.0, self._kill, ended)
            await asyncio.sleep(_POLL_S)

    def wake(self, run: RunId) -> None:
        """Start a runner for a run that was just submitted, without waiting for the next look."""
        if run not in self._followed:
            self._followed[run] = asyncio.create_task(self._keep(run))

    async def close(self) -> None:
        """Stop every runner; their runs go on when the coordinator is back."""
        for run in list(self._processes):
            self._kill(run)
        for task in self._followed.values():
            task.cancel()
        await asyncio.gather(*self._followed.values(), return_exceptions=True)
        if self._spare is not None:
            await _end(self._spare)
            self._spare = None

    async def _keep(self, run_id: RunId) -> None:
        """Run one runner after the other until the run has ended."""
        tries = 0
        while True:
            try:
                if not await self._once(run_id):
                    return
            except (CoordinatorError, OSError):  # a database that is away, a full disk: the run waits for better times
                _log.exception("no runner could be started; trying again", extra={"run": run_id})
            await asyncio.sleep(_BACKOFF_S[min(tries, len(_BACKOFF_S) - 1)])
            tries += 1

    async def _once(self, run_id: RunId) -> bool:
        """Run one runner to its end; return whether the run may need another."""
        epoch = secrets.token_hex(16)
        run = await self._engine.do(lambda tx, now, out: runs.launch(tx, run_id, epoch, now, out))
        if run is None:
            return False
        code = await self._one(run)

        def exited(tx: Tx, now: Now, out: Outbox) -> bool:
            runs.runner_exited(tx, run_id, epoch, code, self._exchanges, now, out)
            left = tx.get(Run, run_id)
            return left is not None and left.live

        return await self._engine.do(exited)

    async def _one(self, run: Run) -> int:
        """Start a runner and return its exit code."""
        started, self._spare = self._spare, None
        if started is not None and started.process.returncode is not None:
            await _end(started)
            started = None
        if started is None:
            started = await self._started()
        try:
            self._write_files(started.home, run)
        except BaseException:
            await _end(started)
            raise
        process, ours, home = started.process, started.end, started.home
        with contextlib.suppress(OSError):  # it died: its exit code says so
            ours.sendall(f"{home}\n".encode())
        _log.info("runner started", extra={"run": run.run, "attempt": run.attempts, "pid": process.pid})
        self._processes[run.run] = process
        blobs = asyncio.create_task(self._hand_out(run.run, ours))
        try:
            code = await process.wait()
        finally:
            self._processes.pop(run.run, None)
            _signal(process.pid)  # the group: what the app forked does not outlive its runner
            blobs.cancel()
            ours.close()
            shutil.rmtree(home, ignore_errors=True)
        await self._renew_spare()
        _log.info("runner ended", extra={"run": run.run, "attempt": run.attempts, "exit_code": code})
        return code

    def _write_files(self, home: Path, run: Run) -> None:
        """Write down what the runner is told; readable by its user only."""
        files = self._credentials.runner_files(run.run)
        told = {"url": self._url, "run": run.run, "epoch": run.epoch, **self._bounds}
        files["runner.json"] = json.dumps(told).encode()
        for name, data in files.items():
            with os.fdopen(os.open(home / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(data)

    async def _renew_spare(self) -> None:
        if self._spare is not None or self._renewing:
            return
        self._renewing = True
        try:
            with contextlib.suppress(OSError):  # the next run starts one itself
                self._spare = await self._started()
        finally:
            self._renewing = False

    async def _hand_out(self, run: RunId, end: socket.socket) -> None:
        """Answer each digest that the runner asks for with a read-only descriptor of its file, or with "no"."""
        end.setblocking(False)
        loop = asyncio.get_running_loop()
        buffer = b""
        while data := await loop.sock_recv(end, 4096):
            buffer += data
            if len(buffer) > _MAX_ASKED_BYTES:
                return  # no runner of ours: it asks line by line
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                descriptor = await self._descriptor(run, line)
                try:
                    if descriptor is None:
                        await loop.sock_sendall(end, b"no\n")
                    else:
                        passed = array.array("i", [descriptor])
                        end.sendmsg([b"ok\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
                finally:
                    if descriptor is not None:
                        os.close(descriptor)

    async def _descriptor(self, run: RunId, line: bytes) -> int | None:
        """Return a descriptor of a blob that this run has a right to, or None."""
        try:
            digest = parse_digest(line.decode("ascii", "replace"))
        except Malformed:
            return None
        row = await self._engine.do(lambda tx, now, out: readable(tx, run, digest))
        if row is None:
            return None
        if row.inline is not None:
            return _in_memory(row.inline)
        with contextlib.suppress(OSError):
            return os.open(self._blob_path(row.file), os.O_RDONLY | os.O_CLOEXEC)
        return None

    async def _started(self) -> _Started:
        home = (self._folder / secrets.token_hex(8)).resolve()
        home.mkdir(mode=0o700, parents=True)
        said = spelled(home, self._url, readable=self._readable, writable=self._writable)
        return await _start(home, said if self._confined else "")

    def _kill(self, run: RunId) -> None:
        process = self._processes.get(run)
        if process is not None and process.returncode is None:
            _signal(process.pid)


def _ours(tx: Tx, now: Now, out: Outbox) -> list[Run]:
    """Return the live runs whose runners are started here: of the others the operator makes Jobs."""
    managed = {row.run for row in tx.find(Managed)}
    return [run for run in tx.find(Run, state=("pending", "running")) if run.run not in managed]


async def _start(home: Path, confinement: str) -> _Started:
    """Start a runner that waits to be told its folder, and is confined to it already."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    environment = {name: os.environ[name] for name in _SAFE_ENVIRONMENT if name in os.environ}
    # With the seed set it need not start itself a second time to have it.
    environment |= {"FEDFLEET_BLOB_FD": str(theirs.fileno()), "PYTHONHASHSEED": "0"}
    if confinement:
        environment[CONFINEMENT] = confinement
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fedfleet_coordinator.runner",
        env=environment, pass_fds=(theirs.fileno(),), start_new_session=True, stdin=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    theirs.close()
    return _Started(process, ours, home)


async def _end(started: _Started) -> None:
    """End a runner that was told nothing, and remove its folder."""
    started.end.close()
    _signal(started.process.pid)
    try:
        await started.process.wait()
    finally:
        shutil.rmtree(started.home, ignore_errors=True)


def _in_memory(data: bytes) -> int:
    """Return a read-only descriptor of bytes that lie in a row: a request for each of a thousand would take longer."""
    writable = os.memfd_create("blob", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(writable, view) :]
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)


def readable(tx: Tx, run: RunId, digest: Digest) -> Blob | None:
    """Return a blob that a row of this run names; a run's code cannot read another's."""
    named = any(ref.run == run for ref in tx.find(Ref, digest=digest))
    return tx.get(Blob, digest) if named else None


def _signal(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
