"""Real child processes: started again when they die, and gone with everything they started when they shall be."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedfleet_coordinator.cli.children import Child, Family, Program, born_at, descendants

pytestmark = pytest.mark.integration


class Nursery:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.family = Family(self.said.append)

    def start(self, code: str) -> Child:
        return self.family.start(Program("child", (sys.executable, "-c", code), self.folder / "child.log"))


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    made = Nursery(tmp_path)
    yield made
    made.family.stop(2.0)


def until(holds: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)


SLEEPS = "import time; print('up', flush=True); time.sleep(60)"
HAS_A_CHILD = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
    "print(child.pid, flush=True); time.sleep(60)"
)


def test_child_that_is_killed_is_started_again_and_said_to_be(nursery: Nursery) -> None:
    child = nursery.start(SLEEPS)
    until(lambda: child.pid)
    first = child.kill()
    until(lambda: child.pid not in (0, first))
    assert child.restarts == 1
    assert nursery.said[0].startswith("child ended (killed by SIGKILL); starting it again in 0.2 s")


def test_child_that_is_held_stays_down_until_it_is_released(nursery: Nursery) -> None:
    child = nursery.start(SLEEPS)
    until(lambda: child.pid)
    child.hold()
    time.sleep(0.5)
    assert child.pid == 0
    child.release()
    until(lambda: child.pid)


def test_child_that_fails_at_once_is_started_ever_more_slowly(nursery: Nursery) -> None:
    nursery.start("raise SystemExit(3)")
    until(lambda: len(nursery.said) >= 3)
    assert [line.split(" in ")[1].split(",")[0] for line in nursery.said[:3]] == ["0.2 s", "0.5 s", "1 s"]
    assert "exit code 3" in nursery.said[0]


def test_grandchild_that_outlives_a_killed_child_ends_with_the_family(nursery: Nursery) -> None:
    child = nursery.start(HAS_A_CHILD)
    log = nursery.folder / "child.log"
    until(lambda: log.exists() and log.read_text().strip())
    grandchild = int(log.read_text().split()[0])
    assert grandchild in descendants(child.pid)[child.pid]
    child.kill()
    assert born_at(grandchild) is not None
    nursery.family.stop(2.0)
    until(lambda: born_at(grandchild) is None or "Z" in Path(f"/proc/{grandchild}/stat").read_text().split()[2])


def test_child_that_ignores_its_end_is_killed(nursery: Nursery) -> None:
    child = nursery.start(
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    log = nursery.folder / "child.log"
    until(lambda: log.exists() and log.read_text().strip())
    begun = time.monotonic()
    nursery.family.stop(0.6)
    assert child.pid == 0 and time.monotonic() - begun < 5
    assert "child does not end; killing it" in nursery.said


def test_children_end_when_the_one_who_started_them_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from fedfleet_coordinator.cli.children import Family, Program\n"
        f"program = Program('c', (sys.executable, '-c', {SLEEPS!r}), Path({str(tmp_path / 'log')!r}))\n"
        "child = Family(print).start(program)\n"
        "while not child.pid: time.sleep(0.01)\n"
        "time.sleep(0.3); print(child.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
    assert born_at(pid) is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    until(lambda: born_at(pid) is None or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
