"""The life of a FederatedRun, and the property that matters: from any state it comes to rest."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet_coordinator.operator.actions import (
    Action,
    Adopt,
    CreateJob,
    CreateRun,
    DeleteJob,
    Emit,
    EndRun,
    MarkCreated,
    NoteExit,
    Release,
    SetSuspended,
    WriteStatus,
)
from fedfleet_coordinator.operator.reconcile import reconcile, sweep
from fedfleet_coordinator.operator.seen import FederatedRun, Job, Stored
from fedfleet_coordinator.operator.status import phase_of
from fedfleet_coordinator.operator.testing import World
from fedfleet_protocol.ids import RunId

NEW = FederatedRun("lab", "digits", "uid-1")
RUN = dataclasses.replace(NEW, run_id=NEW.own_id, finalized=True, created=True)
LIVE = Stored("running", owner="lab/digits", claimed=1)


def _condition(world: World, kind: str) -> tuple[str, str]:
    assert world.run is not None
    found = next(one for one in world.run.status["conditions"] if one["type"] == kind)
    return found["status"], found["reason"]


def _phase(world: World) -> str:
    assert world.run is not None
    phase = world.run.status["phase"]
    assert isinstance(phase, str)
    return phase


def test_new_run_is_adopted_before_anything_else_then_created_then_given_a_runner() -> None:
    world = World(NEW)
    kinds = [type(action) for action in world.settle()]
    assert kinds[:3] == [Adopt, CreateRun, MarkCreated]
    assert set(world.jobs) == {"digits-1"}
    assert kinds.count(CreateJob) == 1
    assert _phase(world) == "Running"


def test_runner_that_ends_well_ends_the_run() -> None:
    world = World(RUN, stored=LIVE, jobs=(Job("digits-1", 1),))
    world.settle()
    world.stored = dataclasses.replace(LIVE, state="finished", ended_wall=90.0)
    world.jobs["digits-1"] = Job("digits-1", 1, "succeeded", 0)
    world.settle(now_wall=100.0)
    assert _phase(world) == "Complete"
    assert _condition(world, "Complete") == ("True", "Finished")
    assert world.run is not None and world.run.status["completionTime"] == "1970-01-01T00:01:30Z"


def test_runner_of_an_ended_run_may_end_by_itself_for_a_minute() -> None:
    ended = dataclasses.replace(LIVE, state="finished", ended_wall=100.0)
    world = World(RUN, stored=ended, jobs=(Job("digits-1", 1),))
    world.settle(now_wall=159.0)
    assert set(world.jobs) == {"digits-1"}
    world.settle(now_wall=160.0)
    assert not world.jobs


def test_failed_runner_is_followed_by_the_next_attempt() -> None:
    world = World(RUN, stored=LIVE, jobs=(Job("digits-1", 1, "failed", 137),))
    world.settle()
    assert set(world.jobs) == {"digits-1", "digits-2"}
    assert world.stored is not None and world.stored.failures == 1


def test_disruptions_do_not_count_as_attempts() -> None:
    world = World(RUN, stored=dataclasses.replace(LIVE, claimed=0), max_attempts=2)
    for attempt in range(1, 9):
        world.settle()
        world.jobs[f"digits-{attempt}"] = Job(f"digits-{attempt}", attempt, "failed", 143, disrupted=True)
    world.settle()
    assert world.stored is not None and (world.stored.failures, world.stored.live) == (0, True)


def test_too_many_failures_end_the_run() -> None:
    world = World(RUN, stored=dataclasses.replace(LIVE, claimed=0), max_attempts=2)
    for attempt in (1, 2):
        world.settle()
        world.jobs[f"digits-{attempt}"] = Job(f"digits-{attempt}", attempt, "failed", 1)
    world.settle()
    assert _condition(world, "Failed") == ("True", "RunnerDied")
    assert set(world.jobs) == {"digits-1", "digits-2"}


def test_fault_of_the_app_ends_the_run_at_once() -> None:
    world = World(RUN, stored=LIVE, jobs=(Job("digits-1", 1, "failed", 3),))
    world.settle()
    assert _condition(world, "Failed") == ("True", "AppFailed")
    assert set(world.jobs) == {"digits-1"}


def test_claimed_attempt_whose_job_somebody_took_away_was_disrupted() -> None:
    world = World(RUN, stored=LIVE)
    assert NoteExit(RunId(RUN.run_id), 1, -1, disrupted=True) in world.settle()
    assert set(world.jobs) == {"digits-2"}


def test_run_that_the_store_lost_ends_and_says_so() -> None:
    world = World(RUN, jobs=(Job("digits-3", 3),))
    world.settle()
    assert _condition(world, "Failed") == ("True", "RunUnknownToStore")
    assert not world.jobs


def test_finished_run_never_starts_again_even_without_status() -> None:
    world = World(RUN, stored=dataclasses.replace(LIVE, state="finished"))
    kinds = {type(action) for action in world.settle()}
    assert not kinds & {CreateRun, CreateJob}
    assert _phase(world) == "Complete"


def test_status_of_an_ended_run_stays_when_the_store_forgets_it() -> None:
    world = World(RUN, stored=dataclasses.replace(LIVE, state="finished", ended_wall=1.0))
    world.settle()
    world.stored = None
    assert world.settle() == []


def test_copied_manifest_does_not_take_over_anothers_run() -> None:
    world = World(dataclasses.replace(RUN, name="copy", uid="uid-2"), stored=LIVE)
    world.settle()
    assert _condition(world, "Failed") == ("True", "RunIdInUse")
    assert not any(isinstance(action, CreateJob | EndRun) for action in world.done)
    assert world.run is not None
    world.run = dataclasses.replace(world.run, deleting=True)
    world.settle()
    assert world.run is None
    assert world.stored == LIVE


def test_suspended_run_has_no_runner_and_goes_on_with_the_next_attempt() -> None:
    world = World(dataclasses.replace(RUN, suspend=True), stored=LIVE, jobs=(Job("digits-1", 1),))
    done = world.settle()
    assert done[0] == SetSuspended(RunId(RUN.run_id), suspended=True)
    assert DeleteJob("digits-1") in done
    assert not world.jobs
    assert _phase(world) == "Suspended"
    assert world.run is not None
    world.run = dataclasses.replace(world.run, suspend=False)
    world.settle()
    assert set(world.jobs) == {"digits-2"}
    assert world.stored is not None and world.stored.failures == 0


def test_run_that_was_active_for_too_long_ends() -> None:
    world = World(dataclasses.replace(RUN, max_active_s=60), stored=dataclasses.replace(LIVE, active_s=61.0))
    world.settle()
    assert _condition(world, "Failed") == ("True", "DeadlineExceeded")


def test_deleted_run_is_ended_before_its_object_goes() -> None:
    world = World(dataclasses.replace(RUN, deleting=True), stored=LIVE, jobs=(Job("digits-1", 1),))
    done = world.settle()
    assert world.run is None
    assert not world.jobs
    assert [type(action) for action in done] == [DeleteJob, EndRun, Release]
    assert world.stored is not None and world.stored.state == "stopped"


def test_deleted_run_waits_two_minutes_for_a_coordinator_and_no_longer() -> None:
    world = World(dataclasses.replace(RUN, deleting=True), stored=LIVE, silent_s=119.0)
    world.settle()
    assert world.run is not None
    world.silent_s = 120.0
    world.settle()
    assert world.run is None


def test_sweep_ends_the_runs_whose_object_is_gone_and_no_others() -> None:
    other = RunId("r-" + "0" * 26)
    ended = sweep({RunId(RUN.run_id): "lab/digits", other: "lab/gone"}, [RUN])
    assert [one.run_id for one in ended] == [other]


def test_purge_forgets_the_run() -> None:
    world = World(
        dataclasses.replace(RUN, deleting=True, purge=True), stored=dataclasses.replace(LIVE, state="finished")
    )
    world.settle()
    assert (world.run, world.stored) == (None, None)


def test_object_goes_when_its_time_to_live_is_over() -> None:
    world = World(
        dataclasses.replace(RUN, ttl_s=10), stored=dataclasses.replace(LIVE, state="finished", ended_wall=5.0)
    )
    world.settle(now_wall=14.0)
    assert world.run is not None
    world.settle(now_wall=15.0)
    assert world.run is None
    assert world.stored is not None


def test_silence_of_the_coordinator_is_said_and_nothing_is_done() -> None:
    world = World(RUN, stored=LIVE, jobs=(Job("digits-1", 1, "failed", 1),), silent_s=5.0)
    assert {type(action).__name__ for action in world.settle()} == {"WriteStatus", "Emit"}
    assert _condition(world, "Stalled") == ("True", "CoordinatorUnreachable")


def test_too_few_agents_are_shown_with_their_numbers() -> None:
    world = World(RUN, stored=dataclasses.replace(LIVE, enough_agents=False, waits="needs 5, 3 match, 2 are online"))
    world.settle()
    assert _phase(world) == "Waiting"
    assert [event.message for event in world.events if event.reason == "TooFewAgents"] == [
        "needs 5, 3 match, 2 are online"
    ]


@pytest.mark.parametrize(
    ("holds", "phase"),
    [
        ((), "Pending"),
        (("Accepted",), "Waiting"),
        (("Accepted", "AgentsAvailable"), "Running"),
        (("Accepted", "AgentsAvailable", "Suspended"), "Suspended"),
        (("Accepted", "Stalled"), "Stalled"),
        (("Accepted", "Stalled", "Failed"), "Failed"),
        (("Accepted", "Complete"), "Complete"),
    ],
)
def test_phase_sums_up_the_conditions(holds: tuple[str, ...], phase: str) -> None:
    assert phase_of([{"type": kind, "status": "True"} for kind in holds]) == phase


def test_time_of_a_condition_changes_only_with_its_status() -> None:
    world = World(RUN, stored=dataclasses.replace(LIVE, shown={"round": 1}), jobs=(Job("digits-1", 1),))
    world.settle(now_wall=100.0)
    world.stored = dataclasses.replace(LIVE, shown={"round": 2})
    (write,) = world.step(now_wall=200.0)
    assert isinstance(write, WriteStatus)
    assert {one["lastTransitionTime"] for one in write.status["conditions"]} == {"1970-01-01T00:01:40Z"}


_attempts = st.integers(1, 5)
_jobs = st.lists(
    st.builds(
        Job,
        name=st.just(""),
        attempt=_attempts,
        state=st.sampled_from(["active", "succeeded", "failed"]),
        exit_code=st.sampled_from([-1, 0, 1, 3, 137]),
        disrupted=st.booleans(),
        waiting=st.sampled_from(["", "no node"]),
    ),
    max_size=4,
    unique_by=lambda job: job.attempt,
).map(lambda jobs: tuple(dataclasses.replace(job, name=f"digits-{job.attempt}") for job in jobs))
_stored = st.none() | st.builds(
    Stored,
    state=st.sampled_from(["pending", "running", "finished", "failed", "stopped"]),
    owner=st.sampled_from(["lab/digits", "lab/digits", "lab/digits", "other/run", ""]),
    reason=st.sampled_from(["", "app_failed", "bundle", "stopped"]),
    claimed=st.integers(0, 5),
    noted=st.integers(0, 5),
    failures=st.integers(0, 5),
    suspended=st.booleans(),
    priority=st.integers(-1, 1),
    active_s=st.sampled_from([0.0, 1000.0]),
    started_wall=st.none() | st.just(1.0),
    ended_wall=st.none() | st.just(2.0),
    enough_agents=st.booleans(),
    shown=st.just({"round": 1}),
)


def _condition_lists() -> st.SearchStrategy[list[dict[str, Any]]]:
    kinds = st.sampled_from(["Accepted", "Complete", "Failed", "Suspended", "Stalled", "SomeoneElses"])
    one = st.fixed_dictionaries(
        {
            "type": kinds,
            "status": st.sampled_from(["True", "False", "Unknown"]),
            "reason": st.just("Before"),
            "message": st.just(""),
            "lastTransitionTime": st.just("1970-01-01T00:00:00Z"),
        }
    )
    return st.lists(one, max_size=4, unique_by=lambda condition: str(condition["type"]))


_status: st.SearchStrategy[dict[str, Any]] = st.just({}) | st.fixed_dictionaries(
    {"conditions": _condition_lists(), "phase": st.just("Running")}
)
_runs = st.builds(
    FederatedRun,
    namespace=st.just("lab"),
    name=st.just("digits"),
    uid=st.just("uid-1"),
    generation=st.integers(1, 3),
    run_id=st.sampled_from(["", NEW.own_id]),
    created=st.booleans(),
    finalized=st.booleans(),
    deleting=st.booleans(),
    suspend=st.booleans(),
    priority=st.integers(-1, 1),
    max_active_s=st.none() | st.just(500),
    ttl_s=st.none() | st.just(0) | st.just(10_000),
    purge=st.booleans(),
    status=_status,
)


@given(run=_runs, stored=_stored, jobs=_jobs, silent_s=st.sampled_from([None, None, 5.0, 300.0]))
def test_from_any_state_it_comes_to_rest_and_then_asks_for_nothing(
    run: FederatedRun, stored: Stored | None, jobs: tuple[Job, ...], silent_s: float | None
) -> None:
    run = dataclasses.replace(run, created=run.created and bool(run.run_id))
    world = World(run, stored=stored, jobs=jobs, silent_s=silent_s)
    world.settle(now_wall=100.0)
    assert world.step(now_wall=100.0) == []
    working = [job for job in world.jobs.values() if not job.ended]
    assert len(working) <= 1 or silent_s is not None or not run.finalized
    if stored is not None and not stored.live:
        assert not any(isinstance(action, CreateJob | CreateRun) for action in world.done)
    adopted = run.finalized and bool(run.run_id)
    for action in world.done:
        adopted = adopted or isinstance(action, Adopt)
        assert adopted or isinstance(action, Adopt | Release | DeleteJob)


@given(run=_runs, stored=_stored, jobs=_jobs)
def test_every_action_can_be_lost_or_done_twice(
    run: FederatedRun, stored: Stored | None, jobs: tuple[Job, ...]
) -> None:
    """Only the first action of each step is done, and twice, as when the operator dies after it and begins again."""
    run = dataclasses.replace(run, created=run.created and bool(run.run_id))
    once, halting = World(run, stored=stored, jobs=jobs), World(run, stored=stored, jobs=jobs)
    once.settle(now_wall=100.0)
    for _ in range(60):
        if halting.run is None:
            break
        actions = [one for one in _looked(halting) if not isinstance(one, Emit)]
        if not actions:
            break
        halting.do(actions[0], now_wall=100.0)
        if halting.run is not None:
            halting.do(actions[0], now_wall=100.0)
    assert (halting.run is None) == (once.run is None)
    assert halting.stored == once.stored
    assert halting.jobs == once.jobs


def _looked(world: World) -> list[Action]:
    assert world.run is not None
    return reconcile(world.run, world.observed(), now_wall=100.0)
