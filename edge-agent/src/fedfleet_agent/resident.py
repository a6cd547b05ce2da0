"""The resident process: composition root of `fedfleet-agent run`, and what goes on around the agent's tasks.

One loop, one thread; errands and the lease have their own. The process keeps the link up, tells the coordinator when
it may train and when not, renews its certificate, reads its configuration again on SIGHUP, and ends on SIGTERM with
everything it must remember in the journal.
"""

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import msgspec

from fedfleet_agent import __version__, config, identity, logs, memory, probes
from fedfleet_agent.agent import Agent
from fedfleet_agent.config import Config
from fedfleet_agent.eligibility import Eligible, Ineligible, judge
from fedfleet_agent.errands import Errands
from fedfleet_agent.errors import AgentError, ConfigError, HubUnreachable
from fedfleet_agent.home import Home, Report
from fedfleet_agent.hub import Hub
from fedfleet_agent.isolation import sandbox_of
from fedfleet_agent.link import Link
from fedfleet_agent.loop import Loop
from fedfleet_agent.supervisor import Supervisor
from fedfleet_agent.systemd import Notifier
from fedfleet_agent.transfer import Transfer
from fedfleet_protocol import handover, messages
from fedfleet_protocol.messages import Answer, Ask, FromAgent, Status
from fedfleet_protocol.trust import HUB, open_envelope, seal

_log = logging.getLogger(__name__)
PROBE_S = 15.0
STATUS_S = 30.0
"""A device whose load goes up and down around a limit tells it no more often than this."""
SMALL_S = 5.0
_RENEWAL_S = 120.0
_RENEWAL_WAITS_S = (60.0, 3600.0)


def live(home: Home, config_file: Path, settings: Config, *, trainer_socket: Path | None = None) -> int:
    """Be the agent until SIGTERM or SIGINT; return the exit code.

    Raises:
        AgentError: it cannot begin, or cannot go on; the text says why and what to do.
    """
    memory.hide()
    lines = logs.to_stderr(settings.agent.log_level)
    with home.lock():
        resident = Resident(home, config_file, settings, trainer_socket=trainer_socket)
        lines.agent = identity.load(home.folder).agent
        try:
            resident.run()
        finally:
            resident.close()
    return 0


class _Guarded:
    """The loop, as the link sees it: what it calls holds the lock under which any thread may speak over the link."""

    def __init__(self, loop: Loop, lock: threading.RLock) -> None:
        self._loop = loop
        self._lock = lock
        self._act: Callable[[int], None] = lambda _: None

    def watch(self, fd: int, events: int, act: Callable[[int], None]) -> None:
        """See `link.Watcher`."""
        self._act = act
        self._loop.watch(fd, events, self._locked)

    def unwatch(self, fd: int) -> None:
        """See `link.Watcher`."""
        self._loop.unwatch(fd)

    def _locked(self, events: int) -> None:
        with self._lock:
            self._act(events)


class Resident:
    """The process's parts, put together; also the agent's `Surroundings`."""

    def __init__(self, home: Home, config_file: Path, settings: Config, *, trainer_socket: Path | None) -> None:
        self.config = settings
        self._home, self._config_file = home, config_file
        self._credentials = identity.load(home.folder)
        self._rng = random.Random()
        self._loop = Loop()
        self._notifier = Notifier()
        self._errands = Errands()
        self._journal = home.journal()
        self._lock = threading.RLock()
        self._hub = Hub(self._credentials.about.data_url, self._credentials.tls_context())
        self._trainers = Supervisor(
            home.handover,
            limits=_limits(settings),
            sandbox=lambda: self._sandbox(attached=trainer_socket is not None),
            idle_s=settings.limits.trainer_idle_s,
            attach=trainer_socket,
            clock=self._loop.clock,
        )
        self.agent = Agent(
            agent=self._credentials.agent,
            around=self,
            journal=self._journal,
            blobs=home.blobs(),
            trainers=self._trainers,
            post=self._loop.post,
            clock=self._loop.clock,
            rng=self._rng,
        )
        self._link = Link(
            self._credentials,
            _Guarded(self._loop, self._lock),
            on_message=self._heard,
            on_up=lambda: self._loop.post(self._came_up),
            rng=self._rng,
        )
        self._told: tuple[str, str] | None = None
        self._tell_at = self._probe_at = self._watchdog_at = 0.0
        self._renewal_tries = 0
        self._renew_at: float | None = 0.0
        self._report = Report()
        self._small_at: float | None = None

    def run(self) -> None:
        """Return when a signal ends it."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.on_signal(number, self._loop.stop)
        self._loop.on_signal(signal.SIGHUP, self._reload)
        self._loop.watch(self._trainers.fileno(), 1, lambda _: None)  # `look` comes after whatever wakes the loop
        self.agent.start()
        for act in (self.agent.look, self._keep_link, self._keep_status, self._keep_certificate, self._keep_watchdog):
            self._loop.each_time(act)
        self._loop.each_time(self._keep_report)
        self._loop.each_time(self._keep_small)
        self._small_at = self._loop.clock() + SMALL_S
        self._notifier.say("READY=1")
        _log.info("agent %s of version %s is running", self._credentials.agent, __version__)
        self._loop.run()
        self._notifier.say("STOPPING=1")

    def close(self) -> None:
        """Let go of everything; what was begun is in the journal."""
        self.agent.close()
        self._trainers.close()
        with self._lock:
            self._link.close()
        self._errands.close(timeout_s=2.0)
        self._hub.close()
        self._journal.close()
        self._loop.close()
        self._home.write_report(Report(at=time.time(), agent=self._credentials.agent, version=__version__))

    def _sandbox(self, *, attached: bool) -> handover.Sandbox:
        return sandbox_of(
            self.config.trainer,
            self.config.agent.node_config,
            key=self._home.key_file,
            journal=self._home.journal_file,
            agent=0 if attached else os.getpid(),
        )

    # --- surroundings ------------------------------------------------------------------------------------------------

    def say(self, message: FromAgent) -> bool:
        """See `Surroundings`."""
        with self._lock:
            return self._link.publish(message)

    def ask(self, question: Ask) -> Answer:
        """See `Surroundings`."""
        me = self._credentials
        sealed = seal(me.key, messages.encode(question), sender=me.agent, to=HUB)
        answer = self._hub.post("/v1/ask", sealed)
        return messages.decode_as(Answer, open_envelope(answer, me.order_key, sender=HUB, to=me.agent))

    def transfer(self) -> Transfer:
        """See `Surroundings`."""
        return Transfer(self._hub, self._rng)

    def judge(self) -> Eligible | Ineligible:
        """See `Surroundings`."""
        readings = probes.read(self._home.folder)
        paused = self.config.agent.paused or self._home.paused
        return judge(self.config.eligibility, readings, datetime.now().astimezone(), paused=paused)

    # --- the link ----------------------------------------------------------------------------------------------------

    def _heard(self, message: messages.ToAgent, ack: Callable[[], None]) -> None:
        def acknowledge() -> None:
            with self._lock:
                ack()

        # Later, without the lock: a slow disk must not keep the lease's thread from speaking.
        self._loop.post(lambda: self.agent.hear(message, acknowledge))

    def _came_up(self) -> None:
        self._told, self._tell_at = None, 0.0
        self._small_at = self._loop.clock() + SMALL_S
        self._keep_status()
        self.agent.connected()

    def _keep_link(self) -> float:
        with self._lock:
            return self._link.tick(self._loop.clock())

    # --- may it train ------------------------------------------------------------------------------------------------

    def _keep_status(self) -> float:
        """Probe now and then; tell the coordinator of a change."""
        now = self._loop.clock()
        if now >= self._probe_at or self._told is None:
            self._probe_at = now + PROBE_S
            verdict = self.judge()
            why = (verdict.code, verdict.text) if isinstance(verdict, Ineligible) else ("", "")
            if isinstance(verdict, Ineligible):
                self.agent.unfit(verdict)
            changed = self._told is None or self._told[0] != why[0]
            if changed and now >= self._tell_at and self._tell(*why):
                self._told, self._tell_at = why, now + STATUS_S
        return self._probe_at - now

    def _tell(self, code: str, text: str) -> bool:
        labels = self.config.agent.labels
        return self.say(Status(version=__version__, eligible=not code, code=code, text=text, labels=labels))

    def _reload(self) -> None:
        try:
            self.config = config.load(self._config_file)
        except ConfigError as error:
            _log.error("the configuration stays as it was: %s", error)
            return
        logging.getLogger().setLevel(self.config.agent.log_level.upper())
        self._told, self._tell_at = None, 0.0
        _log.info("the configuration was read again")

    # --- certificate -------------------------------------------------------------------------------------------------

    def _keep_certificate(self) -> float | None:
        """Renew at two thirds of the certificate's life, by the wall clock, which is looked at each time."""
        now = self._loop.clock()
        if self._renew_at is None or now < self._renew_at or time.time() < self._credentials.renew_at_wall:
            return None
        self._renew_at = None
        self._errands.send("renew", self._renew)
        return None

    def _renew(self) -> None:
        """Have a process of its own do it: X.509 would stay in this one's memory for good."""
        command = [sys.executable, "-m", "fedfleet_agent", "renew", "--state", str(self._home.folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_RENEWAL_S, check=False)
            if done.returncode:
                raise HubUnreachable(done.stderr.strip()[-500:])
            credentials = identity.load(self._home.folder)
        except (AgentError, OSError, subprocess.TimeoutExpired) as error:
            problem = str(error)
            self._loop.post(lambda: self._not_renewed(problem))
            return
        self._loop.post(lambda: self._renewed(credentials))

    def _renewed(self, credentials: identity.Credentials) -> None:
        self._credentials = credentials
        before, self._hub = self._hub, Hub(credentials.about.data_url, credentials.tls_context())
        before.close()
        with self._lock:
            self._link.renew(credentials)
        self._renewal_tries, self._renew_at = 0, 0.0
        _log.info("the certificate was renewed; it holds until %s", time.ctime(credentials.expires_wall))

    def _not_renewed(self, problem: str) -> None:
        first, longest = _RENEWAL_WAITS_S
        wait = min(longest, first * 2.0 ** min(self._renewal_tries, 16))
        self._renewal_tries += 1
        self._renew_at = self._loop.clock() + self._rng.uniform(wait / 2, wait)
        _log.warning("the certificate is not renewed yet: %s", problem)

    # --- what others see ---------------------------------------------------------------------------------------------

    def _keep_watchdog(self) -> float | None:
        period, now = self._notifier.watchdog_s, self._loop.clock()
        if not period:
            return None
        if now >= self._watchdog_at:
            self._notifier.say("WATCHDOG=1")
            self._watchdog_at = now + period
        return self._watchdog_at - now

    def _keep_small(self) -> float | None:
        """Give memory back when there has been nothing to do for a while."""
        now = self._loop.clock()
        if self.agent.entry is not None or self._small_at is None:
            self._small_at = now + SMALL_S if self.agent.entry is not None else None
        elif now >= self._small_at:
            self._small_at = None
            memory.give_back()
        return None if self._small_at is None else self._small_at - now

    def _keep_report(self) -> None:
        entry = self.agent.entry
        code, text = self._told or ("", "")
        report = Report(
            at=self._report.at,
            agent=self._credentials.agent,
            version=__version__,
            connected=self._link.up,
            code=code,
            text=text,
            run=entry.notice.run if entry else "",
            n=entry.notice.n if entry else 0,
            stage=self.agent.stage,
            attempt=entry.notice.attempt if entry else 0,
            trouble=self._link.trouble or self.agent.trouble,
        )
        if report != self._report:
            self._report = msgspec.structs.replace(report, at=time.time())
            self._home.write_report(self._report)


def _limits(settings: Config) -> handover.Limits:
    limits = settings.limits
    return handover.Limits(
        memory_bytes=limits.memory_mb * 1_000_000,
        processes=limits.processes,
        folder_bytes=limits.scratch_mb * 1_000_000,
        file_bytes=limits.file_mb * 1_000_000,
        lines_per_s=max(1, int(limits.log_lines_per_s)),
    )
