"""Scenarios: a run, and what is done to the fleet in which of its rounds.

    name: the coordinator dies
    run:
      app: ../digits            # a Flower app, from this file's folder
      config: {num-server-rounds: 4}
      options: [--seed, "7"]    # of `fedfleet run`
    steps:
      - at round 2: kill coordinator
      - at round 3 + 500ms: stop agent-1 for 10s
    expect: finished            # or failed, stopped
    within: 5m

"At start" is as soon as the run is accepted, "at round 2" as soon as the second round is seen to have begun.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from fedfleet_testfleet.errors import BadInput
from fedfleet_testfleet.fault import Fault, seconds
from fedfleet_testfleet.fault import parse as parse_fault

MAX_BYTES = 1 << 20
MAX_STEPS = 1000
WITHIN_S = 600.0
EXPECTED = ("finished", "failed", "stopped")
_KEYS = ("name", "run", "steps", "expect", "within")
_RUN_KEYS = ("app", "config", "options")
_AT = re.compile(r"at (?:start|round (?P<round>[0-9]{1,6}))(?: \+ (?P<delay>\S+))?")
_HOW = "write a step like: at round 2: stop agent-0 for 10s"

Key = tuple[int, bool]
"""Which step, and whether its end is meant."""


class Step(msgspec.Struct, frozen=True):
    """One thing to do in the course of a run.

    Attributes:
        at_round: 0 is the start of the run. delay_s: seconds after the round is seen.
        line: in the scenario's file, 0 if it has none.
    """

    at_round: int
    delay_s: float
    fault: Fault
    line: int = 0

    def __str__(self) -> str:
        when = f"round {self.at_round}" if self.at_round else "start"
        return f"at {when}{f' + {self.delay_s:.10g}s' if self.delay_s else ''}: {self.fault}"


class Scenario(msgspec.Struct, frozen=True):
    """A run and what is done to the fleet meanwhile.

    Attributes:
        app: the app's folder. options: more arguments of `fedfleet run`.
        expect: the state in which the run has to end. within_s: seconds it may take.
    """

    name: str
    app: Path
    steps: tuple[Step, ...]
    options: tuple[str, ...] = ()
    expect: Literal["finished", "failed", "stopped"] = "finished"
    within_s: float = WITHIN_S


class Due(msgspec.Struct, frozen=True):
    """A fault whose time has come.

    Attributes:
        step: its place among the scenario's steps. ends: whether it undoes what that step did.
    """

    step: int
    fault: Fault
    ends: bool = False

    @property
    def key(self) -> Key:
        """Tells it from all others of the scenario."""
        return self.step, self.ends


def due(
    steps: Sequence[Step], rounds_seen: Mapping[int, float], now: float, done: Mapping[Key, float] | None = None
) -> tuple[Due, ...]:
    """Return what is to be done now, in the order in which its time came.

    A round that passed too quickly to be seen counts as seen with the next one.

    Args:
        rounds_seen: when each round was first seen; 0 is the start of the run. Any clock that only goes forward.
        now: by that clock.
        done: when what was done was done, by `Due.key`.
    """
    done = done or {}
    found: list[tuple[float, Due]] = []
    for place, step in enumerate(steps):
        if (place, False) in done:
            end = step.fault.end
            if end is not None and (place, True) not in done:
                assert step.fault.for_s is not None
                found.append((done[place, False] + step.fault.for_s, Due(place, end, ends=True)))
            continue
        seen = [at for number, at in rounds_seen.items() if number >= step.at_round]
        if seen:
            found.append((min(seen) + step.delay_s, Due(place, step.fault)))
    return tuple(one for at, one in sorted(found, key=lambda pair: (pair[0], pair[1].key)) if at <= now)


def load(file: Path) -> Scenario:
    """Return the scenario in `file`.

    Raises:
        BadInput: it cannot be read, or something in it is wrong; the message names file and line.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        return parse(data.decode(), file)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def parse(text: str, file: Path) -> Scenario:
    """Return the scenario that `text` spells.

    Args:
        file: where it is from; the app's folder starts at its folder.

    Raises:
        BadInput: something in it is wrong; the message begins with file and line.
    """
    if len(text) > MAX_BYTES:
        raise BadInput(f"{file} is larger than {MAX_BYTES} bytes; that is no scenario")
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise BadInput(f"{file}:{mark.line + 1 if mark else 1}: this is no YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise BadInput(f"{file}: this is no YAML: {str(error).splitlines()[0]}") from error
    return _Reader(file).scenario(root)


class _Reader:
    """Reads YAML's nodes, which know their lines."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def wrong(self, node: yaml.Node | None, text: str) -> BadInput:
        return BadInput(f"{self._file}:{node.start_mark.line + 1 if node else 1}: {text}")

    def scenario(self, root: yaml.Node | None) -> Scenario:
        if not isinstance(root, yaml.MappingNode):
            raise self.wrong(root, f"a scenario is a mapping of {', '.join(_KEYS)}")
        parts = self.mapping(root, _KEYS)
        for name in ("run", "steps"):
            if name not in parts:
                raise self.wrong(root, f"{name} is missing; a scenario has a run and steps")
        app, options = self.run(parts["run"])
        expect = self.text(parts["expect"], "expect") if "expect" in parts else "finished"
        if expect not in EXPECTED:
            raise self.wrong(parts["expect"], f"a run cannot end as {expect!r}; expect finished, failed or stopped")
        within = parts.get("within")
        return Scenario(
            name=self.text(parts["name"], "name") if "name" in parts else self._file.stem,
            app=app, options=options, expect=expect,  # type: ignore[arg-type]
            within_s=self.told(within, seconds, self.text(within, "within")) if within else WITHIN_S,
            steps=tuple(self.steps(parts["steps"])),
        )  # fmt: skip

    def run(self, node: yaml.Node) -> tuple[Path, tuple[str, ...]]:
        parts = self.mapping(node, _RUN_KEYS) if isinstance(node, yaml.MappingNode) else {}
        if "app" not in parts:
            raise self.wrong(node, "run needs app: the folder of a Flower app, from this file's folder")
        app = Path(self.text(parts["app"], "app")).expanduser()
        options = [self.text(one, "an option") for one in self.items(parts.get("options"), "options")]
        config = parts.get("config")
        if config is not None and not isinstance(config, yaml.MappingNode):
            raise self.wrong(config, "config is a mapping of the app's settings")
        for key, value in self.mapping(config, None).items() if config else ():
            options += ["-c", f"{key}={self.toml(value)}"]
        return (self._file.parent / app).resolve(), tuple(options)

    def steps(self, node: yaml.Node) -> Iterator[Step]:
        items = self.items(node, "steps")
        if len(items) > MAX_STEPS:
            raise self.wrong(node, f"these are {len(items)} steps; at most {MAX_STEPS} are played")
        for item in items:
            if isinstance(item, yaml.MappingNode):
                if len(item.value) != 1:
                    raise self.wrong(item, f"a step is one thing at one time; {_HOW}")
                when, what = (self.text(part, "a step") for part in item.value[0])
            else:
                when, _, what = self.text(item, "a step").partition(":")
            found = _AT.fullmatch(when.strip())
            if found is None:
                raise self.wrong(item, f"{when!r} is no time of a run; {_HOW}")
            delay = self.told(item, seconds, found["delay"]) if found["delay"] else 0.0
            fault = self.told(item, parse_fault, what)
            yield Step(int(found["round"] or 0), delay, fault, item.start_mark.line + 1)

    def mapping(self, node: yaml.MappingNode, known: tuple[str, ...] | None) -> dict[str, yaml.Node]:
        parts: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = self.text(key, "a key")
            if known is not None and name not in known:
                raise self.wrong(key, f"{name!r} means nothing here; known are {', '.join(known)}")
            if name in parts:
                raise self.wrong(key, f"{name!r} is there twice; leave one out")
            parts[name] = value
        return parts

    def items(self, node: yaml.Node | None, what: str) -> list[yaml.Node]:
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            raise self.wrong(node, f"{what} is a list, each item a line that begins with a dash, or [a, b]")
        return list(node.value)

    def text(self, node: yaml.Node, what: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            raise self.wrong(node, f"{what} is a text on one line")
        return str(node.value)

    def toml(self, node: yaml.Node) -> str:
        """Return a value as `fedfleet run -c` takes it."""
        value = None
        with contextlib.suppress(yaml.YAMLError, ValueError):
            value = yaml.SafeLoader("").construct_object(node) if isinstance(node, yaml.ScalarNode) else None
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, int | float):
            return repr(value)
        if isinstance(value, str):
            return msgspec.json.encode(value).decode()  # a JSON string is a TOML string
        raise self.wrong(node, "the app's settings are text, numbers, true or false, as in TOML")

    def told(self, node: yaml.Node, read: Callable[[str], Any], text: str) -> Any:
        """Return what `read` makes of `text`; what is wrong with it is told with the line."""
        try:
            return read(text)
        except BadInput as error:
            raise self.wrong(node, str(error)) from error
