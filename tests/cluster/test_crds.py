"""What a real API server takes and refuses of our kinds, and what it says: each refusal names the remedy."""

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from tests.cluster.conftest import Kubectl

pytestmark = pytest.mark.cluster

NAMESPACE = "crd-tests"
DIGEST = "ab" * 32
AGENT = "a-" + "0v" * 13
ANOTHER = "create another FederatedRun"
LONG = "x" * 53
Json = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def namespace(kubectl: Kubectl) -> Iterator[None]:
    """A namespace of our own."""
    kubectl.run("create", "namespace", NAMESPACE)
    yield
    kubectl.run("delete", "namespace", NAMESPACE, "--wait=false")


def _object(kind: str, name: str, spec: Json) -> Json:
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "fedfleet.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def _run(name: str = "probe", **spec: Any) -> Json:
    return _object("FederatedRun", name, {"app": {"bundle": {"digest": DIGEST}}} | spec)


def _schedule(name: str = "probe", **spec: Any) -> Json:
    template = {"spec": {"app": {"bundle": {"digest": DIGEST}}}}
    return _object("FederatedRunSchedule", name, {"schedule": "30 2 * * 1-5", "template": template} | spec)


def _agent(name: str = AGENT, **spec: Any) -> Json:
    return _object("EdgeAgent", name, spec)


_URL = {"uri": "https://apps.example.org/digits.fab", "digest": DIGEST}
_MAP = {"name": "apps", "key": "digits.fab", "digest": DIGEST}

BAD = {
    "no-app": (_run(app={}), "app takes exactly one of bundle, configMapRef and url; remove the others"),
    "two-apps": (_run(app={"bundle": {"digest": DIGEST}, "url": _URL}), "exactly one of bundle, configMapRef and url"),
    "digest-with-prefix": (_run(app={"bundle": {"digest": "sha256:" + DIGEST}}), "64 lower-case hexadecimal"),
    "digest-in-capitals": (_run(app={"bundle": {"digest": DIGEST.upper()}}), "64 lower-case hexadecimal"),
    "configmap-name": (_run(app={"configMapRef": _MAP | {"name": "My_Apps"}}), "use lower-case letters, digits"),
    "configmap-key": (_run(app={"configMapRef": _MAP | {"key": "a/b"}}), "not a key of a ConfigMap; use letters"),
    "plain-http": (_run(app={"url": _URL | {"uri": "http://a.example/b"}}), "uri takes https:// or oci://; serve"),
    "password-in-url": (_run(app={"url": _URL | {"uri": "https://a:b@c.example/d"}}), "put credentials into a Secret"),
    "url-without-digest": (_run(app={"url": {"uri": _URL["uri"]}}), "spec.app.url.digest: Required value"),
    "config-key-too-long": (_run(config={"k" * 254: 1}), "a key of config has more than 253 characters; shorten it"),
    "config-value-too-long": (_run(config={"text": "x" * 4097}), "may not be more than 4096"),
    "config-with-a-list": (_run(config={"layers": [1, 2]}), "spec.config.layers"),
    "too-much-config": (_run(config={f"k{n}": n for n in range(201)}), "must have at most 200 items"),
    "empty-label": (_run(agents={"selector": {"site": ""}}), "write key: value, or leave it out"),
    "min-above-max": (_run(agents={"min": 5, "max": 3}), "lower min or raise max"),
    "no-agents": (_run(agents={"min": 0}), "should be greater than or equal to 1"),
    "quorum-zero": (_run(exchange={"quorum": 0}), "a number of replies from 1, or a share from 1% to 100%"),
    "quorum-above-all": (_run(exchange={"quorum": "120%"}), "a number of replies from 1, or a share from 1% to 100%"),
    "quorum-in-words": (_run(exchange={"quorum": "most"}), "a number of replies from 1, or a share from 1% to 100%"),
    "quorum-out-of-reach": (_run(exchange={"quorum": 4}, agents={"max": 3}), "lower it, or write a share like 80%"),
    "grace-above-deadline": (_run(exchange={"deadlineSeconds": 10}), "more than deadlineSeconds and would never count"),
    "late-in-lower-case": (_run(exchange={"late": "keep"}), 'supported values: "Refuse", "Keep"'),
    "two-starts": (_run(startFrom={"digest": DIGEST, "runRef": {"name": "a"}}), "exactly one of digest and runRef"),
    "no-start": (_run(startFrom={}), "startFrom takes exactly one of digest and runRef"),
    "no-attempts": (_run(maxAttempts=0), "spec.maxAttempts"),
    "priority-too-high": (_run(priority=1001), "should be less than or equal to 1000"),
    "deletion-policy": (_run(deletionPolicy="Keep"), 'supported values: "Retain", "Purge"'),
    "toleration": (
        _run(runner={"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}), "remove it, or use Equal",
    ),
    "quantity": (_run(runner={"resources": {"limits": {"memory": "2 GB"}}}), "spec.runner.resources.limits.memory"),
    "unknown-field": (_run(quorum=3), 'unknown field "spec.quorum"'),
    "long-name": (_run(LONG), "metadata.name has more than 52 characters; shorten it"),
    "name-with-dots": (_run("a.b"), "metadata.name has a dot; use a dash instead"),
    "schedule-fields": (_schedule(schedule="every day"), "schedule takes five fields, like"),
    "schedule-zone": (_schedule(schedule="TZ=UTC 0 0 * * *"), "write it into timeZone instead"),
    "time-zone": (_schedule(timeZone="Local"), "timeZone takes the name of a time zone, like Europe/Berlin"),
    "schedule-name": (_schedule("x" * 42), "metadata.name has more than 41 characters; shorten it"),
    "schedule-template": (_schedule(template={"spec": {"app": {}}}), "exactly one of bundle, configMapRef and url"),
    "schedule-missed": (_schedule(startingDeadlineSeconds=1), "should be greater than or equal to 10"),
    "agent-made-by-hand": (_agent("edge-7"), "make a token with `fedfleet token create` and join the device"),
    "agent-selector-missing": (_agent(runsFrom={"from": "Selector"}), "add the one or remove the other"),
    "agent-selector-unused": (_agent(runsFrom={"selector": {"a": "b"}}), "add the one or remove the other"),
    "agent-site-label": (_agent(labels={"site": "plant-7"}), "fixed by the join token; use a label of another name"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_object_is_refused_with_the_remedy(kubectl: Kubectl, name: str) -> None:
    bad, remedy = BAD[name]
    done = kubectl.run("create", "--validate=strict", "-f", "-", objects=[bad])
    assert done.returncode != 0
    assert remedy in done.stderr


_FULL: Json = {
    "config": {"num-server-rounds": 3},
    "agents": {"selector": {"site": "plant-7"}, "min": 2, "max": 10},
    "exchange": {"quorum": "80%", "deadlineSeconds": 600, "graceSeconds": 5, "late": "Refuse"},
    "startFrom": {"digest": DIGEST},
    "activeDeadlineSeconds": 3600,
    "maxAttempts": 4,
    "priority": 5,
    "deletionPolicy": "Retain",
    "runner": {
        "resources": {"requests": {"cpu": 1, "memory": "512Mi"}, "limits": {"memory": "1.5Gi"}},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "hub", "operator": "Exists", "effect": "NoSchedule"}],
        "priorityClassName": "hub-batch",
        "imagePullSecrets": [{"name": "registry"}],
    },
}
FORBIDDEN_RUN: dict[str, tuple[Json, str]] = {
    "app": ({"app": {"bundle": {"digest": "cd" * 32}}}, f"app cannot be changed once the run exists; {ANOTHER}"),
    "config": ({"config": {"num-server-rounds": 4}}, f"config cannot be changed once the run exists; {ANOTHER}"),
    "config-removed": ({"config": None}, f"config cannot be changed once the run exists; {ANOTHER}"),
    "agents": ({"agents": {"min": 3}}, f"agents cannot be changed once the run exists; {ANOTHER}"),
    "exchange": ({"exchange": {"late": "Keep"}}, f"exchange cannot be changed once the run exists; {ANOTHER}"),
    "startFrom": ({"startFrom": {"digest": "cd" * 32}}, f"startFrom cannot be changed once the run exists; {ANOTHER}"),
    "activeDeadlineSeconds": ({"activeDeadlineSeconds": 7200}, "stop the run by suspend or by deleting it"),
    "maxAttempts": ({"maxAttempts": 5}, f"maxAttempts cannot be changed once the run exists; {ANOTHER}"),
    "deletionPolicy": ({"deletionPolicy": "Purge"}, "purge a model at the coordinator instead"),
    "runner": ({"runner": {"nodeSelector": {"a": "b"}}}, f"runner cannot be changed once the run exists; {ANOTHER}"),
}


@pytest.fixture(scope="module")
def accepted(kubectl: Kubectl, namespace: None) -> None:
    """A run and an agent with everything set."""
    kubectl.must("apply", "-f", "-", objects=[_run("full", **deepcopy(_FULL)), _agent(revoked=True)])


def _patch(kubectl: Kubectl, kind: str, name: str, spec: Json) -> tuple[int, str]:
    done = kubectl.run("-n", NAMESPACE, "patch", kind, name, "--type=merge", "-p", json.dumps({"spec": spec}))
    return done.returncode, done.stderr


@pytest.mark.usefixtures("accepted")
@pytest.mark.parametrize("field", FORBIDDEN_RUN)
def test_forbidden_edit_is_refused_with_the_remedy(kubectl: Kubectl, field: str) -> None:
    change, remedy = FORBIDDEN_RUN[field]
    code, said = _patch(kubectl, "federatedrun", "full", change)
    assert code != 0
    assert remedy in said


@pytest.mark.usefixtures("accepted")
def test_revoked_agent_stays_revoked(kubectl: Kubectl) -> None:
    code, said = _patch(kubectl, "edgeagent", AGENT, {"revoked": False})
    assert code != 0
    assert "revoked is for good; let the device join again with a new token" in said


@pytest.mark.usefixtures("accepted")
def test_suspend_priority_and_ttl_can_be_changed(kubectl: Kubectl) -> None:
    code, said = _patch(kubectl, "fr", "full", {"suspend": True, "priority": 7, "ttlSecondsAfterFinished": 60})
    assert (code, said) == (0, "")
    code, said = _patch(kubectl, "fr", "full", {"suspend": False, "ttlSecondsAfterFinished": None})
    assert (code, said) == (0, "")


def test_smallest_run_gets_the_documented_defaults(kubectl: Kubectl) -> None:
    kubectl.must("apply", "-f", "-", objects=[_run("smallest")])
    spec = json.loads(kubectl.must("-n", NAMESPACE, "get", "fr", "smallest", "-o", "json"))["spec"]
    assert spec == {
        "app": {"bundle": {"digest": DIGEST}},
        "agents": {"min": 1},
        "exchange": {"quorum": "100%", "deadlineSeconds": 3600, "graceSeconds": 30, "late": "Refuse"},
        "maxAttempts": 6,
        "suspend": False,
        "priority": 0,
        "deletionPolicy": "Retain",
    }


def test_half_given_exchange_keeps_the_other_defaults(kubectl: Kubectl) -> None:
    kubectl.must("apply", "-f", "-", objects=[_run("half", exchange={"quorum": 2}, agents={"max": 4})])
    spec = json.loads(kubectl.must("-n", NAMESPACE, "get", "fr", "half", "-o", "json"))["spec"]
    assert spec["exchange"] == {"quorum": 2, "deadlineSeconds": 3600, "graceSeconds": 30, "late": "Refuse"}
    assert spec["agents"] == {"min": 1, "max": 4}


_SOURCES = (
    {"configMapRef": _MAP},
    {"url": _URL | {"secretRef": {"name": "token"}}},
    {"url": _URL | {"uri": "oci://registry.example.org/apps/digits"}},
)


@pytest.mark.parametrize("app", _SOURCES, ids=["configMapRef", "https", "oci"])
def test_each_source_of_an_app_is_taken(kubectl: Kubectl, app: Json) -> None:
    kubectl.must("create", "--dry-run=server", "-f", "-", objects=[_run(app=app)])


@pytest.mark.parametrize("schedule", ["@daily", "*/15 * * * *", "0 6 1,15 * MON-FRI"])
def test_schedules_of_cron_are_taken(kubectl: Kubectl, schedule: str) -> None:
    good = _schedule(schedule=schedule, timeZone="America/Argentina/Buenos_Aires")
    kubectl.must("create", "--dry-run=server", "-f", "-", objects=[good])


def test_columns_show_what_a_person_asks_first(kubectl: Kubectl) -> None:
    kubectl.must("apply", "-f", "-", objects=[_run("columns")])
    metrics = [{"name": "loss", "value": "0.25", "round": 2}, {"name": "accuracy", "value": "0.9"}]
    status = {"phase": "Running", "round": 2, "agents": {"eligible": 3}, "metrics": metrics}
    patch = json.dumps({"status": status})
    kubectl.must("-n", NAMESPACE, "patch", "fr", "columns", "--subresource=status", "--type=merge", "-p", patch)
    header, row = kubectl.must("-n", NAMESPACE, "get", "fr", "columns").splitlines()
    assert header.split() == ["NAME", "PHASE", "ROUND", "AGENTS", "LOSS", "ACCURACY", "AGE"]
    assert row.split()[:6] == ["columns", "Running", "2", "3", "0.25", "0.9"]


def test_all_kinds_are_in_one_category_and_explained(kubectl: Kubectl) -> None:
    names = kubectl.must("api-resources", "--categories=fedfleet", "-o", "name").split()
    assert sorted(name.partition(".")[0] for name in names) == ["edgeagents", "federatedruns", "federatedrunschedules"]
    assert "How many accepted replies are enough" in kubectl.must("explain", "federatedrun.spec.exchange.quorum")
