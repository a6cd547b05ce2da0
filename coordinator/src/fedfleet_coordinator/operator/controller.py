"""Looks at every FederatedRun, has `reconcile` decide, and does it, for as long as this process holds the Lease.

Nothing is kept but what watches hold: a change wakes the loop, and it comes round every second anyway.
"""

import base64
import binascii
import hashlib
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from fedfleet_coordinator.operator.actions import (
    Action,
    Adopt,
    CreateJob,
    CreateRun,
    DeleteJob,
    DeleteObject,
    Emit,
    EndRun,
    MarkCreated,
    NoteExit,
    Release,
    SetPriority,
    SetSuspended,
    WriteStatus,
)  # fmt: skip
from fedfleet_coordinator.operator.cluster import (
    ApiServer,
    ClusterError,
    Conflict,
    NotThere,
    Refused,
    events_path,
    jobs_path,
    pods_path,
    runs_path,
)  # fmt: skip
from fedfleet_coordinator.operator.jobs import RUN_LABEL, RunnerImage, job_of, seen_job
from fedfleet_coordinator.operator.lease import Holder
from fedfleet_coordinator.operator.reconcile import reconcile, sweep
from fedfleet_coordinator.operator.seen import (
    CREATED,
    FINALIZER,
    RUN_ID,
    FederatedRun,
    Observed,
    Stored,
    config_values,
    federated_run,
    spell_time,
)  # fmt: skip
from fedfleet_coordinator.operator.store import RefusedByStore, Silent, Store, StoreError
from fedfleet_coordinator.operator.watch import Watch
from fedfleet_protocol.ids import RunId

Json = dict[str, Any]
_EVERY_S = 1.0
_FRESH_S = 60.0
_SWEEP_S = 60.0
_TELL_EVERY_S = 30.0
_HEAD = {"apiVersion": "fedfleet.dev/v1alpha1", "kind": "FederatedRun"}
_log = logging.getLogger(__name__)


class Controller:
    """Brings FederatedRuns, Jobs and the store to where they should be.

    Args:
        lease: nothing is done while it does not say that this process acts.
    """

    def __init__(
        self,
        server: ApiServer,
        store: Store,
        lease: Holder,
        image: RunnerImage,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._server, self._store, self._lease, self._image = server, store, lease, image
        self._monotonic, self._wall = monotonic, wall
        self._wake, self._stop = threading.Event(), threading.Event()
        self._runs = Watch(server, runs_path(), changed=self._wake.set)
        self._jobs = Watch(server, jobs_path(), changed=self._wake.set, labels=RUN_LABEL)
        self._pods = Watch(server, pods_path(), changed=self._wake.set, labels=RUN_LABEL)
        self._heard_at = monotonic()
        self._told_at = float("-inf")
        self._swept = (0, monotonic())

    def run(self) -> None:
        """Work until `stop`."""
        watches = (self._runs, self._jobs, self._pods)
        for watch in watches:
            watch.start()
        while not self._stop.is_set():
            self._wake.wait(_EVERY_S)
            self._wake.clear()
            # Without a fresh view nothing is done: what is not seen might be there.
            if self._lease.acting() and all(watch.age_s() < _FRESH_S for watch in watches):
                try:
                    self.round()
                except Exception:
                    _log.exception("a round of the operator failed; the next one begins anew")
            self._stop.wait(0.1)
        for watch in watches:
            watch.stop()

    def stop(self) -> None:
        """End `run`."""
        self._stop.set()
        self._wake.set()

    def round(self) -> None:
        """Look at everything once, and do what is to be done."""
        stored: dict[RunId, Stored] = {}
        silent_s: float | None = None
        try:
            stored = dict(self._store.look())
            self._heard_at = self._monotonic()
        except StoreError as error:
            silent_s = max(0.001, self._monotonic() - self._heard_at)
            if self._monotonic() - self._told_at > _TELL_EVERY_S:
                self._told_at = self._monotonic()
                _log.warning("for %.0f s now: %s", silent_s, error)
        objects = self._runs.objects()
        jobs = self._by_owner(self._jobs.objects())
        pods: dict[str, list[Json]] = defaultdict(list)
        for pod in self._pods.objects():
            for owner in pod["metadata"].get("ownerReferences", ()):
                pods[owner["uid"]].append(pod)
        for found in objects:
            run = federated_run(found)
            seen = tuple(seen_job(job, pods[job["metadata"]["uid"]]) for job in jobs[run.uid])
            observed = Observed(stored.get(RunId(run.run_id)), silent_s, seen)
            self._settle(found, run, observed)
        if silent_s is None:
            self._sweep([federated_run(found) for found in objects], stored)

    def _settle(self, found: Json, run: FederatedRun, observed: Observed) -> None:
        for action in reconcile(run, observed, now_wall=self._wall()):
            if not self._lease.acting():
                return
            try:
                self._do(action, found, run)
            except Conflict as error:
                _log.info("%s %s: %s", run.owner, type(action).__name__, error)
                return  # look again first
            except (ClusterError, StoreError) as error:
                _log.warning("%s %s: %s", run.owner, type(action).__name__, error)
                return

    def _sweep(self, objects: list[FederatedRun], stored: dict[RunId, Stored]) -> None:
        """End runs whose object is gone, once for each full list: what is only not seen yet must not be ended."""
        lists, at = self._swept
        if self._runs.lists == lists and self._monotonic() - at < _SWEEP_S:
            return
        self._swept = (self._runs.lists, self._monotonic())
        live = {run: one.owner for run, one in stored.items() if one.live}
        for action in sweep(live, objects):
            if self._lease.acting():
                _log.info("run %s: %s", action.run_id, action.text)
                self._tell(action)

    @staticmethod
    def _by_owner(jobs: list[Json]) -> dict[str, list[Json]]:
        found: dict[str, list[Json]] = defaultdict(list)
        for job in jobs:
            for owner in job["metadata"].get("ownerReferences", ()):
                if owner["kind"] == "FederatedRun":
                    found[owner["uid"]].append(job)
        return found

    # --- acting ------------------------------------------------------------------------------------------------------

    def _do(self, action: Action, found: Json, run: FederatedRun) -> None:
        path = runs_path(run.namespace, run.name)
        match action:
            case Adopt(run_id):
                self._own(run, run_id)
            case CreateRun(run_id):
                self._store.create(run_id, self._wanted(found, run))
            case MarkCreated(run_id):
                self._own(run, run_id, created=True)
            case CreateJob(attempt=attempt):
                self._create_job(found, run, attempt)
            case DeleteJob(name):
                self._server.delete(jobs_path(run.namespace, name))
            case WriteStatus(status):
                body = _HEAD | {"metadata": {"name": run.name, "namespace": run.namespace}, "status": status}
                self._runs.learn(self._server.apply(f"{path}/status", body, manager="fedfleet-operator-status"))
            case Emit():
                self._emit(action, run)
            case Release():
                others = [one for one in found["metadata"].get("finalizers", ()) if one != FINALIZER]
                version = found["metadata"]["resourceVersion"]
                self._server.merge(path, {"metadata": {"finalizers": others or None, "resourceVersion": version}})
            case DeleteObject():
                self._server.delete(path)
            case _:
                self._tell(action)

    def _tell(self, action: Action) -> None:
        match action:
            case NoteExit(run_id, attempt, code, disrupted):
                body = {"attempt": attempt, "exit_code": code, "disrupted": disrupted}
                self._store.tell(run_id, "exits", body)
            case SetSuspended(run_id, suspended):
                self._store.tell(run_id, "change", {"suspended": suspended})
            case SetPriority(run_id, priority):
                self._store.tell(run_id, "change", {"priority": priority})
            case EndRun(run_id, reason, text, purge):
                self._store.tell(run_id, "end", {"reason": reason, "text": text, "purge": purge})

    def _own(self, run: FederatedRun, run_id: RunId, *, created: bool = False) -> None:
        """Write finalizer and annotations, which are ours alone."""
        annotations = {RUN_ID: run_id} | ({CREATED: run_id} if created else {})
        meta = {"name": run.name, "namespace": run.namespace, "uid": run.uid}
        body = _HEAD | {"metadata": meta | {"finalizers": [FINALIZER], "annotations": annotations}}
        self._runs.learn(self._server.apply(runs_path(run.namespace, run.name), body))

    def _create_job(self, found: Json, run: FederatedRun, attempt: int) -> None:
        try:
            self._server.create(jobs_path(run.namespace), job_of(run, found, attempt, self._image))
        except Conflict:
            job = self._server.get(jobs_path(run.namespace, run.job_name(attempt)))
            if any(owner["uid"] == run.uid for owner in job["metadata"].get("ownerReferences", ())):
                return  # made in a round before, and not seen yet
            text = f"a Job {run.job_name(attempt)} is there that is not of this run; delete it, or rename the run"
            self._emit(Emit("JobNameTaken", text, warning=True), run)
        except Refused as error:
            self._emit(Emit("JobRefused", str(error)[:1024], warning=True), run)
            raise

    def _emit(self, event: Emit, run: FederatedRun) -> None:
        now = spell_time(self._wall())
        key = hashlib.sha256(f"{run.uid}{event.reason}{event.message}".encode()).hexdigest()[:12]
        body = {
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": f"{run.name}.{key}", "namespace": run.namespace},
            "involvedObject": _HEAD | {"name": run.name, "namespace": run.namespace, "uid": run.uid},
            "reason": event.reason, "message": event.message, "type": "Warning" if event.warning else "Normal",
            "source": {"component": "fedfleet-operator"}, "reportingComponent": "fedfleet-operator",
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        }  # fmt: skip
        try:
            self._server.create(events_path(run.namespace), body)
        except Conflict:
            pass  # it was said before
        except ClusterError as error:
            _log.info("an event of %s was lost: %s", run.owner, error)

    # --- what a run is made of ---------------------------------------------------------------------------------------

    def _wanted(self, found: Json, run: FederatedRun) -> Json:
        """Return what the store shall make; its bundle is there by then, or `failure` says why not."""
        spec = found["spec"]
        exchange, agents, app = spec["exchange"], spec["agents"], spec["app"]
        wanted: Json = {
            "owner": run.owner, "config": config_values(spec.get("config") or {}),
            "selector": agents.get("selector") or {},
            "min_agents": agents["min"], "quorum": str(exchange["quorum"]), "deadline_s": exchange["deadlineSeconds"],
            "grace_s": exchange["graceSeconds"], "late": exchange["late"].lower(), "priority": spec["priority"],
            "max_attempts": spec["maxAttempts"],
        }  # fmt: skip
        if "bundle" in app:
            return wanted | {"bundle": app["bundle"]["digest"]}
        if "configMapRef" in app:
            ref = app["configMapRef"]
            return wanted | {"bundle": ref["digest"]} | self._from_config_map(run.namespace, ref)
        wanted["failure"] = "app.url is not on this hub's allow-list; put the bundle into a ConfigMap"
        return wanted | {"bundle": app["url"]["digest"]}

    def _from_config_map(self, namespace: str, ref: Json) -> Json:
        where = f"ConfigMap {namespace}/{ref['name']}"
        try:
            held = self._server.get(f"/api/v1/namespaces/{namespace}/configmaps/{ref['name']}")
        except NotThere:
            return {"failure": f"there is no {where}; create it before the FederatedRun"}
        except Refused as error:
            return {"failure": str(error)[:4000]}
        try:
            data = base64.b64decode((held.get("binaryData") or {})[ref["key"]], validate=True)
            publisher, signature = held["data"][f"{ref['key']}.signature"].split()
        except (KeyError, ValueError, binascii.Error):
            return {
                "failure": f"{where} does not hold {ref['key']} in binaryData and {ref['key']}.signature in data; "
                "write it with: fedfleet bundle"
            }
        try:
            self._store.upload(ref["digest"], data)
        except Silent:
            raise
        except RefusedByStore as error:
            return {"failure": f"{where}: {error}"}
        return {"publisher": publisher, "signature": signature}
