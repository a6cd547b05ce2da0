"""The package from outside: names, what a device loads, and the documents' code."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.serverapp.strategy import Strategy as FlowerStrategy

import fedfleet_strategies
from tests.unit.strategies.fleet import aggregated, model, trained

DOCS = Path(__file__).resolve().parents[3] / "docs" / "how-to"


def test_every_name_is_there_and_strategies_are_flowers() -> None:
    found = [getattr(fedfleet_strategies, name) for name in fedfleet_strategies.__all__]
    assert sorted(fedfleet_strategies._MODULES) == sorted(fedfleet_strategies.__all__)
    assert sum(isinstance(one, type) and issubclass(one, FlowerStrategy) for one in found) >= 22
    with pytest.raises(AttributeError, match="FedNothing"):
        fedfleet_strategies.FedNothing  # noqa: B018


def test_a_device_loads_the_client_half_only() -> None:
    code = (
        "import sys; from fedfleet_strategies.client import half; import fedfleet_strategies.parts; "
        "print([m for m in sys.modules if m in ('fedfleet_strategies.strategy', 'fedfleet_strategies.each')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["Momentum", "NearestHalf"])
def test_the_code_of_the_documents_works(name: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "write-a-strategy.md").read_text(), re.DOTALL)
    code = next(block for block in blocks if f"class {name}" in block)
    names: dict[str, Any] = {}
    exec(compile(code, name, "exec"), names)
    strategy = names.get("strategy") or names[name]()
    replies = [trained(node, model([float(node)])) for node in (1, 2, 3, 4)]
    arrays, _ = aggregated(strategy, model([0.0]), replies)
    assert arrays is not None


def test_the_choice_of_the_documents_can_be_made() -> None:
    text = (DOCS / "choose-a-strategy.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    exec(compile(code, "choose", "exec"), {})
