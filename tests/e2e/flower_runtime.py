"""Runs an app on Flower's own SuperLink and SuperNodes, as processes, and returns the model it saved."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Model = list[NDArray[np.float64]]
T = TypeVar("T")


def free_port() -> int:
    """Return a port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_on_flower(app: Path, *, nodes: int, folder: Path, config: dict[str, str], timeout_s: float = 240.0) -> Model:
    """Return the arrays that `app` saved, as an .npz file, in a run on Flower's own runtime. As `saved_on_flower`."""
    return saved_on_flower(app, nodes=nodes, folder=folder, config=config, read=_arrays, timeout_s=timeout_s)


def saved_on_flower(
    app: Path,
    *,
    nodes: int,
    folder: Path,
    config: dict[str, str],
    read: Callable[[Path], T],
    timeout_s: float = 240.0,
    submitted: Callable[[float], None] = lambda at: None,
) -> T:
    """Return what `app` saved under its configuration `save` in a run on Flower's own runtime.

    Args:
        folder: scratch; Flower keeps its home here and touches no other.
        config: overrides of the run's configuration, values spelled as TOML.
        read: returns what the file holds; ValueError or OSError while it is not whole.
        submitted: told the instant, of `time.perf_counter`, at which the run is submitted.
    """
    home, saved = folder / "flwr", folder / "flower.npz"
    home.mkdir(parents=True)
    binaries = Path(sys.executable).parent
    port = free_port()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n\n[superlink.test]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
    }
    link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    commands = [[*link, "--disable-runtime-dependency-installation"]]
    for number in range(nodes):
        values = f"partition-id={number} num-partitions={nodes}"
        node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--node-config", values]
        commands.append([*node, "--host", "127.0.0.1", "--port", str(free_port())])
    overrides = config | {"save": f'"{saved}"', "min-nodes": str(nodes)}
    started: list[subprocess.Popen[bytes]] = []
    with (folder / "flower.log").open("wb") as log:
        try:
            for command in commands:
                started.append(
                    subprocess.Popen(
                        [str(binaries / command[0]), *command[1:]],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        env=environment,
                        cwd=folder,
                        start_new_session=True,
                    )
                )
                if len(started) == 1:
                    _await_port(port)
            submit = [str(binaries / "flwr"), "run", str(app), "test"]
            for key, value in overrides.items():
                submit += ["-c", f"{key}={value}"]
            submitted(time.perf_counter())
            subprocess.run(submit, check=True, stdout=log, stderr=log, env=environment, cwd=folder, timeout=60)
            return _await_file(saved, read, timeout_s)
        finally:
            for process in reversed(started):
                _end(process)


def _arrays(file: Path) -> Model:
    with np.load(file, allow_pickle=False) as stored:
        return [stored[name] for name in stored.files]


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("Flower's SuperLink does not listen after 60 s; see flower.log")


def _await_file(file: Path, read: Callable[[Path], T], timeout_s: float) -> T:
    """Return what the file holds once it is whole."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if file.is_file() and file.stat().st_size:
            try:
                return read(file)
            except (ValueError, OSError):
                pass
        time.sleep(0.05)
    raise TimeoutError(f"the app saved nothing within {timeout_s:.0f} s; see flower.log")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children; they have a session of their own."""
    for sign, wait in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
