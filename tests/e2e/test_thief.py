"""A signed, trusted app that steals what it can, on a real fleet: confined it gets nothing, free it gets all."""

import json
import os
import time

import psutil
import pytest

import fedfleet_sandbox
from fedfleet_coordinator.cli.localfleet import LocalFleet
from fedfleet_coordinator.settings import Runner
from tests.e2e.fleet import ROOT, fedfleet, trainers

ABLE = fedfleet_sandbox.probe()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    pytest.mark.skipif(ABLE.landlock < 6 or not ABLE.seccomp, reason="this kernel has no Landlock that guards signals"),
]
THIEF = ROOT / "examples" / "thief"
FREE = {"trainer": {"sandbox": False, "isolation_minimum": "none"}}
NEEDS_ROOT = {"memory", "environment", "ptrace", "process_vm", "packet"}
"""Of an agent that hides its memory, an ordinary user gets these not even without a sandbox."""
NOT_IN_EVERY_KERNEL = {"alg", "vsock", "inet6", "io_uring", "namespace", "packet"}


def steal(fleet: LocalFleet, *options: str) -> tuple[dict[str, set[str]], dict[str, set[str]], str]:
    """Return what the thief got and what it was refused, by trainer and runner, and what the command said."""
    done = fedfleet(fleet, "run", str(THIEF), *options)
    said = done.stdout + done.stderr
    logs = fedfleet(fleet, "logs", said.split()[1]).stdout
    reports = [json.loads("{" + line.partition("thief {")[2]) for line in logs.splitlines() if "thief {" in line]
    assert reports, said + logs
    found: list[dict[str, set[str]]] = [
        {report["where"]: {name for name, worked in report.items() if worked is wanted} for report in reports}
        for wanted in (True, False)
    ]
    return found[0], found[1], said


def wait_until_gone(fleet: LocalFleet) -> None:
    """Wait for the end of every process of the app: a trainer is kept warm, what it started is not its run's."""
    deadline = time.monotonic() + 20
    while trainers(fleet, 0):
        assert time.monotonic() < deadline, [psutil.Process(pid).cmdline() for pid in trainers(fleet, 0)]
        time.sleep(0.1)


def test_a_thief_that_is_confined_gets_nothing_and_leaves_nothing() -> None:
    with LocalFleet(agents=1) as fleet:
        got, refused, _ = steal(fleet)
        wait_until_gone(fleet)
    assert got["trainer"] == set()
    assert got["runner"] <= {"inet", "inet6"}, "a runner may make streams to the API, and nothing else"
    assert len(refused["trainer"]) > 25 and len(refused["runner"]) > 15


def test_a_thief_that_is_free_gets_everything() -> None:
    with LocalFleet(agents=1, settings=FREE, runner=Runner(sandbox=False)) as fleet:
        _, refused, _ = steal(fleet)
    not_here = NOT_IN_EVERY_KERNEL | (set() if os.geteuid() == 0 else NEEDS_ROOT)
    for where in ("trainer", "runner"):
        left = {name.removeprefix("keeper_") for name in refused[where]}
        assert left <= not_here | {"children"}, where


@pytest.mark.parametrize(("most", "ended"), [(60, True), (0, False)])
def test_an_app_that_multiplies_is_ended_only_where_the_owner_bounds_it(most: int, ended: bool) -> None:
    with LocalFleet(agents=1, settings={"limits": {"processes": most}}) as fleet:
        got, _, said = steal(fleet, "-c", "children=300")
        wait_until_gone(fleet)
    assert ("[limits] processes" in said) == ended
    assert ("children" in got.get("trainer", ())) != ended


def test_a_device_that_cannot_keep_its_owners_minimum_declines_and_says_what_is_missing() -> None:
    with LocalFleet(agents=1, settings={"trainer": {"sandbox": False}}) as fleet:
        got, _, said = steal(fleet)
    assert not got["trainer"]
    assert "declined: isolation: the agent's key, the agent's journal and the network would be within" in said
