"""A scenario is played in virtual time: what is done when, what is noted, what is undone."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from fedfleet_testfleet.driver import NodeState
from fedfleet_testfleet.errors import BadInput, Cannot, FleetFault, Unreachable
from fedfleet_testfleet.fault import Fault, parse
from fedfleet_testfleet.fleet import DriverName, Fleet, Node, Wanted
from fedfleet_testfleet.play import Play, hold
from fedfleet_testfleet.report import Observation, Report, build
from fedfleet_testfleet.runs import Look, seen
from fedfleet_testfleet.scenario import Scenario, Step

FLEET = Fleet("process", tuple(Node(f"agent-{n}", 0, str(n)) for n in range(2)), Path("/nowhere"))


class VirtualClock:
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time + 1e9

    def sleep(self, seconds: float) -> None:
        self.time += seconds


class NotingDriver:
    """Does nothing, and says when it would have."""

    name: DriverName = "process"

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.did: list[tuple[float, str]] = []
        self.refuses: set[str] = set()

    def up(self, wanted: Wanted) -> Fleet:
        return FLEET

    def do(self, fleet: Fleet, fault: Fault) -> str:
        if str(fault) in self.refuses:
            raise Cannot(f"{fault}: not here")
        self.did.append((round(self._clock.time - 1000.0, 1), str(fault)))
        return "done"

    def states(self, fleet: Fleet) -> dict[str, NodeState]:
        return {}

    def down(self, fleet: Fleet) -> None:
        pass


class TimedRuns:
    """A run whose rounds take ten seconds each; away between two times."""

    def __init__(self, clock: VirtualClock, *, rounds: int = 4, away: tuple[float, float] = (0.0, 0.0)) -> None:
        self._clock, self._rounds, self._away = clock, rounds, away

    def submit(self, scenario: Scenario) -> str:
        return "r-1"

    def look(self, run: str) -> Look:
        passed = self._clock.time - 1000.0
        if self._away[0] <= passed < self._away[1]:
            raise Unreachable("it does not answer")
        done = int(passed / 10.0 + 1e-9)
        if done >= self._rounds:
            return Look("finished", self._rounds, "all rounds are done", "ab" * 32)
        return Look("running", done + 1)

    def tasks(self, run: str) -> dict[str, int]:
        return {"accepted": 2 * self._rounds}


class Stage:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.driver = NotingDriver(self.clock)
        self.noted: list[Observation] = []

    def play(self, *steps: tuple[int, float, str], within_s: float = 600.0, **runs: object) -> Report:
        scenario = Scenario(
            "it", Path("app"), tuple(Step(r, d, parse(text)) for r, d, text in steps), within_s=within_s
        )
        timed = TimedRuns(self.clock, **runs)  # type: ignore[arg-type]
        Play(FLEET, self.driver, scenario, timed, note=self.noted.append, clock=self.clock).act()
        return build(FLEET, self.noted)

    def kinds(self) -> list[str]:
        return [one.kind for one in self.noted]


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_faults_are_done_in_their_rounds_and_undone_in_time(stage: Stage) -> None:
    report = stage.play((2, 0.0, "kill coordinator"), (2, 5.0, "stop agent-1 for 10s"), (0, 0.0, "kill broker"))
    assert stage.driver.did == [
        (0.0, "kill broker"), (10.0, "kill coordinator"), (15.0, "stop agent-1 for 10s"), (25.0, "start agent-1"),
    ]  # fmt: skip
    assert report.good
    assert [one.round for one in stage.noted if one.kind == "fault"] == [1, 2, 2, 3]
    assert [one.round for one in stage.noted if one.kind == "round"] == [1, 2, 3, 4]
    (run,) = report.runs
    assert (run.state, run.rounds, run.tasks) == ("finished", 4, {"accepted": 8})


def test_a_coordinator_that_is_away_is_noted_and_the_play_goes_on(stage: Stage) -> None:
    report = stage.play((2, 0.0, "stop agent-1 for 3s"), away=(11.0, 27.0))
    assert stage.kinds() == ["run", "round", "round", "fault", "away", "fault", "back", "round", "round", "ended"]
    assert stage.driver.did == [(10.0, "stop agent-1 for 3s"), (13.0, "start agent-1")]
    assert report.good


def test_what_a_driver_cannot_do_is_noted_once_and_has_no_end(stage: Stage) -> None:
    stage.driver.refuses.add("cut agent-0 for 1s")
    report = stage.play((2, 0.0, "cut agent-0 for 1s"))
    assert stage.driver.did == [] and stage.kinds().count("refused") == 1
    assert not report.good


def test_what_would_end_after_the_run_is_ended_with_it(stage: Stage) -> None:
    stage.play((4, 5.0, "stop agent-1 for 1h"))
    assert stage.driver.did == [(35.0, "stop agent-1 for 3600s"), (40.0, "start agent-1")]
    assert stage.kinds()[-1] == "ended"


def test_a_step_whose_round_never_came_makes_the_report_not_good(stage: Stage) -> None:
    report = stage.play((9, 0.0, "kill broker"))
    assert [one.text for one in stage.noted if one.kind == "refused"] == ["the run was over before"]
    assert not report.good


def test_a_run_that_takes_too_long_is_left_alone_and_told(stage: Stage) -> None:
    report = stage.play((1, 0.0, "stop agent-0 for 1h"), within_s=25.0)
    assert stage.driver.did[-1] == (25.0, "start agent-0")
    assert report.runs[0].state == "running" and "within 25 s" in report.runs[0].text
    assert not report.good


def test_a_play_that_is_interrupted_leaves_nothing_stopped(stage: Stage) -> None:
    def interrupted(fault: str) -> Callable[[Fleet, Fault], str]:
        done = stage.driver.do

        def do(fleet: Fleet, what: Fault) -> str:
            text = done(fleet, what)
            if str(what) == fault:
                raise KeyboardInterrupt
            return text

        return do

    stage.driver.do = interrupted("kill broker")  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        stage.play((1, 0.0, "stop agent-0 for 1h"), (2, 0.0, "kill broker"))
    assert stage.driver.did[-1] == (10.0, "start agent-0")


@pytest.mark.parametrize("moment", ["done", "noted", "waiting"])
def test_a_fault_that_is_interrupted_at_any_moment_is_undone(stage: Stage, moment: str) -> None:
    interrupted = False

    def interrupt(now: str) -> None:
        nonlocal interrupted
        if now == moment and not interrupted:
            interrupted = True
            raise KeyboardInterrupt

    class Driver(NotingDriver):
        def do(self, fleet: Fleet, fault: Fault) -> str:
            text = super().do(fleet, fault)
            interrupt("done")
            return text

    class Clock(VirtualClock):
        def sleep(self, seconds: float) -> None:
            interrupt("waiting")
            super().sleep(seconds)

    def note(one: Observation) -> None:
        interrupt("noted")

    driver = Driver(stage.clock)
    with pytest.raises(KeyboardInterrupt):
        hold(driver, FLEET, parse("stop agent-0 for 20s"), note=note, clock=Clock())
    assert [text for _, text in driver.did] == ["stop agent-0 for 20s", "start agent-0"]

    steps = (Step(0, 0.0, parse("stop agent-1 for 20s")),)
    interrupted, driver = moment == "waiting", Driver(stage.clock)
    with pytest.raises(KeyboardInterrupt) if not interrupted else contextlib.nullcontext():
        scenario = Scenario("it", Path("app"), steps)
        noted = lambda one: note(one) if one.kind == "fault" else None  # noqa: E731  a line that says all
        Play(FLEET, driver, scenario, TimedRuns(stage.clock), note=noted, clock=stage.clock).act()
    assert [text for _, text in driver.did] == ["stop agent-1 for 20s", "start agent-1"]


def test_a_fault_is_held_for_its_time(stage: Stage) -> None:
    assert hold(stage.driver, FLEET, parse("stop agent-0 for 20s"), note=stage.noted.append, clock=stage.clock) is None
    assert stage.driver.did == [(0.0, "stop agent-0 for 20s"), (20.0, "start agent-0")]
    stage.driver.refuses.add("slow agent-0 for 1s")
    refusal = hold(stage.driver, FLEET, parse("slow agent-0 for 1s"), note=stage.noted.append, clock=stage.clock)
    assert isinstance(refusal, Cannot) and len(stage.driver.did) == 2


@pytest.mark.parametrize("error", [BadInput("no app"), FleetFault("no")])
def test_a_run_that_is_not_taken_is_no_play(stage: Stage, error: Exception) -> None:
    class Refusing(TimedRuns):
        def submit(self, scenario: Scenario) -> str:
            raise error

    scenario = Scenario("it", Path("app"), ())
    with pytest.raises(type(error)):
        Play(FLEET, stage.driver, scenario, Refusing(stage.clock), note=stage.noted.append, clock=stage.clock).act()
    assert stage.noted == []


def test_the_round_under_way_is_the_one_after_those_that_are_committed() -> None:
    def at(state: str, done: int, **more: object) -> int:
        return seen({"state": state, "server_round": done, "num_rounds": 4, "exchange": {}, **more}).round

    assert at("running", 0, exchange=None) == 0
    assert at("running", 0) == 1 and at("running", 3) == 4 and at("running", 4) == 4
    assert at("finished", 4) == 4 and at("failed", 2) == 2
    assert at("running", 7, num_rounds=None) == 8
