"""The shape of the code: who imports whom, and the words that no module may use."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = sorted(ROOT.glob("*/src/*/__init__.py"))
MODULES = sorted(ROOT.glob("*/src/**/*.py"))
DISTRIBUTIONS = sorted(ROOT.glob("*/pyproject.toml"))
EMPTY_WORDS = {"utils", "util", "helpers", "helper", "common", "constants", "manager", "base", "misc"}


def spelled(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Yield every module that the one in `path` imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def calls(path: Path) -> Iterator[str]:
    """Yield every plain name that the module in `path` calls."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


def strings(path: Path) -> Iterator[str]:
    """Yield every string in the code of the module in `path`, docstrings left out."""
    tree = ast.parse(path.read_text())
    said = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_imports_go_where_the_design_allows() -> None:
    done = run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["fedfleet_agent", "fedfleet_agent.__main__"])
def test_the_resident_agent_loads_neither_flower_nor_arrays_nor_asyncio(module: str) -> None:
    heavy = ["flwr", "numpy", "torch", "asyncio", "fedfleet_flower", "fedfleet_trainer", "fedfleet_coordinator"]
    done = run("-c", f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])")
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_the_protocol_loads_nothing_that_is_heavy() -> None:
    names = ", ".join(f"fedfleet_protocol.{path.stem}" for path in MODULES if path.parent.name == "fedfleet_protocol")
    done = run(
        "-c", f"import sys, {names}; print([x for x in ('flwr', 'numpy', 'sqlite3', 'asyncio') if x in sys.modules])"
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr


@pytest.mark.parametrize("path", MODULES, ids=spelled)
def test_a_module_is_a_noun_and_opens_with_what_it_is(path: Path) -> None:
    words = {*path.stem.split("_"), *path.parent.name.split("_")}
    assert not words & EMPTY_WORDS, "name it after what it is about"
    assert ast.get_docstring(ast.parse(path.read_text())), "the first line says what is in it"


@pytest.mark.parametrize("path", MODULES, ids=spelled)
def test_no_module_pickles_or_evaluates_what_it_was_sent(path: Path) -> None:
    forbidden = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
    assert not {name.split(".")[0] for name in imports(path)} & forbidden
    assert not set(calls(path)) & {"eval", "exec"}


def test_only_one_module_writes_topics() -> None:
    topic = re.compile(r"fedfleet/\d|agent/(%u|\+)|/(up|down|presence)$|\$SYS/")
    writers = {spelled(path) for path in MODULES if any(topic.search(text) for text in strings(path))}
    assert writers == {"protocol/src/fedfleet_protocol/topics.py"}


def test_private_things_of_flower_are_touched_where_nothing_else_is_done() -> None:
    public = re.compile(r"flwr\.(app|serverapp|clientapp)(\.|$)|flwr\.common$")  # apps log by flwr.common.log
    users = {
        spelled(path)
        for path in MODULES
        if any(name.split(".")[0] == "flwr" and not public.match(name) for name in imports(path))
    }
    assert users <= {
        "protocol/src/fedfleet_flower/compat.py",
        "coordinator/src/fedfleet_coordinator/runner/legacy.py",  # Flower's loop of before ServerApps
    }


@pytest.mark.parametrize("path", PACKAGES, ids=spelled)
def test_a_package_carries_types(path: Path) -> None:
    assert (path.parent / "py.typed").exists()


@pytest.mark.parametrize("path", DISTRIBUTIONS, ids=spelled)
def test_each_dependency_says_why_it_is_there_and_what_it_weighs(path: Path) -> None:
    project = tomllib.loads(path.read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(item for extra in project.get("optional-dependencies", {}).values() for item in extra),
    ]
    lines = path.read_text().splitlines()
    for requirement in wanted:
        (line,) = [line for line in lines if f'"{requirement}"' in line][:1]
        assert re.search(r"# .+", line) or requirement.startswith("fedfleet-"), line
        assert re.search(r"\d MB", line) or requirement.startswith("fedfleet-"), line


def test_every_pinned_version_is_exact_and_names_no_place() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!]+", line) for line in lines)
    assert "torch==2.13.0" in lines
