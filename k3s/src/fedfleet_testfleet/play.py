"""Plays a scenario: starts its run, looks at it, does what is due, and notes everything."""

import time
from collections.abc import Callable
from typing import Protocol

from fedfleet_testfleet.driver import Driver
from fedfleet_testfleet.errors import TestfleetError, Unreachable
from fedfleet_testfleet.fault import Fault
from fedfleet_testfleet.fleet import Fleet
from fedfleet_testfleet.report import Observation
from fedfleet_testfleet.runs import Look, Runs
from fedfleet_testfleet.scenario import Due, Key, Scenario, due

TICK_S = 0.03
Note = Callable[[Observation], None]


class Clock(Protocol):
    """The time, and waiting."""

    def now(self) -> float:
        """Return seconds since some moment; never goes back."""
        ...

    def wall(self) -> float:
        """Return seconds since 1970."""
        ...

    def sleep(self, seconds: float) -> None:
        """Return after that time."""
        ...


class RealClock:
    """This machine's clocks."""

    def now(self) -> float:
        """Return seconds since some moment; see `Clock`."""
        return time.monotonic()

    def wall(self) -> float:
        """Return seconds since 1970; see `Clock`."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Return after that time; see `Clock`."""
        time.sleep(seconds)


def inflict(
    driver: Driver,
    fleet: Fleet,
    fault: Fault,
    *,
    note: Note,
    clock: Clock,
    run: str = "",
    round_: int = 0,
    step: str = "",
) -> TestfleetError | None:
    """Return None when the fault is done, or why it could not be; both are noted."""
    began = clock.now()
    refusal: TestfleetError | None = None
    try:
        text = driver.do(fleet, fault)
    except TestfleetError as error:
        refusal, text = error, str(error)
    note(
        Observation(
            at=clock.wall(), kind="refused" if refusal else "fault", text=text, fault=str(fault), target=fault.target,
            step=step, took_s=clock.now() - began, run=run, round=round_,
        )
    )  # fmt: skip
    return refusal


def hold(driver: Driver, fleet: Fleet, fault: Fault, *, note: Note, clock: Clock) -> TestfleetError | None:
    """Return None when the fault is done and, if it has an end, undone; or why one of it could not be.

    However the waiting ends, what was begun is undone.
    """
    refusal: TestfleetError | None = None
    try:
        refusal = inflict(driver, fleet, fault, note=note, clock=clock)
        if fault.for_s is not None and refusal is None:
            clock.sleep(fault.for_s)
    finally:
        if fault.end is not None and refusal is None:
            refusal = inflict(driver, fleet, fault.end, note=note, clock=clock)
    return refusal


class Play:
    """One scenario on one fleet.

    Args:
        note: is told what happens, when it happens.
    """

    def __init__(
        self, fleet: Fleet, driver: Driver, scenario: Scenario, runs: Runs, *, note: Note, clock: Clock | None = None
    ) -> None:
        self._fleet, self._driver, self._scenario, self._runs = fleet, driver, scenario, runs
        self._note, self._clock = note, clock or RealClock()
        self._done: dict[Key, float] = {}
        self._seen: dict[int, float] = {}
        self._run = ""
        self._round = 0
        self._away = False

    def act(self) -> None:
        """Play it to the end of its run, or of its time; whatever was begun and has an end is undone then.

        Raises:
            BadInput: the app cannot be used. Unreachable: nobody takes the run. FleetFault: anything else.
        """
        scenario, clock = self._scenario, self._clock
        self._run = self._runs.submit(scenario)
        began = clock.now()
        self._seen[0] = began
        self._tell("run", f"{scenario.app.name} is run {self._run}", expected=scenario.expect)
        try:
            while not (look := self._look()).ended and clock.now() - began < scenario.within_s:
                self._do(due(scenario.steps, self._seen, clock.now(), self._done))
                clock.sleep(TICK_S)
        finally:
            self._undo()
        self._miss()
        if look.ended:
            self._tell("ended", look.text, state=look.state, model=look.model, tasks=self._tasks())
        else:
            text = f"it did not end within {scenario.within_s:.0f} s; it goes on"
            self._tell("ended", text, state=look.state)

    def _look(self) -> Look:
        try:
            look = self._runs.look(self._run)
        except Unreachable as error:
            if not self._away:
                self._tell("away", str(error))
            self._away = True
            return Look("away", self._round)
        if self._away:
            self._tell("back", "the coordinator answers again")
            self._away = False
        if look.round > self._round:
            self._round = look.round
            if not look.ended:
                self._seen.setdefault(look.round, self._clock.now())
                self._tell("round")
        return look

    def _do(self, dues: tuple[Due, ...]) -> None:
        for one in dues:
            self._done[one.key] = self._clock.now()  # an interruption in the middle undoes it, too
            refusal = inflict(
                self._driver, self._fleet, one.fault, note=self._note, clock=self._clock, run=self._run,
                round_=self._round, step=self._spelled(one),
            )  # fmt: skip
            self._done[one.key] = self._clock.now()
            if refusal is not None:
                self._done[one.step, True] = self._clock.now()  # what was not begun has no end

    def _undo(self) -> None:
        """End what was begun and would end later."""
        self._do(tuple(one for one in due(self._scenario.steps, {}, float("inf"), self._done) if one.ends))

    def _miss(self) -> None:
        for place, step in enumerate(self._scenario.steps):
            if (place, False) not in self._done:
                text = "the run was over before"
                self._tell("refused", text, fault=str(step.fault), target=step.fault.target, step=str(step))

    def _tasks(self) -> dict[str, int]:
        try:
            return self._runs.tasks(self._run)
        except Unreachable:
            return {}

    def _spelled(self, one: Due) -> str:
        step = str(self._scenario.steps[one.step])
        return f"end of: {step}" if one.ends else step

    def _tell(self, kind: str, text: str = "", **more: object) -> None:
        self._note(
            Observation(at=self._clock.wall(), kind=kind, text=text, run=self._run, round=self._round, **more)  # type: ignore[arg-type]
        )
