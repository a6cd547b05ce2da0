"""A runner's confinement: its folder and one port; nothing of the coordinator's."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import fedfleet_sandbox
from fedfleet_coordinator.runner import confinement

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        fedfleet_sandbox.probe().landlock < 4 or not fedfleet_sandbox.probe().seccomp,
        reason="this kernel has no Landlock that guards TCP, or no seccomp",
    ),
]
PROGRAM = """
import json, os, socket, sys
from fedfleet_coordinator.runner import confinement
confinement.enter(os.environ, [])
port, other, state, data, pid = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
def works(act):
    try:
        act()
    except OSError as error:
        return error.errno not in (1, 13, 97)
    return True
def by_many_paths():
    with socket.socket(proto=socket.IPPROTO_MPTCP) as client:
        client.connect(("127.0.0.1", other))
def by_fast_open():
    with socket.socket() as client:
        client.sendto(b"hi", socket.MSG_FASTOPEN, ("127.0.0.1", other))
def bound():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
print(json.dumps({
    "api": works(lambda: socket.create_connection(("127.0.0.1", port)).close()),
    "other": works(lambda: socket.create_connection(("127.0.0.1", other)).close()),
    "other by MPTCP": works(by_many_paths),
    "other by TCP Fast Open": works(by_fast_open),
    "datagram": works(lambda: socket.socket(type=socket.SOCK_DGRAM)),
    "unix": works(lambda: socket.socket(socket.AF_UNIX)),
    "server": works(bound),
    "ca": works(lambda: open(state + "/ca.key")),
    "list": works(lambda: os.listdir(state)),
    "write": works(lambda: open(state + "/new", "w")),
    "memory": works(lambda: open(f"/proc/{pid}/environ", "rb")),
    "signal": works(lambda: os.kill(pid, 0)),
    "own": works(lambda: open("own", "w")),
    "data": works(lambda: open(data)),
}))
"""


@pytest.mark.parametrize("confined", [True, False])
def test_a_runner_reaches_its_folder_and_the_api_and_nothing_else(tmp_path: Path, confined: bool) -> None:
    state, home, data = tmp_path / "hub", tmp_path / "hub" / "runners" / "1", tmp_path / "rows.csv"
    home.mkdir(parents=True)
    (state / "ca.key").write_text("key")
    data.write_text("1")
    environment = {**os.environ}
    with socket.create_server(("127.0.0.1", 0)) as api, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [server.getsockname()[1] for server in (api, other)]
        if confined:
            url = f"https://127.0.0.1:{ports[0]}"
            environment[confinement.ENVIRONMENT] = confinement.spelled(home, url, readable=(str(data),))
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *map(str, ports), str(state), str(data), str(os.getpid())],
            cwd=home, env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {name for name, works in json.loads(done.stdout).items() if works}
    everything = set(json.loads(done.stdout))
    signals = {"signal"} if fedfleet_sandbox.probe().landlock < 6 else set()
    assert found == ({"api", "own", "data"} | signals if confined else everything)


@pytest.mark.parametrize(
    ("landlock", "seccomp", "words"),
    [
        (7, True, []),
        (3, True, ["any TCP port"]),
        (0, True, ["all files", "any TCP port"]),
        (7, False, ["other sockets"]),
        (2, False, ["any TCP port", "emptied", "other sockets"]),
    ],
)
def test_what_is_not_confined_here_is_said(landlock: int, seccomp: bool, words: list[str]) -> None:
    said = confinement.lacking(fedfleet_sandbox.Applied(landlock, seccomp))
    assert [word for word in ("all files", "any TCP port", "emptied", "other sockets") if word in said] == words
    assert bool(said) == bool(words)
    assert "\n" not in said


@pytest.mark.parametrize(("landlock", "said"), [(3, True), (7, False)])
def test_a_runner_knows_what_its_kernel_could_not_confine(tmp_path: Path, landlock: int, said: bool) -> None:
    program = f"""
import os
from fedfleet_coordinator.runner import confinement
from fedfleet_sandbox import Abilities, kernel
able = kernel.probe()
kernel.probe = lambda: Abilities(min({landlock}, able.landlock), able.seccomp, able.machine)
print(confinement.enter(os.environ, []))
"""
    environment = {**os.environ, confinement.ENVIRONMENT: confinement.spelled(tmp_path, "https://127.0.0.1:1")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert ("any TCP port" in done.stdout) == said


def test_a_hub_with_a_name_leaves_datagrams_to_ask_for_it() -> None:
    folder = Path("/nowhere")
    assert confinement.policy(folder, "https://hub.example").datagrams
    assert confinement.policy(folder, "https://hub.example").ports == (443,)
    assert not confinement.policy(folder, "https://[::1]:8443").datagrams
    assert confinement.policy(folder, "https://127.0.0.1:8443").ports == (8443,)
