"""The runner's Job as a manifest, and what a Job and its pod say of an attempt."""

from dataclasses import dataclass, field
from typing import Any

from fedfleet_coordinator.operator.seen import FederatedRun, Job

Json = dict[str, Any]
RUN_LABEL = "fedfleet.dev/run"
ATTEMPT_LABEL = "fedfleet.dev/attempt"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
AUDIENCE = "fedfleet"
CONTAINER = "runner"
UNREACHABLE_S = 30
_TOKEN_S = 3600
_USER = 65532
_WORK = "/work"
_DEFAULT_RESOURCES = {"requests": {"cpu": "250m", "memory": "512Mi"}}


@dataclass(frozen=True, slots=True)
class RunnerImage:
    """What every runner's pod of this hub is made of.

    Attributes:
        url: of the coordinator, as seen from inside the cluster.
        ca_pem: by which the runner knows the coordinator; not a secret.
    """

    image: str
    url: str
    ca_pem: str
    pull_policy: str = "IfNotPresent"
    labels: dict[str, str] = field(default_factory=dict)


def job_of(run: FederatedRun, found: Json, attempt: int, image: RunnerImage) -> Json:
    """Return the Job of one attempt.

    Args:
        found: the FederatedRun as the API server has it.
    """
    runner = found["spec"].get("runner") or {}
    given = found["metadata"].get("labels") or {}
    queue = {name: given[name] for name in (QUEUE_LABEL, PRIORITY_LABEL) if name in given}
    labels = {
        "app.kubernetes.io/name": "fedfleet-runner", "app.kubernetes.io/part-of": "fedfleet",
        RUN_LABEL: run.name, ATTEMPT_LABEL: str(attempt), **image.labels,
    }  # fmt: skip
    pod: Json = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": _USER, "runAsGroup": _USER, "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": [
            *({"key": f"node.kubernetes.io/{taint}", "operator": "Exists", "effect": "NoExecute",
               "tolerationSeconds": UNREACHABLE_S} for taint in ("not-ready", "unreachable")),
            *runner.get("tolerations", ()),
        ],
        "containers": [_container(run, attempt, image, runner.get("resources") or _DEFAULT_RESOURCES)],
        "volumes": [
            {"name": "work", "emptyDir": {}},
            {"name": "token", "projected": {"defaultMode": 0o440, "sources": [
                {"serviceAccountToken": {"audience": AUDIENCE, "expirationSeconds": _TOKEN_S, "path": "token"}},
            ]}},
        ],
    }  # fmt: skip
    for name in ("nodeSelector", "priorityClassName", "imagePullSecrets"):
        if runner.get(name):
            pod[name] = runner[name]
    owner = {
        "apiVersion": "fedfleet.dev/v1alpha1", "kind": "FederatedRun", "name": run.name, "uid": run.uid,
        "controller": True, "blockOwnerDeletion": False,
    }  # fmt: skip
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": run.job_name(attempt), "namespace": run.namespace, "labels": labels | queue,
            "ownerReferences": [owner],
        },
        "spec": {
            "backoffLimit": 0, "completions": 1, "parallelism": 1, "suspend": bool(queue),
            # Kubernetes 1.34 makes no pod beside one that is still ending: two runners of one attempt never work.
            "podReplacementPolicy": "Failed",
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }  # fmt: skip


def _container(run: FederatedRun, attempt: int, image: RunnerImage, resources: Json) -> Json:
    claim = ["--url", image.url, "--run", run.run_id, "--attempt", str(attempt), "--token", "/var/run/fedfleet/token"]
    return {
        "name": CONTAINER,
        "image": image.image,
        "imagePullPolicy": image.pull_policy,
        "command": ["python", "-m", "fedfleet_coordinator.runner.pod", "--home", f"{_WORK}/runner", *claim],
        "env": [
            {"name": "FEDFLEET_CA", "value": image.ca_pem},
            {"name": "HOME", "value": _WORK}, {"name": "TMPDIR", "value": _WORK},
            {"name": "FLWR_HOME", "value": f"{_WORK}/flwr"}, {"name": "PYTHONHASHSEED", "value": "0"},
        ],
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "work", "mountPath": _WORK},
            {"name": "token", "mountPath": "/var/run/fedfleet", "readOnly": True},
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }  # fmt: skip


def seen_job(job: Json, pods: list[Json]) -> Job:
    """Return what a Job says of its attempt.

    Args:
        pods: those of this Job; there is one at most, but for one that is on its way out.
    """
    meta, status = job["metadata"], job.get("status") or {}
    conditions = {one["type"]: one for one in status.get("conditions", ()) if one["status"] == "True"}
    state: Any = "active"
    if "Complete" in conditions:
        state = "succeeded"
    elif "Failed" in conditions:
        state = "failed"
    pod = max(pods, key=lambda one: one["metadata"].get("creationTimestamp", ""), default=None)
    code = 0 if state == "succeeded" else _exit_code(pod)
    return Job(
        name=meta["name"],
        attempt=int(meta["labels"][ATTEMPT_LABEL]),
        state=state,
        exit_code=code,
        # No exit code: the kubelet never got to say how it ended, so the app did not end it.
        disrupted=state == "failed" and (_disrupted(pod) or code < 0),
        deleting="deletionTimestamp" in meta,
        waiting="" if state != "active" else _waiting(job, pod),
    )


def _exit_code(pod: Json | None) -> int:
    for one in ((pod or {}).get("status") or {}).get("containerStatuses", ()):
        ended = (one.get("state") or {}).get("terminated")
        if one["name"] == CONTAINER and ended is not None:
            return int(ended["exitCode"])
    return -1


def _disrupted(pod: Json | None) -> bool:
    conditions = ((pod or {}).get("status") or {}).get("conditions", ())
    return any(one["type"] == "DisruptionTarget" and one["status"] == "True" for one in conditions)


def _waiting(job: Json, pod: Json | None) -> str:
    if (job.get("spec") or {}).get("suspend"):
        return "its queue has not admitted it yet"
    if pod is None:
        return "it has no pod yet"
    status = pod.get("status") or {}
    for one in status.get("containerStatuses", ()):
        waiting = (one.get("state") or {}).get("waiting")
        if waiting:
            return f"{waiting.get('reason', 'waiting')}: {waiting.get('message', '')}"[:500].rstrip(": ")
    for one in status.get("conditions", ()):
        if one["type"] == "PodScheduled" and one["status"] == "False":
            return str(one.get("message") or one.get("reason", "it has no node yet"))[:500]
    return ""
