"""Scenarios: read with file and line of what is wrong, and played by the rounds of a run."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet_testfleet.errors import BadInput
from fedfleet_testfleet.fault import Action, Fault
from fedfleet_testfleet.scenario import Due, Scenario, Step, due, load, parse

GOOD = """\
name: the coordinator dies
run:
  app: ../quickstart
  options: [--seed, "7"]
  config:
    num-server-rounds: 4
within: 2m
steps:
  - at round 2: kill coordinator
  - at round 2 + 500ms: stop agent-1 for 10s
  - at start: slow agent-0
"""


def test_a_scenario_is_read(tmp_path: Path) -> None:
    scenario = parse(GOOD, tmp_path / "tests" / "dies.yaml")
    assert scenario == Scenario(
        name="the coordinator dies",
        app=tmp_path / "quickstart",
        options=("--seed", "7", "-c", "num-server-rounds=4"),
        expect="finished",
        within_s=120.0,
        steps=(
            Step(2, 0.0, Fault(Action.KILL, "coordinator"), 9),
            Step(2, 0.5, Fault(Action.STOP, "agent-1", 10.0), 10),
            Step(0, 0.0, Fault(Action.SLOW, "agent-0"), 11),
        ),
    )


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (("kill coordinator", "explode coordinator"), 9, "cannot explode"),
        (("at round 2: kill", "at round two: kill"), 9, "at round 2"),
        (("within: 2m", "within: soon"), 7, "10s"),
        (("steps:", "stepz:"), 8, "name, run, steps, expect, within"),
        (("  app: ../quickstart\n", ""), 3, "app"),
        ((GOOD[GOOD.index("run:") : GOOD.index("within:")], "run: now\n"), 2, "app"),
        (('[--seed, "7"]', "--seed 7"), 4, "list"),
        (("    num-server-rounds: 4\n", "    num-server-rounds: [4]\n"), 6, "TOML"),
        (("name: the coordinator dies", "name: [1]"), 1, "name"),
        (("  - at start: slow agent-0", "  - {at start: slow agent-0, at round 1: kill broker}"), 11, "one"),
        (("within: 2m", "expect: wonders"), 7, "finished, failed or stopped"),
        (("run:", "run: ["), 4, "YAML"),
        (("name:", "<<: *gone\nname:"), 1, "YAML"),
        (("within: 2m", "name: again"), 7, "twice"),
        (("rounds: 4", "rounds: !!int four"), 6, "TOML"),
    ],
)
def test_what_is_wrong_is_told_with_file_line_and_remedy(change: tuple[str, str], line: int, says: str) -> None:
    broken = GOOD.replace(*change, 1)
    assert broken != GOOD
    with pytest.raises(BadInput) as caught:
        parse(broken, Path("dies.yaml"))
    assert str(caught.value).startswith(f"dies.yaml:{line}: "), caught.value
    assert says in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1", "42", "a" * (1 << 21)])
def test_what_is_no_scenario_at_all_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"x\.yaml"):
        parse(text, Path("x.yaml"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"gone\.yaml cannot be read"):
        load(tmp_path / "gone.yaml")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text, Path("x.yaml"))
    except BadInput:
        pass


# --- when a step is due ----------------------------------------------------------------------------------------------

STOP = Step(2, 1.0, Fault(Action.STOP, "agent-1", 10.0))
KILL = Step(1, 0.0, Fault(Action.KILL, "broker"))
FIRST = Step(0, 0.0, Fault(Action.KILL, "coordinator"))


def test_nothing_is_due_before_its_round() -> None:
    assert due((STOP, KILL), {}, 100.0) == ()
    assert due((STOP, KILL), {1: 100.0}, 100.0) == (Due(1, KILL.fault),)


def test_a_step_at_the_start_is_due_at_once() -> None:
    assert due((FIRST,), {0: 5.0}, 5.0) == (Due(0, FIRST.fault),)


def test_a_delay_counts_from_the_sight_of_the_round() -> None:
    assert due((STOP,), {2: 100.0}, 100.9) == ()
    assert due((STOP,), {2: 100.0}, 101.0) == (Due(0, STOP.fault),)


def test_a_round_that_was_too_quick_to_be_seen_counts_when_a_later_one_is() -> None:
    assert due((STOP,), {1: 10.0, 4: 50.0}, 51.0) == (Due(0, STOP.fault),)


def test_a_fault_ends_so_long_after_it_was_done_and_is_done_once() -> None:
    done = {(0, False): 103.0}
    assert due((STOP,), {2: 100.0}, 112.9, done) == ()
    end = Due(0, Fault(Action.START, "agent-1"), ends=True)
    assert due((STOP,), {2: 100.0}, 113.0, done) == (end,)
    assert due((STOP,), {2: 100.0}, 200.0, {**done, end.key: 113.0}) == ()


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 3), st.none() | st.floats(0.1, 3)), max_size=6))
def test_every_step_and_every_end_is_done_exactly_once_whatever_the_times(
    shape: list[tuple[int, float, float | None]],
) -> None:
    steps = tuple(Step(r, d, Fault(Action.STOP, f"agent-{n}", s)) for n, (r, d, s) in enumerate(shape))
    done: dict[tuple[int, bool], float] = {}
    for tick in range(200):
        now = tick * 0.1
        for one in due(steps, {r: float(r) for r in range(6) if r <= now}, now, done):
            assert one.key not in done
            done[one.key] = now
    wanted = {(n, False) for n in range(len(steps))} | {(n, True) for n, s in enumerate(steps) if s.fault.for_s}
    assert set(done) == wanted


# --- what is written for people --------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "k3s" / "scenarios" / "coordinator-dies.yaml"


def test_the_example_can_be_played() -> None:
    scenario = load(EXAMPLE)
    assert scenario.app == ROOT / "examples" / "digits" and (scenario.app / "pyproject.toml").exists()
    assert [str(step) for step in scenario.steps] == [
        "at round 2: kill coordinator", "at round 3: stop agent-1 for 3s", "at round 4 + 0.5s: kill broker",
    ]  # fmt: skip


def test_the_page_shows_the_example() -> None:
    page = (ROOT / "docs" / "how-to" / "test-on-a-fleet.md").read_text()
    shown = page.partition("```yaml\n")[2].partition("```")[0]
    assert shown == EXAMPLE.read_text()[EXAMPLE.read_text().index("name:") :]
