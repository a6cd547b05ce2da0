"""This kernel's confinement of real processes: what it refuses, and what goes on working."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import fedfleet_sandbox

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        fedfleet_sandbox.probe().landlock < 1 or not fedfleet_sandbox.probe().seccomp,
        reason="this kernel has no Landlock or no seccomp",
    ),
]
CONFINED = """
import os, sys
import fedfleet_sandbox as sandbox
{before}
own = {own!r}
sandbox.apply(sandbox.Policy(programs=sandbox.python_folders(), writable=(own,), readable=({data!r},)))
os.environ["TMPDIR"] = own
def refused(act):
    try:
        act()
    except OSError as error:
        return error.errno in (1, 13, 18)  # 18: into another folder, as between file systems
    return False
"""


def confined(folder: Path, body: str, *, before: str = "") -> str:
    """Return what a confined Python prints that runs `body`; `before` runs before it is confined."""
    (folder / "own").mkdir()
    (folder / "data").mkdir()
    (folder / "data" / "rows.csv").write_text("1,2\n")
    (folder / "secret").write_text("key")
    head = CONFINED.format(own=str(folder / "own"), data=str(folder / "data"), before=textwrap.dedent(before))
    done = subprocess.run(
        [sys.executable, "-P", "-c", head + textwrap.dedent(body), str(os.getpid()), str(folder)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_files_processes_and_networks_are_out_of_reach(tmp_path: Path) -> None:
    said = confined(
        tmp_path,
        """
        import ctypes, socket
        pid, folder = int(sys.argv[1]), sys.argv[2]
        assert open(folder + "/data/rows.csv").read() == "1,2\\n"
        assert refused(lambda: open(folder + "/secret"))
        assert refused(lambda: open(folder + "/data/new", "w"))
        assert refused(lambda: open(folder + "/data/rows.csv", "a"))
        assert refused(lambda: os.rename(folder + "/secret", own + "/secret"))
        assert refused(lambda: os.link(folder + "/secret", own + "/secret"))
        assert refused(lambda: open(f"/proc/{pid}/mem", "rb"))
        assert refused(lambda: open(f"/proc/{pid}/environ", "rb"))
        if sandbox.probe().landlock >= 6:
            assert refused(lambda: os.kill(pid, 0))
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET):
            assert refused(lambda: socket.socket(family))
        assert refused(lambda: socket.socketpair(type=socket.SOCK_DGRAM))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.ptrace(16, pid, 0, 0) == -1 and ctypes.get_errno() == 1
        assert libc.unshare(0x10000000) == -1
        assert libc.syscall(425, 1, ctypes.create_string_buffer(120)) == -1 and ctypes.get_errno() == 38
        print("ok")
        """,
    )
    assert said == "ok\n"


def test_no_file_is_emptied_under_the_first_versions_of_landlock(tmp_path: Path) -> None:
    said = confined(
        tmp_path,
        """
        import ctypes
        folder = sys.argv[2]
        for file in ("/secret", "/data/rows.csv"):
            assert refused(lambda: os.truncate(folder + file, 0))
            assert refused(lambda: os.open(folder + file, os.O_RDONLY | os.O_TRUNC))
            assert refused(lambda: os.open(folder + file, 3 | os.O_TRUNC))
        how = (ctypes.c_uint64 * 3)(3 | os.O_TRUNC, 0, 0)  # struct open_how
        path, libc = (folder + "/secret").encode(), ctypes.CDLL(None, use_errno=True)
        assert libc.syscall(437, -100, path, how, 24) == -1 and ctypes.get_errno() == 38
        for _ in range(2):
            with open(own + "/new", "w") as file:
                file.write("1")
        print("ok")
        """,
        before="""
        kernel = sandbox.kernel
        kernel.probe = lambda able=kernel.probe(): sandbox.Abilities(2, able.seccomp, able.machine)
        """,
    )
    assert said == "ok\n"
    assert (tmp_path / "secret").read_text() == "key"
    assert (tmp_path / "data" / "rows.csv").read_text() == "1,2\n"


def test_modes_of_others_files_stay_and_copying_works(tmp_path: Path) -> None:
    confined(
        tmp_path,
        """
        import shutil
        os.chmod(sys.argv[2] + "/secret", 0o777)
        shutil.copy(sys.argv[2] + "/data/rows.csv", own + "/rows.csv")
        """,
    )
    assert (tmp_path / "secret").stat().st_mode & 0o777 != 0o777
    assert (tmp_path / "own" / "rows.csv").read_text() == "1,2\n"


def test_arrays_pools_databases_and_children_go_on_working(tmp_path: Path) -> None:
    said = confined(
        tmp_path,
        """
        import multiprocessing, sqlite3, subprocess, threading
        import numpy as np
        from flwr.clientapp import ClientApp
        import torch
        assert (np.ones((300, 300)) @ np.ones((300, 300)))[0, 0] == 300
        assert (torch.ones(300, 300) @ torch.ones(300, 300))[0, 0] == 300
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(abs, [-1, 2]) == [1, 2]
        database = sqlite3.connect(own + "/a.db")
        database.execute("pragma journal_mode = wal")
        database.execute("create table a(b)")
        database.commit()
        database.close()
        done = subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True, start_new_session=True)
        assert done.stdout == b"7\\n"
        print("ok")
        """,
    )
    assert said == "ok\n"


def test_a_child_stays_in_its_group_whatever_it_asks_for(tmp_path: Path) -> None:
    said = confined(
        tmp_path,
        """
        group = os.getpgid(0)
        os.setsid()
        if (child := os.fork()) == 0:
            os.setsid()
            os._exit(0 if os.getpgid(0) == group else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
    )
    assert said == "0\n"


def test_a_process_with_threads_is_not_confined_by_half(tmp_path: Path) -> None:
    program = """
import threading, fedfleet_sandbox
threading.Thread(target=threading.Event().wait, daemon=True).start()
try:
    fedfleet_sandbox.apply(fedfleet_sandbox.Policy())
except fedfleet_sandbox.Threaded:
    print("refused", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "refused\n", done.stderr


def test_confining_takes_a_trainer_less_than_thirty_milliseconds(tmp_path: Path) -> None:
    program = """
import time
import fedfleet_trainer.keeper
before = time.process_time()
import fedfleet_sandbox as sandbox
sandbox.apply(sandbox.Policy(programs=sandbox.python_folders()))
print(time.process_time() - before)
"""
    command = [sys.executable, "-c", program]
    took = [
        float(subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout) for _ in range(5)
    ]
    assert min(took) < 0.03, took


def isolation(state: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fedfleet_agent", "isolation", "--state", str(state), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def agent_home(state: Path, config: str = "") -> Path:
    state.mkdir(mode=0o700)
    for name in ("identity.pem", "journal.sqlite"):
        (state / name).write_text("private")
    (state / "agent.toml").write_text(config)
    return state


def test_the_owner_is_told_what_holds(tmp_path: Path) -> None:
    home = agent_home(tmp_path / "agent")
    done = isolation(home, "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert said["missing"] == [] and said["minimum"] == "landlock"
    reach = {name: said[name] for name in ("key", "journal", "network", "memory", "sockets")}
    assert not any(reach.values()), reach
    assert said["signals"] == (said["kernel"]["landlock"] < 6)
    assert "out of reach" in isolation(home).stdout
    assert sorted(os.listdir(home)) == ["agent.toml", "identity.pem", "journal.sqlite"]


@pytest.mark.parametrize(
    ("config", "missing", "why"),
    [
        ("[trainer]\nsandbox = false", ["key", "journal", "network"], "switched the sandbox off"),
        ("[trainer]\nreadable = ['{home}']", ["key", "journal"], "readable, and they lie in it"),
        ("[agent]\nnode_config = {{ data = '{home}' }}", ["key", "journal"], "name a narrower folder"),
        ("[trainer]\nsandbox = false\nisolation_minimum = 'seccomp'", ["network"], "switched the sandbox off"),
        ("[trainer]\nsandbox = false\nisolation_minimum = 'none'", [], ""),
    ],
)
def test_what_is_missing_is_named_with_its_reason(tmp_path: Path, config: str, missing: list[str], why: str) -> None:
    home = agent_home(tmp_path / "agent", config.format(home=tmp_path / "agent"))
    done = isolation(home, "--json")
    said = json.loads(done.stdout)
    assert (said["missing"], done.returncode) == (missing, 1 if missing else 0)
    assert why in said["why"]
    assert why in isolation(home).stdout


@pytest.mark.parametrize(("seccomp", "reached"), [(True, []), (False, ["journal", "key"])])
def test_the_proof_tries_whether_files_can_be_emptied_and_empties_none(
    tmp_path: Path, seccomp: bool, reached: list[str]
) -> None:
    home = agent_home(tmp_path / "agent")
    (tmp_path / "folder" / "made" / "scratch").mkdir(parents=True)
    program = f"""
import sys
from pathlib import Path
from fedfleet_protocol.handover import Sandbox
from fedfleet_sandbox import Abilities, kernel
from fedfleet_trainer.confinement import confine
kernel.probe = lambda able=kernel.probe(): Abilities(2, {seccomp}, able.machine)
home, folder = sys.argv[1], Path(sys.argv[2])
sandbox = Sandbox(key=home + "/identity.pem", journal=home + "/journal.sqlite", minimum="none")
reach = confine(folder, folder / "made", sandbox)
print(*(name for name in ("journal", "key") if getattr(reach, name)))
"""
    command = [sys.executable, "-P", "-c", program, str(home), str(tmp_path / "folder")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == reached
    assert (home / "identity.pem").read_text() == (home / "journal.sqlite").read_text() == "private"
    assert os.listdir(tmp_path / "folder") == ["made"]
