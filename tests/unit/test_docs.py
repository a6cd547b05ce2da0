"""The documents say what the code says: generated parts are current, links lead somewhere, commands exist."""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from fedfleet_agent.__main__ import _parser
from fedfleet_coordinator.__main__ import app as coordinator_app
from fedfleet_coordinator.cli.commands import app as cli_app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*/*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_generated_parts_are_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate-docs"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{named(page)} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(file), f"{named(page)} links to {target}, which has no such heading"


def test_every_page_is_reached_from_the_index() -> None:
    reached, todo = set(), [ROOT / "docs" / "README.md"]
    while todo:
        page = todo.pop()
        if page in reached:
            continue
        reached.add(page)
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            file = (page.parent / target.partition("#")[0]).resolve()
            if file.suffix == ".md" and file.is_file():
                todo.append(file)
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs")} <= reached


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_in_examples_exist(page: Path) -> None:
    for words in commands_in(page.read_text(encoding="utf-8")):
        problem = complaint(words)
        assert not problem, f"{named(page)}: {' '.join(words)}: {problem}"


@pytest.mark.parametrize(
    "line",
    [
        "fedfleet fly",
        "fedfleet run . --wings",
        "fedfleet-agent join --wings",
        "fedfleet-coordinator fly",
        "fedfleet runs fly",
    ],
)
def test_a_command_that_does_not_exist_is_noticed(line: str) -> None:
    assert complaint(line.split())


# ----------------------------------------------------------------------------------------------------------------------


def anchors(file: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", file.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def commands_in(text: str) -> Iterator[list[str]]:
    """Yield the command lines of ours in a page's code blocks."""
    blocks = re.findall(r"^```(?:sh|console|bash)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^    (.+)$", FENCE.sub("", text), re.MULTILINE)
    for line in [*"\n".join(blocks).splitlines(), *indented]:
        words = line.partition("  #")[0].partition(" > ")[0].strip().removeprefix("$ ").split()
        if words and words[0] in ("fedfleet", "fedfleet-agent", "fedfleet-coordinator"):
            yield words


def complaint(words: list[str]) -> str:
    """Return what is wrong with a command line, empty if command and options exist."""
    if words[0] == "fedfleet-agent":
        return _complaint_of_agent(words[1:])
    command: Any = typer.main.get_command(cli_app if words[0] == "fedfleet" else coordinator_app)
    rest = words[1:]
    while hasattr(command, "commands") and rest and not rest[0].startswith(("-", "[", "COMMAND")):
        if rest[0] not in command.commands:
            return f"there is no {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    known = {name for parameter in command.params for name in parameter.opts} | {"--help", "-h"}
    return ", ".join(word for word in rest if word.startswith("-") and word.partition("=")[0] not in known)


def _complaint_of_agent(words: list[str]) -> str:
    parser = _parser()
    inner = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    if not words or words[0].startswith("-"):
        return ""
    if words[0] not in inner.choices:
        return f"there is no {words[0]}"
    known = inner.choices[words[0]]._option_string_actions
    return ", ".join(word for word in words[1:] if word.startswith("--") and word not in known)
