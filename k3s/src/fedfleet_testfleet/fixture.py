"""pytest: the fixture `fedfleet_fleet`, a fleet for the tests of an app.

    @pytest.mark.fedfleet(nodes=3)
    def test_my_app_survives_a_dead_coordinator(fedfleet_fleet):
        report = fedfleet_fleet.scenario("dies.yaml")
        assert report.good, report

`--fedfleet-driver` chooses the driver; the default is processes on this machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedfleet_testfleet.driver import Driver
    from fedfleet_testfleet.report import Report
    from fedfleet_testfleet.state import State

# Pytest imports this in every session of everybody who has it installed: the rest is imported when it is needed.


class FleetUnderTest:
    """A fleet that is up for one test.

    Attributes:
        state: where it is kept; `fedfleet-testfleet --fleet` takes `state.folder`.
    """

    def __init__(self, state: State, driver: Driver) -> None:
        self.state, self._driver = state, driver

    @property
    def context(self) -> Path | None:
        """The file for FEDFLEET_CONTEXT."""
        return self.state.fleet().context

    def fault(self, text: str) -> str:
        """Return what was done; `text` is like "stop agent-0". It is not undone.

        Raises:
            TestfleetError: it makes no sense, or cannot be done.
        """
        from fedfleet_testfleet.fault import parse
        from fedfleet_testfleet.play import RealClock, inflict

        refusal = inflict(self._driver, self.state.fleet(), parse(text), note=self.state.note, clock=RealClock())
        if refusal is not None:
            raise refusal
        return self.state.observations()[-1].text

    def scenario(self, file: str | Path) -> Report:
        """Return the report of a scenario that was just played.

        Raises:
            TestfleetError: the file is wrong, or its run is not taken.
        """
        from fedfleet_testfleet.report import build
        from fedfleet_testfleet.scenario import load
        from fedfleet_testfleet.session import play

        wanted, before = load(Path(file)), len(self.state.observations())
        play(self.state.fleet(), self._driver, wanted, self.state.note)
        return build(self.state.fleet(), self.state.observations()[before:], name=wanted.name)

    def report(self) -> Report:
        """Return the report of everything so far."""
        from fedfleet_testfleet.report import build

        return build(self.state.fleet(), self.state.observations())


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the choice of a driver."""
    parser.getgroup("fedfleet").addoption(
        "--fedfleet-driver", default="process",
        help="what fleets of fedfleet_fleet are made of: process, k3d, testcluster",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Tell pytest of the marker."""
    config.addinivalue_line("markers", "fedfleet(nodes=2, clusters=1, data=None): the fleet of fedfleet_fleet")


@pytest.fixture
def fedfleet_fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FleetUnderTest]:
    """Return a fleet that is up; it is gone after the test."""  # fmt: skip
    from fedfleet_testfleet.fleet import Wanted
    from fedfleet_testfleet.session import begin, driver_named
    from fedfleet_testfleet.state import State

    marker = request.node.get_closest_marker("fedfleet")
    asked = {"nodes": 2, "clusters": 1, "data": None} | (marker.kwargs if marker else {})
    state = State(tmp_path_factory.mktemp("fedfleet"))
    driver = driver_named(request.config.getoption("--fedfleet-driver"))
    fleet = begin(state, driver, Wanted(folder=state.driver, **asked))
    try:
        yield FleetUnderTest(state, driver)
    finally:
        driver.down(fleet)
