"""Reports: what was done and what the run made of it, for people, programs and a test's result page."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet_testfleet.errors import BadInput
from fedfleet_testfleet.fleet import Fleet, Node, dealt
from fedfleet_testfleet.picture import draw
from fedfleet_testfleet.report import Observation, Report, build, json_of, junit_of, lines_of

FLEET = Fleet("process", tuple(Node(f"agent-{n}", 0, str(n)) for n in range(2)), Path("/nowhere"))
SEEN = [
    Observation(100.0, "up", "2 nodes are up"),
    Observation(101.0, "run", "r-1 is accepted", run="r-1", expected="finished"),
    Observation(102.0, "round", run="r-1", round=2),
    Observation(102.1, "fault", "process 77 is killed", fault="kill coordinator", target="coordinator",
                step="at round 2: kill coordinator", took_s=0.25, run="r-1", round=2),
    Observation(102.2, "away", "the coordinator does not answer", run="r-1", round=2),
    Observation(103.0, "back", "the coordinator answers again", run="r-1", round=2),
    Observation(103.1, "fault", "process 78 is stopped", fault="stop agent-1 for 1s", target="agent-1", run="r-1",
                round=2),
    Observation(104.1, "fault", "process 78 goes on", fault="start agent-1", target="agent-1", run="r-1", round=2),
    Observation(111.0, "ended", "all rounds are done", run="r-1", round=4, state="finished", model="ab" * 32,
                tasks={"accepted": 16}),
]  # fmt: skip
REFUSED = Observation(102.5, "refused", "this driver cannot", fault="cut agent-0", target="agent-0", run="r-1", round=2)


def test_a_report_says_what_was_done_and_what_the_run_made_of_it() -> None:
    report = build(FLEET, SEEN[::-1], name="dies")
    assert report.good and report.seconds == 11.0
    (run,) = report.runs
    assert (run.state, run.rounds, run.seconds, run.faults, run.tasks) == ("finished", 4, 10.0, 3, {"accepted": 16})
    text = "\n".join(lines_of(report))
    assert "kill coordinator, in round 2 of r-1: process 77 is killed" in text
    assert "run r-1 is finished, as expected: 4 rounds in 10.0 s, 3 faults; tasks: 16 accepted" in text


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        ([*SEEN, REFUSED], "NOT DONE: cut agent-0"),
        (SEEN[:-1], "is unknown, expected was finished"),
        ([*SEEN[:-1], Observation(111.0, "ended", "gone", run="r-1", state="failed")], "is failed, expected was"),
    ],
)
def test_a_fault_that_was_not_done_or_a_run_that_ended_otherwise_is_not_good(
    seen: list[Observation], says: str
) -> None:
    report = build(FLEET, seen)
    assert not report.good
    assert says in "\n".join(lines_of(report))
    assert int(ET.fromstring(junit_of(report)).attrib["failures"]) == 1


def test_junit_has_a_case_for_each_fault_and_each_run() -> None:
    suite = ET.fromstring(junit_of(build(FLEET, SEEN, name="dies")))
    assert [case.attrib["name"] for case in suite] == [
        "at round 2: kill coordinator", "stop agent-1 for 1s", "start agent-1", "run r-1 ends as finished",
    ]  # fmt: skip
    assert suite.attrib | {"name": ""} == {"name": "", "tests": "4", "failures": "0", "errors": "0", "time": "11.000"}


def test_json_tells_programs_the_same() -> None:
    told = json.loads(json_of(build(FLEET, SEEN)))
    assert told["good"] is True and told["runs"][0]["state"] == "finished"
    assert [one["kind"] for one in told["observations"]] == [one.kind for one in SEEN]


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_xml_is_well_formed_whatever_a_process_said(text: str) -> None:
    report = build(FLEET, [*SEEN[:-1], Observation(111.0, "ended", text, run="r-1", state="failed")], name=text)
    ET.fromstring(junit_of(report))


def test_an_empty_report_is_one() -> None:
    report = build(FLEET, [])
    assert report == Report("a fleet of 2", "process", ("agent-0", "agent-1"), 0.0, 0.0, (), ())
    assert ET.fromstring(junit_of(report)).attrib["tests"] == "0"


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    draw(build(FLEET, [*SEEN, REFUSED]), tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    draw(build(FLEET, []), tmp_path / "empty.png")


def test_a_picture_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be written"):
        draw(build(FLEET, SEEN), tmp_path / "gone" / "report.png")


def test_nodes_are_dealt_to_the_clusters_evenly() -> None:
    assert dealt(5, 2) == (("agent-0", 0), ("agent-1", 0), ("agent-2", 0), ("agent-3", 1), ("agent-4", 1))
    for nodes, clusters in ((0, 1), (2, 3), (201, 1), (30, 21)):
        with pytest.raises(BadInput, match="at least one node in each"):
            dealt(nodes, clusters)


def test_a_node_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(BadInput, match="agent-0 to agent-1, its parts coordinator, broker"):
        FLEET.node("agent-7")
