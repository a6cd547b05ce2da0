"""What the command line's commands do. Nothing here needs the network but `join` and `run`."""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from fedfleet_agent import config, memory, probes
from fedfleet_agent.eligibility import Ineligible, judge
from fedfleet_agent.errors import ConfigError
from fedfleet_agent.home import DEFAULT, Home
from fedfleet_protocol.errors import ProtocolError

Act = Callable[[argparse.Namespace], int]
NOT_RUNNING = 5
_MAX_TOKEN = 4096


def join(options: argparse.Namespace) -> int:
    """Make a key, have it certified, write an identity and a configuration to start from."""
    from fedfleet_agent import __version__, enrol
    from fedfleet_protocol.trust import read_token

    try:
        token = read_token(_token(options))
    except ProtocolError as error:
        raise ConfigError(str(error)) from error
    home = Home(options.state)
    agent = enrol.join(token, home.folder, version=__version__)
    if not home.config_file.exists():
        text = config.template()
        if options.name:
            text = text.replace("# labels = {}", f"labels = {{ name = {msgspec.json.encode(options.name).decode()} }}")
        home.config_file.write_text(text, encoding="utf-8")
        home.config_file.chmod(0o600)
    print(f"This device is {agent} now. Say whose apps may run here in {home.config_file}, then:")
    print(f"  fedfleet-agent run{_state_option(options)}")
    return 0


def run(options: argparse.Namespace) -> int:
    """Be the agent until it is told to end."""
    home = Home(options.state)
    settings = config.load(_config_file(options, home))
    if options.check:
        from fedfleet_agent.identity import load

        agent = load(home.folder).agent
        names = ", ".join(sorted(settings.trusted.values())) or "none: every task is declined"
        print(f"The configuration is right. Agent {agent}; trusted publishers: {names}.")
        return 0
    from fedfleet_agent.resident import live

    return live(home, _config_file(options, home), settings, trainer_socket=options.trainer_socket)


def renew(options: argparse.Namespace) -> int:
    """Get the next certificate now; the resident process has this done in a process of its own."""
    from fedfleet_agent import enrol, identity

    credentials = enrol.renew(identity.load(Home(options.state).folder))
    until = datetime.fromtimestamp(credentials.expires_wall).astimezone()
    print(f"The certificate of {credentials.agent} holds until {until:%Y-%m-%d %H:%M}.")
    return 0


def status(options: argparse.Namespace) -> int:
    """Say what the running agent last said of itself."""
    home = Home(options.state)
    pid, report = home.running(), home.read_report()
    if options.json:
        _print_json({"running": pid is not None, "pid": pid, "paused": home.paused, **msgspec.to_builtins(report)})
    elif pid is None:
        print(f"No agent is running in {home.folder}. Start it with: fedfleet-agent run{_state_option(options)}")
    else:
        link = "connected" if report.connected else "not connected"
        task = f"{report.stage}: run {report.run}, exchange {report.n}" if report.run else "without a task"
        print(f"{report.agent} (process {pid}), {link}, {task}.")
        if report.code:
            print(f"It may not train now: {report.text} ({report.code}).")
        if report.trouble:
            print(f"Last trouble: {report.trouble}")
    return 0 if pid is not None else NOT_RUNNING


def explain(options: argparse.Namespace) -> int:
    """Judge by rules and readings whether this device may train now, and show what last became of tasks."""
    home = Home(options.state)
    settings = config.load(_config_file(options, home))
    readings = probes.read(home.folder)
    paused = home.paused or settings.agent.paused
    verdict = judge(settings.eligibility, readings, datetime.now().astimezone(), paused=paused)
    code, text = (verdict.code, verdict.text) if isinstance(verdict, Ineligible) else ("", "")
    lines = _ledger(home)
    if options.json:
        _print_json(
            {
                "eligible": not code,
                "code": code,
                "text": text,
                "readings": {name: getattr(readings, name) for name in readings.__slots__},
                "rules": msgspec.to_builtins(settings.eligibility),
                "publishers": sorted(settings.trusted.values()),
                "ledger": lines,
            }
        )
        return 0
    print(f"It may not train now: {text} ({code})." if code else "It may train now.")
    if not settings.trusted:
        print(f"But it trusts no publisher, so it declines every task: add one to [trust] in {home.config_file}.")
    for name in readings.__slots__:
        value = getattr(readings, name)
        print(f"  {name:<16} {'unknown' if value is None else value if isinstance(value, str) else f'{value:.4g}'}")
    for line in lines[-10:]:
        at = datetime.fromtimestamp(line["at"]).astimezone()
        print(f"  {at:%Y-%m-%d %H:%M:%S}  {line['what']:<9} exchange {line['n']} of {line['run']}: {line['text']}")
    return 0


def isolation(options: argparse.Namespace) -> int:
    """Try what an app could reach here; the exit code is 1 if that is more than the owner allows."""
    from fedfleet_agent.isolation import missing, proven, sandbox_of

    home = Home(options.state)
    rules = config.load(_config_file(options, home))
    memory.hide()
    with tempfile.NamedTemporaryFile(dir=home.folder, prefix="isolation-") as stand_in:
        # What is not there cannot be opened: before the device has joined, another private file is tried.
        files = [file if file.exists() else Path(stand_in.name) for file in (home.key_file, home.journal_file)]
        sandbox = sandbox_of(
            rules.trainer,
            rules.agent.node_config,
            key=files[0],
            journal=files[1],
            agent=home.running() or os.getpid(),
        )
        reach = proven(sandbox, home.folder)
    lacking = missing(reach, sandbox.minimum)
    if options.json:
        _print_json({**reach, "minimum": sandbox.minimum, "missing": lacking})
        return 1 if lacking else 0
    kernel = reach["kernel"]
    print(f"This kernel: Landlock {kernel['landlock'] or 'none'}, seccomp {'yes' if kernel['seccomp'] else 'no'}.")
    for name, what in _REACH.items():
        print(f"  {what:<36} {'WITHIN REACH' if reach[name] else 'out of reach'}")
    for path in sandbox.readable:
        print(f"  {path:<36} readable, as the owner says")
    if lacking:
        print(f"Tasks are refused: {reach['why']}.")
        return 1
    print(f"That is what [trainer] isolation_minimum = {sandbox.minimum!r} asks for.")
    return 0


_REACH = {
    "key": "the agent's key",
    "journal": "the agent's journal",
    "network": "the network",
    "memory": "the agent's memory",
    "signals": "signals to the agent",
    "sockets": "Unix sockets of this machine",
}


def pause(options: argparse.Namespace) -> int:
    """Let the agent take no work."""
    return _switch(Home(options.state), paused=True)


def resume(options: argparse.Namespace) -> int:
    """Let the agent take work again."""
    return _switch(Home(options.state), paused=False)


def _switch(home: Home, *, paused: bool) -> int:
    home.pause(paused)
    pid = home.running()
    if pid is not None:
        os.kill(pid, signal.SIGHUP)
    done = "Paused" if paused else "Resumed"
    print(f"{done}." if pid is not None else f"{done}, as of the next start: no agent is running in {home.folder}.")
    return 0


def _token(options: argparse.Namespace) -> str:
    if (options.token is None) == (options.token_file is None):
        raise ConfigError("give the join token either as --token-file FILE (- is standard input) or as an argument")
    if options.token is not None:
        print(
            "fedfleet-agent: others on this machine can see the token in the list of processes; "
            "--token-file or standard input keeps it to yourself",
            file=sys.stderr,
        )
        return str(options.token)
    if options.token_file == "-":  # noqa: S105 - the name of a file
        return sys.stdin.read(_MAX_TOKEN)
    try:
        with Path(options.token_file).open(encoding="utf-8") as stream:
            return stream.read(_MAX_TOKEN)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file {options.token_file} cannot be read: {error}") from error


def _config_file(options: argparse.Namespace, home: Home) -> Path:
    if options.config is None:
        return home.config_file
    if not options.config.exists():
        raise ConfigError(f"there is no configuration {options.config}; `fedfleet-agent join` writes one to start from")
    return Path(options.config)


def _state_option(options: argparse.Namespace) -> str:
    return "" if options.state == DEFAULT else f" --state {options.state}"


def _ledger(home: Home) -> list[dict[str, Any]]:
    if not (home.folder / "journal.sqlite").exists():
        return []
    journal = home.journal()
    try:
        return [msgspec.to_builtins(line) for line in journal.ledger()]
    finally:
        journal.close()


def _print_json(value: dict[str, Any]) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
