"""What was done to a fleet, and what the run made of it: observations, and reports made of them."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal
from xml.etree import ElementTree as ET  # written only, never parsed

import msgspec

from fedfleet_testfleet.fleet import Fleet

Kind = Literal["up", "fault", "refused", "run", "round", "away", "back", "ended"]
_LEGAL = {"\t", "\n", "\r"}


class Observation(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that happened.

    Attributes:
        at: seconds since 1970. kind: fault is one that was done, refused one that could not be; run is a run that was
            accepted, round one of its rounds that began, away and back tell of the coordinator.
        fault: as it is spelled. target: to what. step: as the scenario spells it; empty outside of one.
        took_s: how long doing it took.
        run, round: of the run that was under way. state: in which it ended. expected: in which it had to.
        tasks: how many tasks of the run came to which state.
    """

    at: float
    kind: Kind
    text: str = ""
    fault: str = ""
    target: str = ""
    step: str = ""
    took_s: float = 0.0
    run: str = ""
    round: int = 0
    state: str = ""
    expected: str = ""
    model: str = ""
    tasks: dict[str, int] = {}


class Outcome(msgspec.Struct, frozen=True):
    """What became of a run.

    Attributes:
        state: "unknown" while it has not ended. seconds: from its acceptance to its end or to what is known last.
        faults: how many were done while it ran.
    """

    run: str
    state: str
    expected: str
    text: str
    rounds: int
    seconds: float
    faults: int
    model: str = ""
    tasks: dict[str, int] = {}

    @property
    def good(self) -> bool:
        """Whether it ended as expected."""
        return self.state == self.expected


class Report(msgspec.Struct, frozen=True):
    """What was done to a fleet and what its runs made of it."""

    name: str
    driver: str
    nodes: tuple[str, ...]
    began: float
    seconds: float
    runs: tuple[Outcome, ...]
    observations: tuple[Observation, ...]

    @property
    def good(self) -> bool:
        """Whether every run ended as expected and every fault that was wanted was done."""
        return all(run.good for run in self.runs) and not any(one.kind == "refused" for one in self.observations)


def build(fleet: Fleet, observations: Sequence[Observation], *, name: str = "") -> Report:
    """Return the report of a fleet."""
    seen = tuple(sorted(observations, key=lambda one: one.at))
    began = seen[0].at if seen else 0.0
    ids = dict.fromkeys(one.run for one in seen if one.kind == "run")
    return Report(
        name=name or f"a fleet of {len(fleet.nodes)}", driver=fleet.driver,
        nodes=tuple(node.name for node in fleet.nodes), began=began, seconds=seen[-1].at - began if seen else 0.0,
        runs=tuple(_outcome(run, [one for one in seen if one.run == run]) for run in ids), observations=seen,
    )  # fmt: skip


def _outcome(run: str, seen: Sequence[Observation]) -> Outcome:
    accepted = next(one for one in seen if one.kind == "run")
    end = next((one for one in seen if one.kind == "ended"), None)
    return Outcome(
        run=run, state=end.state if end else "unknown", expected=accepted.expected or "finished",
        text=end.text if end else "it had not ended when this was written",
        rounds=end.round if end else max((one.round for one in seen), default=0),
        seconds=(end or seen[-1]).at - accepted.at, faults=sum(one.kind == "fault" for one in seen),
        model=end.model if end else "", tasks=end.tasks if end else {},
    )  # fmt: skip


def json_of(report: Report) -> bytes:
    """Return a report as JSON, for programs."""
    plain: dict[str, Any] = msgspec.to_builtins(report)
    plain["good"] = report.good
    return msgspec.json.format(msgspec.json.encode(plain, order="sorted"), indent=2) + b"\n"


def junit_of(report: Report) -> bytes:
    """Return a report as JUnit XML: a case for each fault, and one for each run."""
    suite = ET.Element("testsuite", name=_legal(f"fedfleet-testfleet {report.name}"))
    failures = 0
    for one in report.observations:
        if one.kind not in ("fault", "refused"):
            continue
        case = _case(suite, report.driver, one.step or one.fault, one.took_s)
        if one.kind == "refused":
            failures += 1
            ET.SubElement(case, "failure", message=_legal(one.text))
        else:
            ET.SubElement(case, "system-out").text = _legal(sentence(one))
    for run in report.runs:
        case = _case(suite, report.driver, f"run {run.run} ends as {run.expected}", run.seconds)
        ET.SubElement(case, "system-out").text = _legal(verdict(run))
        if not run.good:
            failures += 1
            ET.SubElement(case, "failure", message=_legal(f"it is {run.state}: {run.text}"))
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(failures))
    suite.set("errors", "0")
    suite.set("time", f"{report.seconds:.3f}")
    written: bytes = ET.tostring(suite, encoding="utf-8", xml_declaration=True)
    return written


def lines_of(report: Report) -> Iterable[str]:
    """Yield a report's lines, for people."""
    yield f"{report.name}: {report.driver}, {len(report.nodes)} nodes, {report.seconds:.1f} s"
    for one in report.observations:
        yield f"{one.at - report.began:8.1f} s  {sentence(one)}"
    for run in report.runs:
        yield verdict(run)


def sentence(one: Observation) -> str:
    """Return an observation in words."""
    during = f", in round {one.round} of {one.run}" if one.run and one.round else f", in {one.run}" if one.run else ""
    if one.kind == "fault":
        return f"{one.fault}{during}: {one.text}"
    if one.kind == "refused":
        return f"NOT DONE: {one.fault}{during}: {one.text}"
    if one.kind == "round":
        return f"round {one.round} of {one.run} begins"
    if one.kind == "ended":
        return f"{one.run} {one.state} after {one.round} rounds"
    return one.text


def verdict(run: Outcome) -> str:
    """Return what a run made of it, in words."""
    word = "as expected" if run.good else f"expected was {run.expected}"
    tasks = ", ".join(f"{count} {state}" for state, count in sorted(run.tasks.items()))
    return (
        f"run {run.run} is {run.state}, {word}: {run.rounds} rounds in {run.seconds:.1f} s, {run.faults} faults"
        + (f"; tasks: {tasks}" if tasks else "")
        + (f"; model {run.model[:16]}" if run.model else "")
        + (f"; {run.text}" if run.text else "")
    )


def _case(suite: ET.Element, driver: str, name: str, seconds: float) -> ET.Element:
    return ET.SubElement(
        suite, "testcase", classname=f"fedfleet_testfleet.{driver}", name=_legal(name), time=f"{seconds:.3f}"
    )


def _legal(text: str) -> str:
    """Return text without what XML cannot hold (XML 1.0 §2.2)."""
    return "".join(
        char if char in _LEGAL or (char >= " " and not "\ud800" <= char <= "\udfff" and char not in "\ufffe\uffff")
        else "\ufffd" for char in text
    )  # fmt: skip
