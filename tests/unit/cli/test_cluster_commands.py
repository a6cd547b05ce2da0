"""What the commands for clusters print: manifests that are complete, and hold nothing twice."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedfleet_coordinator.cli.cluster_commands import _pairs, site_objects
from fedfleet_coordinator.cli.errors import BadInput
from fedfleet_coordinator.cli.submission import Options, prepare

KEY = "3b" * 32
Json = dict[str, Any]


def _site(**datasets: str) -> dict[str, Json]:
    objects = site_objects("secret-token", {"lab": KEY}, datasets, registry="registry.example.org/", tag="1.2.3")
    return {one["kind"]: one for one in objects}


def test_site_has_its_token_and_whom_it_trusts() -> None:
    of = _site()
    assert of["Secret"]["stringData"] == {"token": "secret-token"}
    assert tomllib.loads(of["ConfigMap"]["data"]["agent.toml"]) == {"trust": {"publishers": {"lab": KEY}}}


def test_dataset_is_read_by_the_trainer_alone_and_only_read() -> None:
    of = _site(digits="/srv/digits")
    pod = of["DaemonSet"]["spec"]["template"]["spec"]
    assert {"name": "data-digits", "hostPath": {"path": "/srv/digits", "type": "Directory"}} in pod["volumes"]
    mounts = {one["name"]: [m for m in one["volumeMounts"] if m["name"] == "data-digits"] for one in pod["containers"]}
    assert mounts == {"agent": [], "trainer": [{"name": "data-digits", "mountPath": "/data/digits", "readOnly": True}]}
    settings = tomllib.loads(of["ConfigMap"]["data"]["agent.toml"])
    assert settings["agent"]["node_config"] == {"digits": "/data/digits"}


def test_agent_alone_has_the_nodes_folder() -> None:
    pod = _site()["DaemonSet"]["spec"]["template"]["spec"]
    having = {
        one["name"]: m.get("subPath") for one in pod["containers"] for m in one["volumeMounts"] if m["name"] == "node"
    }
    assert having == {"agent": None, "trainer": "agent/handover/trainer"}


def test_images_have_the_version_and_nothing_is_latest() -> None:
    pod = _site()["DaemonSet"]["spec"]["template"]["spec"]
    images = {one["image"] for one in [*pod["initContainers"], *pod["containers"]]}
    assert images == {"registry.example.org/fedfleet/agent:1.2.3", "registry.example.org/fedfleet/trainer:1.2.3"}


def test_training_gives_way_and_is_updated_node_by_node() -> None:
    of = _site()
    assert of["PriorityClass"]["value"] < 0 and of["PriorityClass"]["preemptionPolicy"] == "Never"
    rolling = of["DaemonSet"]["spec"]["updateStrategy"]["rollingUpdate"]
    assert rolling == {"maxUnavailable": 1, "maxSurge": 0}


def test_example_names_the_bundle_that_is_made_of_it() -> None:
    digits = Path(__file__).resolve().parents[3] / "examples" / "digits"
    run = yaml.safe_load((digits / "federatedrun.yaml").read_text())
    bundle = prepare(digits, Options(), Ed25519PrivateKey.generate())
    assert run["spec"]["app"]["configMapRef"]["digest"] == bundle.digest


@pytest.mark.parametrize("bad", ["digits", "=x", "Digits=/srv", "digits="])
def test_pair_that_is_none_is_refused_with_the_form(bad: str) -> None:
    with pytest.raises(BadInput, match="takes name=value"):
        _pairs([bad], "--dataset")
