"""The schemas of our kinds as files: bounded, explained, and the schedule's copy of a run's spec is no other."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
CRDS = ROOT / "manifests" / "crds"
FILES = ("federatedruns.yaml", "federatedrunschedules.yaml", "edgeagents.yaml")
_BOUND = {"string": ("maxLength", "enum", "format"), "array": ("maxItems",)}


def _walk(path: str, schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found = [(path, schema)]
    for name, below in schema.get("properties", {}).items():
        found += _walk(f"{path}.{name}", below)
    for part in ("items", "additionalProperties"):
        if part in schema:
            found += _walk(f"{path}[]", schema[part])
    return found


def _nodes(file: str) -> list[tuple[str, dict[str, Any]]]:
    crd = yaml.safe_load((CRDS / file).read_text())
    below = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    return _walk("spec", below["spec"]) + _walk("status", below["status"])


@pytest.mark.parametrize("file", FILES)
def test_every_string_list_and_map_is_bounded(file: str) -> None:
    for path, node in _nodes(file):
        kind = node.get("type", "")
        if kind in _BOUND:
            assert any(bound in node for bound in _BOUND[kind]), path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path
        if "x-kubernetes-int-or-string" in node:
            assert "maxLength" in node, path


@pytest.mark.parametrize("file", FILES)
def test_every_field_is_explained(file: str) -> None:
    for path, node in _nodes(file):
        assert "description" in node or path.endswith("[]"), path


@pytest.mark.parametrize("file", FILES)
def test_every_rule_says_a_remedy(file: str) -> None:
    for path, node in _nodes(file):
        for rule in node.get("x-kubernetes-validations", []):
            said = rule["message"]
            assert any(sign in said for sign in (";", "takes")), f"{path}: {said}"


def test_schedule_holds_the_spec_of_a_run() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate-crds"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
