"""What needs no fleet: the command lines of testcluster, programs that fail, contexts that lead nowhere."""

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from fedfleet_testfleet import tree
from fedfleet_testfleet.driver import NOTHING, LocalShell
from fedfleet_testfleet.errors import BadInput, Failed, FleetFault, Unreachable
from fedfleet_testfleet.fault import parse
from fedfleet_testfleet.fleet import Fleet, Node, Wanted
from fedfleet_testfleet.process import ProcessDriver
from fedfleet_testfleet.runs import CoordinatorRuns
from fedfleet_testfleet.scenario import Scenario
from fedfleet_testfleet.testcluster import VARIABLE, TestclusterDriver

SCENARIO = Scenario("it", Path("/app"), (), options=("--seed", "7"))


class RecordingShell:
    """Keeps what it is asked to run, and answers the same."""

    def __init__(self, answer: str = "", error: Exception | None = None) -> None:
        self.said: list[str] = []
        self._answer, self._error = answer, error

    def run(self, *command: str, environment: Mapping[str, str] = NOTHING, timeout_s: float = 1.0) -> str:
        self.said.append(" ".join([*(f"{name}={value}" for name, value in environment.items()), *command]))
        if self._error is not None:
            raise self._error
        return self._answer


def test_testcluster_is_given_these_command_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTCLUSTER_ID", "4")
    shell = RecordingShell(f"{tmp_path}/kubeconfig\n")
    driver = TestclusterDriver(Path("/opt/testcluster"), shell)
    fleet = driver.up(Wanted(nodes=3, clusters=2, folder=tmp_path))
    assert [node.machine for node in fleet.nodes] == ["node-0", "node-1", "node-0"]
    for fault in ("stop agent-1", "start agent-1", "cut agent-2", "heal agent-2", "api-down", "api-up"):
        driver.do(fleet, parse(fault))
    driver.down(fleet)
    assert shell.said == [
        "TESTCLUSTER_ID=4 /opt/testcluster up --nodes 2",
        "TESTCLUSTER_ID=5 /opt/testcluster up --nodes 1",
        "TESTCLUSTER_ID=4 /opt/testcluster node stop node-1",
        "TESTCLUSTER_ID=4 /opt/testcluster node start node-1",
        "TESTCLUSTER_ID=5 /opt/testcluster node cut node-0",
        "TESTCLUSTER_ID=5 /opt/testcluster node heal node-0",
        "TESTCLUSTER_ID=4 /opt/testcluster api stop",
        "TESTCLUSTER_ID=4 /opt/testcluster api start",
        "TESTCLUSTER_ID=4 /opt/testcluster down",
        "TESTCLUSTER_ID=5 /opt/testcluster down",
    ]


def test_a_testcluster_that_does_not_start_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TESTCLUSTER_ID", raising=False)
    shell = RecordingShell("")
    with pytest.raises(FleetFault, match="prints no kubeconfig"):
        TestclusterDriver(Path("/opt/testcluster"), shell).up(Wanted(nodes=1, clusters=1, folder=tmp_path))
    assert shell.said[-1] == "TESTCLUSTER_ID=0 /opt/testcluster down"


def test_without_its_program_testcluster_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(BadInput, match=VARIABLE):
        TestclusterDriver().up(Wanted(nodes=1, clusters=1, folder=tmp_path))
    monkeypatch.setenv("TESTCLUSTER_ID", "two")
    with pytest.raises(BadInput, match="'two'"):
        TestclusterDriver(Path("/opt/it")).up(Wanted(nodes=1, clusters=1, folder=tmp_path))


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("import sys; print('a'); print('the reason', file=sys.stderr); sys.exit(3)", "exit code 3: the reason"),
        ("import time; time.sleep(60)", "timed out"),
    ],
)
def test_a_program_that_fails_is_told_with_what_it_said_last(script: str, says: str) -> None:
    with pytest.raises(FleetFault, match=says):
        LocalShell().run(sys.executable, "-c", script, timeout_s=2.0)


def test_a_program_that_is_not_there_is_told() -> None:
    with pytest.raises(FleetFault, match="fedfleet-no-such-program is not installed here"):
        LocalShell().run("fedfleet-no-such-program")


@pytest.mark.parametrize("text", ["", "url = 7", "url = 'https://[gone'", 'url = "https://h"\nca = "no"', "nonsense"])
def test_a_context_that_cannot_be_used_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "context.toml").write_text(text)
    with pytest.raises(BadInput, match=r"context\.toml cannot be used"):
        CoordinatorRuns(tmp_path / "context.toml")


@pytest.mark.parametrize(
    ("code", "said", "kind", "says"),
    [
        (2, '{"error": "no such app", "exit_code": 2}', BadInput, "no such app"),
        (3, '{"error": "nobody answers", "exit_code": 3}', Unreachable, "nobody answers"),
        (4, '{"error": "not you", "exit_code": 4}', FleetFault, "not you"),
        (70, "Segmentation fault", Failed, "it failed"),
    ],
)
def test_why_a_run_is_not_taken_is_told_by_whose_fault_it_is(
    code: int, said: str, kind: type[Exception], says: str
) -> None:
    runs = CoordinatorRuns.__new__(CoordinatorRuns)
    runs._context, runs._shell = Path("c.toml"), RecordingShell(error=Failed("it failed", code=code, said=said))
    with pytest.raises(kind, match=says):
        runs.submit(SCENARIO)


def test_a_run_is_started_as_a_person_would() -> None:
    runs, shell = CoordinatorRuns.__new__(CoordinatorRuns), RecordingShell('{"run": "r-7"}')
    runs._context, runs._shell = Path("c.toml"), shell
    assert runs.submit(SCENARIO) == "r-7"
    (line,) = shell.said
    assert line.startswith("FEDFLEET_CONTEXT=c.toml ") and line.endswith("fedfleet run /app --detach --json --seed 7")


def test_a_process_fleet_that_died_is_gone_and_can_be_ended(tmp_path: Path) -> None:
    fleet = Fleet("process", (Node("agent-0", 0, "0"),), tmp_path, pid=1, born=-1.0)  # another process has its id
    driver = ProcessDriver()
    assert driver.states(fleet) == {"agent-0": "gone"}
    with pytest.raises(FleetFault, match="not there any more"):
        driver.do(fleet, parse("kill agent-0"))
    driver.down(fleet)
    assert tree.process(1) is not None


def test_a_process_is_known_by_its_birth() -> None:
    import os

    me = tree.process(os.getpid())
    assert me is not None and tree.alive(me.pid, me.born) and not tree.alive(me.pid, me.born + 1)
    assert tree.process(0) is None and not tree.alive(0, 0.0)
