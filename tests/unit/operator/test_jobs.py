"""The runner's Job: what its pod may do, and what it says of how an attempt ended."""

from typing import Any

from fedfleet_coordinator.operator.jobs import RunnerImage, job_of, seen_job
from fedfleet_coordinator.operator.seen import federated_run

IMAGE = RunnerImage("fedfleet/coordinator:0.1.0", "https://hub.fedfleet.svc:8443", "-----BEGIN CERTIFICATE-----")
Json = dict[str, Any]


def _found(runner: Json | None = None, labels: Json | None = None) -> Json:
    return {
        "metadata": {
            "name": "digits", "namespace": "lab", "uid": "u-1", "generation": 2, "labels": labels or {},
            "annotations": {"fedfleet.dev/run-id": "r-" + "0" * 26}, "finalizers": ["fedfleet.dev/run"],
        },
        "spec": {"runner": runner} if runner else {},
    }  # fmt: skip


def _job(runner: Json | None = None, labels: Json | None = None) -> Json:
    found = _found(runner, labels)
    return job_of(federated_run(found), found, 3, IMAGE)


def test_job_is_named_after_run_and_attempt_and_tried_once() -> None:
    job = _job()
    assert job["metadata"]["name"] == "digits-3"
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert job["metadata"]["ownerReferences"][0]["uid"] == "u-1"


def test_runner_pod_is_restricted_and_has_no_token_of_the_api_server() -> None:
    pod = _job()["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    (source,) = pod["volumes"][1]["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "fedfleet"


def test_pod_of_a_lost_node_is_given_up_after_half_a_minute() -> None:
    tolerations = _job({"tolerations": [{"key": "hub", "operator": "Exists"}]})["spec"]["template"]["spec"][
        "tolerations"
    ]
    assert {(one["key"], one.get("tolerationSeconds")) for one in tolerations} == {
        ("node.kubernetes.io/not-ready", 30), ("node.kubernetes.io/unreachable", 30), ("hub", None),
    }  # fmt: skip


def test_queue_gets_a_suspended_job() -> None:
    job = _job(labels={"kueue.x-k8s.io/queue-name": "team", "kueue.x-k8s.io/priority-class": "low", "mine": "x"})
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert "mine" not in job["metadata"]["labels"]
    assert _job()["spec"]["suspend"] is False


def test_what_the_run_asks_for_reaches_the_pod() -> None:
    resources = {"limits": {"memory": "2Gi"}}
    asked: Json = {"resources": resources, "nodeSelector": {"a": "b"}, "priorityClassName": "low"}
    pod = _job(asked)["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"] == resources
    assert (pod["nodeSelector"], pod["priorityClassName"]) == ({"a": "b"}, "low")


def _ended(condition: str) -> Json:
    return _job() | {"status": {"conditions": [{"type": condition, "status": "True"}]}}


def _pod(state: Json, *conditions: Json) -> Json:
    return {
        "metadata": {"name": "digits-3-abcde"},
        "status": {"containerStatuses": [{"name": "runner", "state": state}], "conditions": list(conditions)},
    }


def test_exit_code_is_the_containers() -> None:
    seen = seen_job(_ended("Failed"), [_pod({"terminated": {"exitCode": 3}})])
    assert (seen.state, seen.exit_code, seen.disrupted) == ("failed", 3, False)


def test_evicted_pod_was_disrupted() -> None:
    evicted = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    assert seen_job(_ended("Failed"), [_pod({"terminated": {"exitCode": 143}}, evicted)]).disrupted


def test_pod_of_which_nobody_heard_again_was_disrupted() -> None:
    seen = seen_job(_ended("Failed"), [])
    assert (seen.exit_code, seen.disrupted) == (-1, True)


def test_well_ended_job_has_succeeded() -> None:
    seen = seen_job(_ended("Complete"), [])
    assert (seen.state, seen.exit_code, seen.disrupted) == ("succeeded", 0, False)


def test_job_at_work_says_what_it_waits_for() -> None:
    pulling = _pod({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})
    assert seen_job(_job(), [pulling]).waiting == "ImagePullBackOff: no such image"
    placed = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}
    unplaced = {"metadata": {"name": "x"}, "status": {"conditions": [placed]}}
    assert seen_job(_job(), [unplaced]).waiting == "0/3 nodes are available"
    assert seen_job(_job(), [_pod({"running": {}})]).waiting == ""
    assert (
        seen_job(_job(labels={"kueue.x-k8s.io/queue-name": "team"}), []).waiting == "its queue has not admitted it yet"
    )
