"""What the operator may ask of the coordinator, and how a runner's pod claims its attempt."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedfleet_coordinator.errors import TokenRefused
from fedfleet_coordinator.managed import Pod
from fedfleet_coordinator.rows import Agent, Exchange, Managed, Run, Task, Turn
from fedfleet_protocol.exchange import ExchangeState, TaskState
from fedfleet_protocol.ids import agent_id, parse_digest, run_id
from fedfleet_protocol.trust import sign_bundle
from tests.api_fixture import Api, Client, running_api

pytestmark = pytest.mark.integration

RUN = run_id(bytes(16))
BUNDLE = b"a bundle" * 10
Json = dict[str, Any]


class Tokens:
    """A cluster that knows its pods' tokens: a token is `namespace/pod`."""

    def pod_of(self, token: str) -> Pod:
        namespace, slash, name = token.partition("/")
        if not slash:
            raise TokenRefused("this token is no pod's")
        return Pod(namespace, name)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_api(tmp_path / "api") as api:
        object.__setattr__(api.services, "reviewer", Tokens())
        yield api


@pytest.fixture
def operator(api: Api) -> Client:
    return api.client(api.pki.issue_service("operator", ["operator"], now_wall=time.time()))


def _wanted(digest: str, **fields: Any) -> Json:
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    signature = sign_bundle(key, parse_digest(digest)).hex()
    publisher = key.public_key().public_bytes_raw().hex()
    return {"owner": "lab/digits", "bundle": digest, "publisher": publisher, "signature": signature} | fields


def _created(api: Api, operator: Client, **fields: Any) -> str:
    digest = api.stored(BUNDLE).digest
    answer = operator.ask("PUT", f"/v1/operator/runs/{RUN}", _wanted(digest, **fields))
    assert answer.status == 200, answer.body
    return str(digest)


def _stored(operator: Client) -> Json:
    found: Json = operator.ask("GET", "/v1/operator/runs").json["runs"][RUN]
    return found


def _claim(api: Api, attempt: int, pod: str) -> Any:
    return api.client().ask("POST", f"/v1/claims/{RUN}", {"attempt": attempt, "token": pod})


def test_run_is_created_once_by_its_id(api: Api, operator: Client) -> None:
    digest = _created(api, operator)
    operator.ask("PUT", f"/v1/operator/runs/{RUN}", _wanted(digest, priority=7))
    told = _stored(operator)
    assert (told["state"], told["owner"], told["priority"]) == ("pending", "lab/digits", 0)


def test_only_the_operator_may_ask(api: Api) -> None:
    other = api.client(api.pki.issue_service("broker", ["broker"], now_wall=time.time()))
    for somebody in (other, api.user(), api.client()):
        assert somebody.ask("GET", "/v1/operator/runs").status == 403


def test_unknown_bundle_ends_failed_with_a_reason(operator: Client) -> None:
    operator.ask("PUT", f"/v1/operator/runs/{RUN}", _wanted("ab" * 32))
    told = _stored(operator)
    assert (told["state"], told["reason"]) == ("failed", "bundle")
    assert "bundle abababababab is not at the coordinator" in told["text"]


def test_unsigned_bundle_runs_if_an_earlier_run_vouches_for_it(api: Api, operator: Client) -> None:
    digest = api.stored(BUNDLE).digest
    bare = {"owner": "lab/digits", "bundle": digest}
    other = run_id(bytes([1] * 16))
    operator.ask("PUT", f"/v1/operator/runs/{other}", bare)
    _created(api, operator)
    third = run_id(bytes([2] * 16))
    operator.ask("PUT", f"/v1/operator/runs/{third}", bare)
    states = {run: told["state"] for run, told in operator.ask("GET", "/v1/operator/runs").json["runs"].items()}
    assert states == {other: "failed", RUN: "pending", third: "pending"}


def test_bundle_with_another_digest_than_named_is_refused(operator: Client) -> None:
    assert operator.ask("PUT", "/v1/operator/bundles/" + "ab" * 32, data=BUNDLE).status == 400


def test_claim_gives_a_certificate_for_the_run_and_fences_the_attempt_before(api: Api, operator: Client) -> None:
    _created(api, operator)
    first = _claim(api, 1, "lab/digits-1-abcde").json
    runner = api.client((first["certificate"].encode(), first["key"].encode()))

    def alive(epoch: str) -> int:
        return runner.ask("POST", f"/v1/runner/{RUN}/alive", headers={"Fedfleet-Epoch": epoch}).status

    assert alive(first["epoch"]) == 200
    second = _claim(api, 2, "lab/digits-2-abcde").json
    assert alive(first["epoch"]) == 409
    assert alive(second["epoch"]) == 200
    assert _claim(api, 1, "lab/digits-1-abcde").status == 409
    assert _stored(operator)["claimed"] == 2


@pytest.mark.parametrize("pod", ["lab/digits-2-abcde", "other/digits-1-abcde", "lab/digits-1", "lab/thief", "nonsense"])
def test_claim_by_anybody_else_is_refused(api: Api, operator: Client, pod: str) -> None:
    _created(api, operator)
    assert _claim(api, 1, pod).status == 403
    assert _stored(operator)["claimed"] == 0


def _exit(operator: Client, attempt: int, code: int, *, disrupted: bool = False) -> None:
    told = {"attempt": attempt, "exit_code": code, "disrupted": disrupted}
    assert operator.ask("POST", f"/v1/operator/runs/{RUN}/exits", told).status == 200


def test_failures_are_counted_once_and_disruptions_never(api: Api, operator: Client) -> None:
    _created(api, operator, max_attempts=2)
    for _ in range(2):
        _exit(operator, 1, 137)
    _exit(operator, 2, -1, disrupted=True)
    told = _stored(operator)
    assert (told["noted"], told["failures"], told["state"]) == (2, 1, "pending")
    _exit(operator, 3, 1)
    told = _stored(operator)
    assert (told["state"], told["reason"]) == ("failed", "runner_died")


def test_fault_of_the_app_ends_the_run(api: Api, operator: Client) -> None:
    _created(api, operator)
    _exit(operator, 1, 3)
    assert _stored(operator)["reason"] == "app_failed"


def test_attempt_whose_end_was_noted_cannot_be_claimed(api: Api, operator: Client) -> None:
    _created(api, operator)
    _exit(operator, 1, -1, disrupted=True)
    assert _claim(api, 1, "lab/digits-1-abcde").status == 409


def test_suspended_run_keeps_accepted_replies_and_has_no_runner(api: Api, operator: Client) -> None:
    _created(api, operator)
    claimed = _claim(api, 1, "lab/digits-1-abcde").json
    done, late = (agent_id(bytes([number] * 16)) for number in (1, 2))
    api.do(
        lambda tx, now, out: tx.put(
            Exchange(run=RUN, n=1, expected=2, settled=1, accepted=1, deadline_at=1e9),
            Task(run=RUN, n=1, agent=done, state=TaskState.ACCEPTED), Turn(run=RUN, agent=late, n=1),
            Task(run=RUN, n=1, agent=late, state=TaskState.PUBLISHED),
        )
    )  # fmt: skip
    assert operator.ask("POST", f"/v1/operator/runs/{RUN}/change", {"suspended": True}).status == 200
    exchange, task = api.do(lambda tx, now, out: (tx.get(Exchange, RUN, 1), tx.get(Task, RUN, 1, done)))
    assert exchange is not None and (exchange.state, exchange.reason) == (ExchangeState.CLOSED, "suspended")
    assert task is not None and task.state is TaskState.ACCEPTED
    runner = api.client((claimed["certificate"].encode(), claimed["key"].encode()))
    headers = {"Fedfleet-Epoch": claimed["epoch"]}
    assert runner.ask("POST", f"/v1/runner/{RUN}/alive", headers=headers).status == 409
    assert _claim(api, 1, "lab/digits-1-abcde").status == 400
    active = _stored(operator)["active_s"]
    assert _stored(operator)["active_s"] == active
    operator.ask("POST", f"/v1/operator/runs/{RUN}/change", {"suspended": False})
    assert _claim(api, 1, "lab/digits-1-abcde").status == 200
    assert _stored(operator)["active_s"] > active


def test_ended_run_stays_until_it_is_purged(api: Api, operator: Client) -> None:
    _created(api, operator)
    end = {"reason": "stopped", "text": "its FederatedRun was deleted"}
    for _ in range(2):
        assert operator.ask("POST", f"/v1/operator/runs/{RUN}/end", end).status == 200
    assert (_stored(operator)["state"], _stored(operator)["text"]) == ("stopped", "its FederatedRun was deleted")
    operator.ask("POST", f"/v1/operator/runs/{RUN}/end", end | {"purge": True})
    assert operator.ask("GET", "/v1/operator/runs").json == {"runs": {}}
    assert api.do(lambda tx, now, out: (tx.get(Run, RUN), tx.get(Managed, RUN))) == (None, None)


def test_agents_are_counted_and_absent_ones_explained(api: Api, operator: Client) -> None:
    _created(api, operator, min_agents=3, selector={"site": "a"})
    rows = [
        Agent(agent=agent_id(bytes([1] * 16)), labels={"site": "a"}, online=True),
        Agent(agent=agent_id(bytes([2] * 16)), labels={"site": "a"}, online=True, eligible=False, code="battery",
              text="battery 11% < 20%"),
        Agent(agent=agent_id(bytes([3] * 16)), labels={"site": "a"}),
        Agent(agent=agent_id(bytes([4] * 16)), labels={"site": "b"}, online=True),
    ]  # fmt: skip
    api.do(lambda tx, now, out: tx.put(*rows))
    told = _stored(operator)
    assert told["shown"]["agents"] == {"matching": 3, "online": 2, "eligible": 1}
    assert [(one["reason"], one["count"]) for one in told["shown"]["ineligible"]] == [("battery", 1), ("offline", 1)]
    assert "battery 11% < 20%" in told["shown"]["ineligible"][0]["example"]
    assert (told["enough_agents"], told["waits"]) == (False, "3 agents are needed, 3 match, 2 are online")
