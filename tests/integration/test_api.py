"""The API over real TLS with real certificates: who may ask what, and what blobs survive."""

import asyncio
import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import urllib3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedfleet_agent.enrol import request_for
from fedfleet_coordinator.api import bodies, server
from fedfleet_coordinator.api.reservations import TaskKey
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.outbox import Outbox
from fedfleet_coordinator.pki import Pki
from fedfleet_coordinator.rows import Agent, Blob, Ref, Run, Task, Token
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.blocks import BLOCK_BYTES, BlockList, blocks_of
from fedfleet_protocol.exchange import TaskState
from fedfleet_protocol.ids import Order, run_id
from fedfleet_protocol.messages import (
    Answer,
    Ask,
    BlobRef,
    Enrol,
    ExchangeView,
    Identity,
    Open,
    Reply,
    decode_as,
    encode,
)
from fedfleet_protocol.trust import HUB, open_envelope, seal, sign_bundle
from tests.api_fixture import Api, Client, Device, running_api

pytestmark = pytest.mark.integration
CAPABILITY = "Fedfleet-Capability"
EPOCH = {"Fedfleet-Epoch": "e1"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("api")) as running:
        yield running


def begin(client: Client, path: str, blocks: BlockList, proof: str) -> tuple[int, dict[str, object]]:
    told = blocks.size.to_bytes(8, "little") + blocks.digests
    answer = client.ask("POST", path, data=told, headers={CAPABILITY: proof})
    return answer.status, answer.unpacked if answer.status == 200 else answer.json


# --- who may ask ------------------------------------------------------------------------------------------------------


def test_health_needs_no_certificate_and_says_nothing_else(api: Api) -> None:
    assert api.client().ask("GET", "/healthz").json == {"ok": True}
    assert api.client().ask("GET", "/readyz").json == {"ok": True, "text": ""}
    assert api.client().ask("GET", "/metrics").status == 403


def test_metrics_are_for_users(api: Api) -> None:
    text = api.user().ask("GET", "/metrics").body.decode()
    assert "fedfleet_agents_online" in text and 'route="/healthz"' in text


def test_nobody_without_a_certificate_sees_a_run(api: Api) -> None:
    answer = api.client().ask("GET", "/v1/runs")
    assert (answer.status, answer.json["code"]) == (403, "certificate")


def test_agent_may_not_do_what_users_do(api: Api) -> None:
    answer = api.client(api.device(1)).ask("POST", "/v1/tokens", {})
    assert (answer.status, answer.json["code"]) == (403, "not_allowed")


def test_user_may_not_do_what_agents_do(api: Api) -> None:
    assert api.user().ask("POST", "/v1/ask", data=b"x").status == 403


def test_certificate_of_another_ca_ends_the_handshake(api: Api, tmp_path: Path) -> None:
    stranger = api.device(2, pki=Pki.create(tmp_path / "other", now_wall=time.time()))
    with pytest.raises(urllib3.exceptions.HTTPError):
        api.client(stranger).ask("GET", "/healthz")


def test_agent_without_a_row_is_refused(api: Api) -> None:
    device = api.device(3)
    api.do(lambda tx, now, out: tx.delete(Agent(agent=device.agent)))
    assert api.client(device).ask("POST", "/v1/ask", data=b"x").json["code"] == "certificate"


def test_agent_that_is_revoked_is_refused_on_the_connection_it_has(api: Api) -> None:
    device = api.device(4)
    client = api.client(device)
    told: list[str] = []
    first = client.ask("POST", "/v1/ask", data=b"not sealed")
    assert first.json["code"] == "bad_request"
    object.__setattr__(api.services, "on_revoke", told.append)
    assert api.user().ask("POST", f"/v1/agents/{device.agent}/revoke").json["state"] == "revoked"
    second = client.ask("POST", "/v1/ask", data=b"not sealed")
    assert second.json["code"] == "certificate" and "revoked" in second.json["text"]
    assert told == [device.agent]


def test_certificate_that_expires_ends_the_connection_it_is_used_on(api: Api) -> None:
    device = api.device(5, life_s=2.5)
    client = api.client(device)
    assert client.ask("POST", "/v1/ask", data=b"x").json["code"] == "bad_request"
    time.sleep(2.6)
    refused = client.ask("POST", "/v1/ask", data=b"x")
    assert refused.json["code"] == "certificate" and "expired" in refused.json["text"]


def test_runner_sees_its_own_run_only(api: Api) -> None:
    mine, other = api.run(10), api.run(11)
    client = api.runner(mine.run)
    assert client.ask("GET", f"/v1/runner/{mine.run}", headers=EPOCH).unpacked["run"]["run"] == mine.run
    refused = client.ask("GET", f"/v1/runner/{other.run}", headers=EPOCH)
    assert (refused.status, refused.json["code"]) == (403, "not_allowed")


def test_runner_of_an_old_epoch_writes_nothing(api: Api) -> None:
    run = api.run(12)
    client = api.runner(run.run)
    lines = msgspec.msgpack.encode({"lines": ["hello"]})
    refused = client.ask("POST", f"/v1/runner/{run.run}/log", data=lines, headers={"Fedfleet-Epoch": "e0"})
    assert (refused.status, refused.json["code"]) == (409, "epoch")
    assert api.user().ask("GET", f"/v1/runs/{run.run}/logs").json == {"lines": []}


def test_tls_1_2_is_refused(api: Api) -> None:
    context = ssl.create_default_context(cadata=api.pki.ca_pem("services"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", api.server.port)) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_unknown_addresses_and_methods_are_said_so_in_json(api: Api) -> None:
    assert api.user().ask("GET", "/v1/nothing").json["code"] == "not_found"
    answer = api.user().ask("DELETE", "/v1/runs")
    assert (answer.status, answer.json["code"]) == (405, "method")


# --- what agents ask --------------------------------------------------------------------------------------------------


def test_device_with_a_token_becomes_an_agent_and_asks(api: Api) -> None:
    assert api.client().ask("GET", "/v1/ca").body.decode() == api.pki.ca_pem("services")
    token = api.user().ask("POST", "/v1/tokens", {"labels": {"site": "a"}}).json["token"]
    assert len(api.user().ask("GET", "/v1/tokens").json["tokens"]) == 1
    key = Ed25519PrivateKey.generate()
    enrol = encode(Enrol(token=token, csr_pem=request_for(key)))
    told = decode_as(Identity, api.client().ask("POST", "/v1/enrol", data=enrol).body)
    again = decode_as(Identity, api.client().ask("POST", "/v1/enrol", data=enrol).body)
    assert told.agent == again.agent
    row = api.do(lambda tx, now, out: tx.get(Agent, told.agent))
    assert row is not None and row.labels == {"site": "a"}
    assert api.user().ask("GET", f"/v1/agents/{told.agent}").json["labels"] == {"site": "a"}


def test_used_token_is_refused_in_words(api: Api) -> None:
    token = api.user().ask("POST", "/v1/tokens", {}).json["token"]
    first, second = (Enrol(token=token, csr_pem=request_for(Ed25519PrivateKey.generate())) for _ in range(2))
    assert api.client().ask("POST", "/v1/enrol", data=encode(first)).status == 200
    refused = api.client().ask("POST", "/v1/enrol", data=encode(second))
    assert (refused.status, refused.json["code"]) == (403, "token") and "used up" in refused.json["text"]
    api.do(lambda tx, now, out: tx.delete(*tx.find(Token)))


def test_ask_is_answered_under_seal(api: Api) -> None:
    device = api.device(20)
    ask = seal(device.key, encode(Ask(agent=device.agent)), sender=device.agent, to=HUB)
    answer = api.client(device).ask("POST", "/v1/ask", data=ask)
    body = open_envelope(answer.body, api.pki.order_key.public_key(), sender=HUB, to=device.agent)
    assert decode_as(Answer, body) == Answer()


def test_ask_in_another_agents_name_is_refused(api: Api) -> None:
    liar, victim = api.device(21), api.device(22)
    client = api.client(liar)
    as_victim = seal(liar.key, encode(Ask(agent=victim.agent)), sender=victim.agent, to=HUB)
    inside = seal(liar.key, encode(Ask(agent=victim.agent)), sender=liar.agent, to=HUB)
    replayed = seal(victim.key, encode(Ask(agent=victim.agent)), sender=victim.agent, to=HUB)
    for envelope in (as_victim, inside, replayed):
        answer = client.ask("POST", "/v1/ask", data=envelope)
        assert (answer.status, answer.json["code"]) == (403, "not_allowed")


# --- blobs ------------------------------------------------------------------------------------------------------------


def test_blob_is_fetched_by_range(api: Api) -> None:
    data = os.urandom(3 * BLOCK_BYTES + 5)
    device, blocks = api.device(30), api.stored(data)
    grant, client = api.grant("GET", blocks, device.agent), api.client(device)
    headers = {CAPABILITY: grant.capability}
    assert client.ask("GET", grant.path, headers=headers).body == data
    part = client.ask("GET", grant.path, headers={**headers, "Range": "bytes=100-2000000"})
    assert (part.status, part.body) == (206, data[100:2000001])
    assert part.headers["Content-Range"] == f"bytes 100-2000000/{len(data)}"
    assert client.ask("GET", grant.path, headers={**headers, "Range": f"bytes={len(data) - 1}-"}).body == data[-1:]
    assert client.ask("GET", grant.path, headers={**headers, "Range": f"bytes={len(data)}-"}).status == 416
    listed = client.ask("GET", f"{grant.path}/blocks", headers=headers).body
    assert listed == len(data).to_bytes(8, "little") + blocks.digests


def test_capability_holds_for_its_agent_its_method_and_its_time_only(api: Api) -> None:
    device, other, blocks = api.device(31), api.device(32), api.stored(os.urandom(100))
    grant = api.grant("GET", blocks, device.agent)
    late = api.grant("GET", blocks, device.agent, expires_in_s=-1)
    mine, theirs = api.client(device), api.client(other)
    assert mine.ask("GET", grant.path, headers={CAPABILITY: grant.capability}).status == 200
    for client, proof in (
        (theirs, grant.capability),
        (mine, late.capability),
        (mine, ""),
        (mine, "a.b.c"),
        (mine, "ü" * 9),
    ):
        answer = client.ask("GET", grant.path, headers={CAPABILITY: proof.encode().decode("latin-1")})
        assert (answer.status, answer.json["code"]) == (403, "capability")
    put = begin(mine, grant.path.replace("blobs", "uploads"), blocks, grant.capability)
    assert (put[0], put[1]["code"]) == (403, "capability")


def test_upload_goes_on_at_the_byte_where_it_was_cut(api: Api) -> None:
    data = os.urandom(2 * BLOCK_BYTES + 777)
    device, blocks = api.device(33), blocks_of([data])
    grant, client = api.grant("PUT", blocks, device.agent), api.client(device)
    headers = {CAPABILITY: grant.capability}
    assert client.ask("GET", grant.path, headers=headers).status == 404
    assert begin(client, grant.path, blocks, grant.capability) == (200, {"offset": 0, "complete": False})
    _cut_upload(api, device, f"{grant.path}?offset=0", grant.capability, data, sent=1_500_000)
    reached = client.ask("GET", grant.path, headers=headers).unpacked
    assert reached == {"offset": 1_500_000, "complete": False}
    wrong = client.ask("PATCH", f"{grant.path}?offset=5", data=data[5:], headers=headers)
    assert (wrong.status, wrong.json["offset"]) == (409, 1_500_000)
    last = client.ask("PATCH", f"{grant.path}?offset=1500000", data=data[1_500_000:], headers=headers)
    assert last.unpacked == {"offset": len(data), "complete": True}
    row = api.do(lambda tx, now, out: tx.get(Blob, blocks.digest))
    assert row is not None and api.services.blobs.path(row.file).read_bytes() == data
    assert begin(client, grant.path, blocks, grant.capability)[1]["complete"]


def test_block_that_is_wrong_is_the_only_one_to_be_sent_again(api: Api) -> None:
    data = os.urandom(3 * BLOCK_BYTES)
    device, blocks = api.device(34), blocks_of([data])
    grant, client = api.grant("PUT", blocks, device.agent), api.client(device)
    headers = {CAPABILITY: grant.capability}
    begin(client, grant.path, blocks, grant.capability)
    spoiled = bytearray(data)
    spoiled[BLOCK_BYTES + 10] ^= 1
    with contextlib.suppress(urllib3.exceptions.ProtocolError):  # the hub closes before it has taken all
        assert client.ask("PATCH", f"{grant.path}?offset=0", data=bytes(spoiled), headers=headers).status == 422
    assert client.ask("GET", grant.path, headers=headers).unpacked["offset"] == BLOCK_BYTES
    rest = client.ask("PATCH", f"{grant.path}?offset={BLOCK_BYTES}", data=data[BLOCK_BYTES:], headers=headers)
    assert rest.unpacked["complete"]


@pytest.mark.parametrize("size", [0, 1, 5000, 65536])
def test_small_upload_lies_in_its_row(api: Api, size: int) -> None:
    data = os.urandom(size)
    device, blocks = api.device(35), blocks_of([data])
    grant, client = api.grant("PUT", blocks, device.agent), api.client(device)
    assert begin(client, grant.path, blocks, grant.capability) == (200, {"offset": 0, "complete": False})
    if size:
        wrong = client.ask("PATCH", f"{grant.path}?offset=0", data=b"\0" * size, headers={CAPABILITY: grant.capability})
        assert (wrong.status, wrong.json["offset"]) == (422, 0)
    answer = client.ask("PATCH", f"{grant.path}?offset=0", data=data, headers={CAPABILITY: grant.capability})
    assert answer.unpacked == {"offset": size, "complete": True}
    row = api.do(lambda tx, now, out: tx.get(Blob, blocks.digest))
    assert row is not None and (row.inline, row.file) == (data, "")


def test_claim_of_ten_gigabytes_is_refused_before_a_byte_is_taken(api: Api) -> None:
    device, blocks = api.device(36), blocks_of([os.urandom(2 * BLOCK_BYTES)])
    grant, client = api.grant("PUT", blocks, device.agent), api.client(device)
    headers = {CAPABILITY: grant.capability}
    told = (10 << 30).to_bytes(8, "little") + bytes(32 * 10240)
    claimed = client.ask("POST", grant.path, data=told, headers=headers)
    assert (claimed.status, claimed.json["code"]) == (400, "bad_request")
    begin(client, grant.path, blocks, grant.capability)
    context = api.tls(device.certificate, device.key_file)
    with _connection(api, context) as stream:
        stream.sendall(_head("PATCH", f"{grant.path}?offset=0", grant.capability, 10 << 30))
        answer = b""
        while piece := stream.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 413") and b"too_much" in answer and b"connection: close" in answer.lower()


def test_body_beyond_a_routes_limit_is_refused(api: Api) -> None:
    client = api.client(api.device(37))
    with _connection(api, api.tls()) as stream:
        stream.sendall(b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        stream.sendall(b"8000\r\n" + bytes(0x8000) + b"\r\n")
        assert stream.recv(4096).startswith(b"HTTP/1.1 413")
    claimed = client.ask("POST", "/v1/ask", data=bytes(600 << 10))
    assert (claimed.status, claimed.json["code"]) == (413, "too_much")


def test_head_that_does_not_end_is_refused(api: Api) -> None:
    with _connection(api, api.tls()) as stream:
        stream.sendall(b"GET /healthz HTTP/1.1\r\n")
        answer = b""
        with contextlib.suppress(OSError):
            for number in range(4000):
                stream.sendall(b"X-%d: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" % number)
            answer = stream.recv(4096)
        assert not answer or answer.startswith(b"HTTP/1.1 400")


def test_bytes_of_an_upload_that_was_begun_before_a_restart_are_to_be_begun_again(api: Api) -> None:
    data = os.urandom(2 * BLOCK_BYTES)
    device, run, blocks = api.device(39), api.run(39), blocks_of([data])
    grant = api.grant("PUT", blocks, device.agent)
    for client, path, headers in (
        (api.client(device), grant.path, {CAPABILITY: grant.capability}),
        (api.runner(run.run), f"/v1/runner/{run.run}/uploads/{blocks.digest}", EPOCH),
    ):
        answer = client.ask("PATCH", f"{path}?offset=0", data=data, headers=headers)
        assert (answer.status, answer.json["code"]) == (503, "busy") and "begin" in answer.json["text"]


def test_client_that_says_nothing_is_let_go(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_S", 0.3)
    for said in (b"", b"GET /heal"):
        with _connection(api, api.tls()) as stream:
            stream.sendall(said)
            began = time.monotonic()
            with contextlib.suppress(OSError):
                assert stream.recv(100) == b""
            assert time.monotonic() - began < 5


def test_client_that_stops_in_the_middle_of_a_body_is_let_go(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "STALL_S", 0.3)
    with _connection(api, api.tls()) as stream:
        stream.sendall(b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        assert stream.recv(100).startswith(b"HTTP/1.1 408")


def test_newer_connection_takes_an_upload_over(api: Api) -> None:
    data = os.urandom(BLOCK_BYTES + 1)
    device, blocks = api.device(38), blocks_of([data])
    grant, client = api.grant("PUT", blocks, device.agent), api.client(device)
    begin(client, grant.path, blocks, grant.capability)
    with _connection(api, api.tls(device.certificate, device.key_file)) as half_open:
        half_open.sendall(_head("PATCH", f"{grant.path}?offset=0", grant.capability, len(data)) + data[:300_000])
        _until(lambda: len(api.services.uploads._writers) == 1)
        time.sleep(0.2)
        offset = client.ask("GET", grant.path, headers={CAPABILITY: grant.capability}).unpacked["offset"]
        assert offset == 300_000
        last = client.ask(
            "PATCH", f"{grant.path}?offset={offset}", data=data[offset:], headers={CAPABILITY: grant.capability}
        )
        assert last.unpacked["complete"]


def test_uploads_beyond_the_admitted_are_told_when_to_come_back(tmp_path: Path) -> None:
    with running_api(tmp_path / "hub", at_once=1, wait_s=0.2) as api, contextlib.ExitStack() as stack:
        data = [os.urandom(BLOCK_BYTES) for _ in range(2)]
        device = api.device(1)
        client = api.client(device)
        for index, one in enumerate(data):
            blocks = blocks_of([one])
            grant = api.grant("PUT", blocks, device.agent)
            begin(client, grant.path, blocks, grant.capability)
            if index == 0:
                stream = stack.enter_context(_connection(api, api.tls(device.certificate, device.key_file)))
                stream.sendall(_head("PATCH", f"{grant.path}?offset=0", grant.capability, len(one)) + one[:1000])
                _until(lambda: api.services.uploads.admission.active == 1)
            else:
                busy = client.ask(
                    "PATCH", f"{grant.path}?offset=0", data=one[:1000], headers={CAPABILITY: grant.capability}
                )
                assert (busy.status, busy.json["code"], busy.headers["Retry-After"]) == (503, "busy", "1")


def test_full_quota_is_said_in_words(tmp_path: Path) -> None:
    with running_api(tmp_path / "hub", quota_bytes=BLOCK_BYTES) as api:
        device, blocks = api.device(1), blocks_of([bytes(2 * BLOCK_BYTES)])
        grant = api.grant("PUT", blocks, device.agent)
        status, body = begin(api.client(device), grant.path, blocks, grant.capability)
        assert (status, body["code"]) == (507, "quota_full")


def test_agent_that_announces_made_up_blobs_keeps_room_for_two_of_them(tmp_path: Path) -> None:
    with running_api(tmp_path / "hub", quota_bytes=10 * BLOCK_BYTES) as api:
        device = api.device(1)
        client = api.client(device)
        for _ in range(20):
            blocks = blocks_of([os.urandom(4), bytes(4 * BLOCK_BYTES - 4)])
            grant = api.grant("PUT", blocks, device.agent)
            assert begin(client, grant.path, blocks, grant.capability)[0] == 200
        other, data = api.device(2), os.urandom(2 * BLOCK_BYTES)
        grant = api.grant("PUT", blocks_of([data]), other.agent)
        assert begin(api.client(other), grant.path, blocks_of([data]), grant.capability)[0] == 200


def test_bytes_that_are_not_the_reply_announced_last_are_not_kept(tmp_path: Path) -> None:
    with running_api(tmp_path / "hub") as api:
        device, data = api.device(1), os.urandom(BLOCK_BYTES + 9)
        client, blocks = api.client(device), blocks_of([data])
        grant = api.grant("PUT", blocks, device.agent)
        key, order = (run_id(bytes(16)), 1, device.agent), Order("0" * 64)
        said = Reply(run=key[0], n=1, order=order, digest=blocks_of([b"other"]).digest, size=1 << 20)

        def announce(tx: Tx, now: Now, out: Outbox) -> None:
            tx.put(Task(run=key[0], n=1, agent=device.agent, state=TaskState.PUBLISHED, order=order))
            api.services.exchanges.reply(tx, device.agent, said, now, out)

        api.do(announce)
        headers = {CAPABILITY: grant.capability}
        assert begin(client, grant.path, blocks, grant.capability)[0] == 200
        answer = client.ask("PATCH", f"{grant.path}?offset=0", data=data, headers=headers)
        assert (answer.status, answer.json["code"]) == (403, "capability")
        assert api.do(lambda tx, now, out: tx.get(Blob, blocks.digest)) is None
        assert [file for file in (tmp_path / "hub" / "blobs").iterdir() if file.is_file()] == []


def test_upload_for_a_task_that_is_settled_is_refused_and_what_was_begun_for_it_goes(tmp_path: Path) -> None:
    with running_api(tmp_path / "hub", quota_bytes=4 * BLOCK_BYTES) as api:
        device, blocks = api.device(1), blocks_of([bytes(4 * BLOCK_BYTES)])
        grant, client = api.grant("PUT", blocks, device.agent), api.client(device)
        assert begin(client, grant.path, blocks, grant.capability)[0] == 200
        api.do(
            lambda tx, now, out: tx.put(Task(run=run_id(bytes(16)), n=1, agent=device.agent, state=TaskState.MISSED))
        )
        status, said = begin(client, grant.path, blocks, grant.capability)
        assert (status, said["code"]) == (403, "capability")

        async def settle() -> None:
            async def none(tasks: object) -> list[TaskKey]:
                return []

            await api.services.uploads.settle(none)

        asyncio.run_coroutine_threadsafe(settle(), api.loop).result(10)
        assert not list((tmp_path / "hub" / "blobs" / "partial").iterdir())
        other = blocks_of([os.urandom(4 * BLOCK_BYTES)])
        grant = api.grant("PUT", other, device.agent)
        assert begin(client, grant.path, other, grant.capability)[0] == 200


# --- what people ask --------------------------------------------------------------------------------------------------


def _submission(api: Api, client: Client, **more: object) -> dict[str, object]:
    bundle = os.urandom(100_000)
    uploaded = client.ask("POST", "/v1/bundles", data=bundle).json
    publisher = Ed25519PrivateKey.generate()
    return {
        "bundle": uploaded["digest"],
        "app": "quickstart",
        "config": {"rounds": 3, "lr": 0.5, "fast": True, "name": "x"},
        "publisher": publisher.public_key().public_bytes_raw().hex(),
        "signature": sign_bundle(publisher, uploaded["digest"]).hex(),
        **more,
    }


def test_run_is_submitted_watched_and_stopped(api: Api) -> None:
    client = api.user()
    begun: list[str] = []
    object.__setattr__(api.services, "on_submit", begun.append)
    run = client.ask("POST", "/v1/runs", _submission(api, client)).json["run"]
    assert begun == [run]
    row = api.do(lambda tx, now, out: tx.get(Run, run))
    assert row is not None and row.submitted_by == "ada" and row.bundle_size == 100_000
    assert row.config == {"rounds": 3, "lr": 0.5, "fast": True, "name": "x"} and row.config["fast"] is True
    watch = client.pool.request("GET", f"{api.url}/v1/runs/{run}/events", preload_content=False)
    first = watch.read1(65536)
    assert first.startswith(b"data: {") and b'"state":"pending"' in first
    assert client.ask("POST", f"/v1/runs/{run}/stop").json["state"] == "stopped"
    rest = b""
    while piece := watch.read1(65536):
        rest += piece
    assert b'"state":"stopped"' in rest
    watch.close()
    assert client.ask("GET", f"/v1/runs/{run}").json["reason"] == "stopped"
    assert run in [one["run"] for one in client.ask("GET", "/v1/runs").json["runs"]]
    assert "stopped" in client.ask("GET", f"/v1/runs/{run}/explain").json["text"]
    assert client.ask("GET", f"/v1/runs/{run}/model").json["code"] == "not_found"


@pytest.mark.parametrize(
    ("field", "value"),
    [("quorum", "0%"), ("quorum", "101%"), ("min_agents", 0), ("deadline_s", 0), ("late", "maybe"), ("colour", "red"),
     ("config", {"a": [1]}), ("publisher", "zz")],
)  # fmt: skip
def test_submission_that_makes_no_sense_names_the_field(api: Api, field: str, value: object) -> None:
    client = api.user()
    answer = client.ask("POST", "/v1/runs", _submission(api, client, **{field: value}))
    assert (answer.status, answer.json["code"]) == (400, "bad_request")
    assert field in answer.json["text"]


def test_submission_with_a_signature_of_somebody_else_is_refused(api: Api) -> None:
    client = api.user()
    answer = client.ask("POST", "/v1/runs", _submission(api, client, signature=bytes(64).hex()))
    assert (answer.status, answer.json["code"]) == (403, "not_allowed")


def test_same_submission_again_makes_no_second_run(api: Api) -> None:
    client = api.user()
    asked = _submission(api, client, run=api.run(40).run)
    assert client.ask("POST", "/v1/runs", asked).json == client.ask("POST", "/v1/runs", asked).json


def test_log_is_waited_for(api: Api) -> None:
    run, user = api.run(41), api.user()
    runner = api.runner(run.run)
    lines = msgspec.msgpack.encode({"lines": ["one", "two"]})
    timer = threading.Timer(0.3, lambda: runner.ask("POST", f"/v1/runner/{run.run}/log", data=lines, headers=EPOCH))
    timer.start()
    began = time.monotonic()
    got = user.ask("GET", f"/v1/runs/{run.run}/logs?after=0&wait=10").json["lines"]
    timer.join()
    assert [line["line"] for line in got] == ["one", "two"] and time.monotonic() - began < 5
    assert user.ask("GET", f"/v1/runs/{run.run}/logs?after={got[-1]['seq']}").json == {"lines": []}


def test_runner_reads_only_blobs_that_its_run_names(api: Api) -> None:
    run = api.run(42)
    mine, other = api.stored(os.urandom(3 << 20)), api.stored(os.urandom(50))
    api.do(lambda tx, now, out: tx.put(Ref(digest=mine.digest, holder=f"payload:{run.run}:1", run=run.run)))
    client = api.runner(run.run)
    path = f"/v1/runner/{run.run}/blobs/"
    assert (
        len(client.ask("GET", path + mine.digest, headers={**EPOCH, "Range": "bytes=1000000-"}).body)
        == (3 << 20) - 10**6
    )
    assert client.ask("GET", path + other.digest, headers=EPOCH).status == 404


def test_runner_stores_blobs_and_ends_its_run_with_a_model(api: Api) -> None:
    run = api.run(43)
    client, base = api.runner(run.run), f"/v1/runner/{run.run}"
    model: dict[str, object] = {}
    data = b""
    for data in (os.urandom(500), os.urandom(BLOCK_BYTES + 3)):
        blocks = blocks_of([data])
        told = blocks.size.to_bytes(8, "little") + blocks.digests
        assert client.ask("POST", f"{base}/uploads/{blocks.digest}", data=told, headers=EPOCH).unpacked["offset"] == 0
        sent = client.ask("PATCH", f"{base}/uploads/{blocks.digest}?offset=0", data=data, headers=EPOCH)
        assert sent.unpacked["complete"]
        model = {"digest": blocks.digest, "size": blocks.size}
    nodes = msgspec.msgpack.encode({"k": 1, "at_least": 1, "unlike": None})
    assert client.ask("POST", f"{base}/nodes", data=nodes, headers=EPOCH).unpacked["recorded"] in (True, False)
    kept = msgspec.msgpack.encode({"kind": "pull", "value": [1, "x"]})
    for _ in range(2):
        assert client.ask("POST", f"{base}/answers/7", data=kept, headers=EPOCH).unpacked["value"] == [1, "x"]
    assert client.ask("GET", f"{base}/answers/7", headers=EPOCH).unpacked["kind"] == "pull"
    assert client.ask("GET", f"{base}/answers/8", headers=EPOCH).status == 404
    told_metrics = {"server_round": 1, "kind": "train", "values": {"loss": 0.5}, "num_rounds": 3}
    client.ask("POST", f"{base}/metrics", data=msgspec.msgpack.encode(told_metrics), headers=EPOCH)
    ending = msgspec.msgpack.encode({"state": "finished", "reason": "finished", "text": "done", "model": model})
    assert client.ask("POST", f"{base}/end", data=ending, headers=EPOCH).status == 200
    snapshot = api.user().ask("GET", f"/v1/runs/{run.run}").json
    assert snapshot["metrics"] == [{"round": 1, "kind": "train", "values": {"loss": 0.5}}]
    assert (snapshot["state"], snapshot["num_rounds"], snapshot["model"]) == ("finished", 3, model)
    assert api.user().ask("GET", f"/v1/runs/{run.run}/model").body == data
    over = client.ask("POST", f"{base}/alive", headers=EPOCH)
    assert (over.status, over.json["code"]) in ((409, "epoch"), (410, "over"))


def test_exchange_is_opened_and_waited_for(api: Api) -> None:
    run, device = api.run(44), api.device(44)
    client, base = api.runner(run.run), f"/v1/runner/{run.run}"
    payload = api.stored(os.urandom(10))
    opened = Open(n=1, cohort={device.agent: BlobRef(payload.digest, 10)}, deadline_s=60)
    view = decode_as(ExchangeView, client.ask("POST", f"{base}/exchanges", data=encode(opened), headers=EPOCH).body)
    assert (view.expected, view.replies) == (1, ())
    timer = threading.Timer(0.3, lambda: api.user().ask("POST", f"/v1/agents/{device.agent}/revoke"))
    timer.start()
    began = time.monotonic()
    answer = client.ask("GET", f"{base}/exchanges/1?wait=15&seen=0", headers=EPOCH)
    timer.join()
    view = decode_as(ExchangeView, answer.body)
    assert (view.closed, view.replies[0].code) == ("all", "revoked") and time.monotonic() - began < 5
    timeline = api.user().ask("GET", f"/v1/runs/{run.run}/timeline").json["tasks"]
    assert [(task["agent"], task["state"]) for task in timeline] == [(device.agent, "declined")]
    explained = api.user().ask("GET", f"/v1/agents/{device.agent}/explain").json
    assert "revoked" in explained["text"]


def test_doctor_speaks_in_sentences(api: Api) -> None:
    checks = api.user().ask("GET", "/v1/doctor").json["checks"]
    assert [check["name"] for check in checks] == ["store", "broker", "disk", "agents", "certificates"]
    assert all(isinstance(check["ok"], bool) and len(check["text"]) > 10 for check in checks)


def test_server_stops_while_somebody_waits(tmp_path: Path) -> None:
    with running_api(tmp_path / "hub") as api:
        run = api.run(1)
        client, answers = api.user(), []
        waiter = threading.Thread(
            target=lambda: answers.append(client.ask("GET", f"/v1/runs/{run.run}/logs?wait=60").status)
        )
        waiter.start()
        time.sleep(0.3)
        began = time.monotonic()
    waiter.join(5)
    assert time.monotonic() - began < 5 and answers == [200]


# --- raw connections --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _connection(api: Api, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection(("127.0.0.1", api.server.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as stream,
    ):
        yield stream


def _head(method: str, path: str, proof: str, length: int) -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\n{CAPABILITY}: {proof}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def _cut_upload(api: Api, device: Device, path: str, proof: str, data: bytes, *, sent: int) -> None:
    """Send some of a body, then vanish."""
    context = api.tls(device.certificate, device.key_file)
    with _connection(api, context) as stream:
        stream.sendall(_head("PATCH", path, proof, len(data)) + data[:sent])
        _until(lambda: len(api.services.uploads._writers) == 1)
        time.sleep(0.3)
    _until(lambda: not api.services.uploads._writers)


def _until(true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
