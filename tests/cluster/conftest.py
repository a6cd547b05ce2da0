"""A Kubernetes cluster for the tests of this folder: the one that FEDFLEET_TEST_KUBECONFIG names.

`kubectl` is taken from FEDFLEET_TEST_KUBECTL or the PATH. Without a cluster the tests are skipped, and say so.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

PATIENCE = float(os.environ.get("FEDFLEET_TEST_PATIENCE", "1"))
"""More on a machine that is busy with other work: every time limit of these tests is multiplied by it."""
MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"


@dataclass(frozen=True, slots=True)
class Kubectl:
    """Speaks to the test cluster as its administrator."""

    program: str
    kubeconfig: str

    def run(self, *arguments: str, objects: list[dict[str, Any]] | None = None) -> subprocess.CompletedProcess[str]:
        """Return what `kubectl` says; `objects` are its input."""
        return subprocess.run(
            [self.program, "--kubeconfig", self.kubeconfig, *arguments],
            input=yaml.safe_dump_all(objects) if objects is not None else None,
            capture_output=True, text=True, check=False, timeout=60 * PATIENCE,
        )  # fmt: skip

    def must(self, *arguments: str, objects: list[dict[str, Any]] | None = None) -> str:
        """Return the output of a command that succeeds."""
        done = self.run(*arguments, objects=objects)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def kubectl() -> Kubectl:
    """Return a way to speak to the cluster, on which our kinds are installed."""
    kubeconfig = os.environ.get("FEDFLEET_TEST_KUBECONFIG", "")
    program = os.environ.get("FEDFLEET_TEST_KUBECTL") or shutil.which("kubectl")
    if not kubeconfig or not program:
        pytest.skip("no cluster: set FEDFLEET_TEST_KUBECONFIG, and FEDFLEET_TEST_KUBECTL unless kubectl is on the PATH")
    cluster = Kubectl(program, kubeconfig)
    cluster.must("apply", "-k", str(MANIFESTS / "crds"))
    cluster.must(
        "wait", "--for=condition=Established", "--timeout=30s", "-f", str(MANIFESTS / "crds" / "edgeagents.yaml")
    )
    for kind in ("federatedruns", "federatedrunschedules"):
        cluster.must("wait", "--for=condition=Established", "--timeout=30s", f"crd/{kind}.fedfleet.dev")
    return cluster
