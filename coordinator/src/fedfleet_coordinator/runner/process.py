"""The runner process: started by the coordinator, or by a pod, with a folder of its own.

The folder holds runner.json (the url of the coordinator, the run, the epoch, and bounds), runner.pem, runner.key and
ca.pem. Exit codes: 0 the run ended well, 3 it failed by its app, 4 another runner has taken over; anything else is a
crash, after which the coordinator starts another runner.
"""

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from fedfleet_coordinator.errors import CoordinatorError, Fenced, HubRefused, Misconfigured
from fedfleet_coordinator.rows import Position, Run
from fedfleet_coordinator.runner.channel import BlobChannel
from fedfleet_coordinator.runner.execution import Outcome, execute
from fedfleet_coordinator.runner.https import HttpHub
from fedfleet_coordinator.runner.hub import Hub
from fedfleet_coordinator.runner.limits import limit
from fedfleet_coordinator.runner.output import Output
from fedfleet_coordinator.runner.patience import Patience
from fedfleet_coordinator.runner.scratch import Scratch
from fedfleet_coordinator.runner.wire import Address, Wire
from fedfleet_flower import compat
from fedfleet_flower.apps import check_packages, describe_app, load_server_app, run_config
from fedfleet_flower.bundles import unpack_bundle
from fedfleet_flower.errors import BridgeError
from fedfleet_protocol.errors import ProtocolError
from fedfleet_protocol.ids import flower_number, parse_run_id
from fedfleet_protocol.messages import BlobRef

CRASHED = 1
APP_FAULT = 3
FENCED = 4
ALIVE_S = 10.0
_log = logging.getLogger("fedfleet")


def main(lacking: str = "") -> int:
    """Execute one run and return the process's exit code; `lacking` is what does not confine this process, if any."""
    parser = argparse.ArgumentParser(prog="python -m fedfleet_coordinator.runner")
    parser.add_argument(
        "--home", type=Path, help="the folder that this runner was given; default: the coordinator says it"
    )
    named: Path | None = parser.parse_args().home
    channel = BlobChannel.inherited()
    _settle()
    if named is None:
        told = channel.told() if channel is not None else ""
        if not told:
            return 0  # it was not needed
        named = Path(told)
    home = named.resolve()
    given = _told(home)
    limit(memory_bytes=given.memory_bytes, file_bytes=given.file_bytes)
    scratch = Scratch(_emptied(home / "scratch"))
    hub = HttpHub(Wire(given.address), scratch, channel=channel)
    output = Output(hub.tell_lines)
    if lacking:
        _log.warning("%s", lacking)
    try:
        code = _run(hub, home, scratch, output)
    except Fenced as fenced:
        _log.warning("this runner stops: %s", fenced)
        return FENCED
    except (CoordinatorError, ProtocolError, OSError) as error:
        _log.error("this runner cannot go on: %s", error)
        code = CRASHED
    output.close()
    return code


def _run(hub: HttpHub, home: Path, scratch: Scratch, output: Output) -> int:
    run, position = hub.look()
    threading.Thread(target=_tell_alive, args=(hub,), name="alive", daemon=True).start()
    outcome = outcome_of(hub, run, position, home, scratch)
    if outcome.text:
        _log.info("the run %s: %s", outcome.state, outcome.text)
    output.close()  # what it caught belongs before the end: nothing is taken after it
    hub.end(outcome.state, outcome.reason, outcome.text, outcome.model)
    return 0 if outcome.state == "finished" else APP_FAULT


def outcome_of(
    hub: Hub, run: Run, position: Position | None, home: Path, scratch: Scratch, *, patience: Patience | None = None
) -> Outcome:
    """Unpack the run's bundle, load its ServerApp, execute it and return how that ended."""
    folder = home / "app"
    shutil.rmtree(folder, ignore_errors=True)
    bundle = hub.fetch(BlobRef(run.bundle, run.bundle_size))
    try:
        # Before anything of the app runs: what it imports may create messages.
        compat.identify(run=flower_number(run.run), node=compat.SERVER_NODE)
        scratch.write(lambda: unpack_bundle(_copied(bundle, home / "bundle"), folder))
        # Apps read files that lie beside their code, and write results to where they are; this copy is theirs.
        os.chdir(folder)
        description = describe_app(folder)
        config = run_config(description, run.config)
        for warning in check_packages(description):
            _log.warning("%s", warning)
        app = load_server_app(folder, description)
    except BridgeError as error:
        return Outcome("failed", "bundle", str(error))
    finally:
        os.close(bundle)
    details = compat.run_details(
        run=flower_number(run.run), app=description.name, version=description.version, digest=run.bundle,
        overrides=run.config,
    )  # fmt: skip
    try:
        return execute(app, hub, run, position, scratch=scratch, run_config=config, details=details, patience=patience)
    except Misconfigured as error:
        return Outcome("failed", "app_failed", str(error))


def _settle() -> None:
    """Make this process fit to run an app: logs that somebody reads, no Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it stops it
    _log.addHandler(logging.StreamHandler(sys.stderr))
    _log.setLevel(logging.INFO)
    _log.propagate = False  # the root logger is the app's to configure


@dataclass(frozen=True, slots=True)
class _Told:
    """What the coordinator wrote down for this runner; bounds of 0 are none."""

    address: Address
    memory_bytes: int = 0
    file_bytes: int = 0


def _told(home: Path) -> _Told:
    try:
        told = json.loads((home / "runner.json").read_bytes())
        url, run, epoch = told["url"], parse_run_id(told["run"]), told["epoch"]
        bounds = int(told.get("memory_bytes", 0)), int(told.get("file_bytes", 0))
    except (OSError, ValueError, KeyError, TypeError, ProtocolError) as error:
        raise SystemExit(f"{home / 'runner.json'} does not say which run this is: {error}") from error
    return _Told(Address(url, run, epoch, home / "runner.pem", home / "runner.key", home / "ca.pem"), *bounds)


def _copied(descriptor: int, target: Path) -> Path:
    """Return `target`, now a copy: a blob lies where this process opens nothing, not even by its descriptor's name."""
    with target.open("wb") as file:
        offset = 0
        while sent := os.sendfile(file.fileno(), descriptor, offset, 1 << 20):
            offset += sent
    return target


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    return folder


def _tell_alive(hub: HttpHub) -> None:
    """Tell the hub every few seconds that this runner lives, and end it the moment it is replaced."""
    while True:
        try:
            hub.tell_alive()
        except Fenced:
            os._exit(FENCED)  # the app may be in the middle of an hour of computing
        except HubRefused as error:
            _log.warning("%s", error)
            return
        time.sleep(ALIVE_S)
