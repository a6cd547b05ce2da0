"""The agent's transfers against the real API: bad links, restarts, held blocks, wrong bytes."""

import contextlib
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import urllib3
from msgspec.structs import replace

from fedfleet_agent.errors import AgentError, GrantRefused, HubRefused, TransferCancelled
from fedfleet_agent.hub import Hub, Patience, tls_context
from fedfleet_agent.incoming import held_blocks
from fedfleet_agent.transfer import Transfer
from fedfleet_coordinator.rows import Blob
from fedfleet_coordinator.store.memory import MemoryStore
from fedfleet_protocol.blocks import BLOCK_BYTES, blocks_of
from fedfleet_protocol.messages import BlobRef, Grant
from tests.api_fixture import Api, Device, running_api
from tests.badlink import bad_link

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture(autouse=True)
def quick_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patience, "FIRST_S", 0.02)
    monkeypatch.setattr(Patience, "LONGEST_S", 0.3)


class NotingHub(Hub):
    """The coordinator over HTTPS; notes what was asked for."""

    asked: tuple[str, ...] = ()

    def open(self, method: str, path: str, **request: Any) -> urllib3.BaseHTTPResponse:
        self.asked = (*self.asked, path)
        return super().open(method, path, **request)


class Agent:
    """A device with its blob folder."""

    def __init__(self, api: Api, number: int, folder: Path, *, url: str = "") -> None:
        self.device: Device = api.device(number)
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.cancel = threading.Event()
        self.moved = 0
        context = tls_context(
            certificate=self.device.certificate,
            key=self.device.key_file,
            services_ca_pem=api.pki.ca_pem("services"),
        )
        self.hub = NotingHub(url or api.url, context)
        self.transfer = Transfer(self.hub, random.Random(number))

    def note(self, count: int) -> None:
        self.moved += count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hub.close()


def test_blob_is_fetched_once_and_found_again(api: Api, tmp_path: Path) -> None:
    data = os.urandom(2 * BLOCK_BYTES + 9)
    blocks = api.stored(data)
    with Agent(api, 1, tmp_path / "blobs") as agent:
        grant = api.grant("GET", blocks, agent.device.agent)
        path = agent.transfer.fetch(grant, agent.folder, cancel=agent.cancel, moved=agent.note)
        assert (path.read_bytes(), agent.moved) == (data, len(data))
        assert agent.transfer.fetch(grant, agent.folder, cancel=agent.cancel, moved=agent.note) == path
        assert agent.moved == len(data)


@pytest.mark.parametrize("size", [0, 1, 70_000, BLOCK_BYTES])
def test_blob_of_one_block_needs_no_list_of_blocks(api: Api, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    blocks = api.stored(data)
    with Agent(api, 2, tmp_path / "blobs") as agent:
        grant = api.grant("GET", blocks, agent.device.agent)
        assert agent.transfer.fetch(grant, agent.folder, cancel=agent.cancel).read_bytes() == data


@pytest.mark.parametrize("carried", ["right", "none", "wrong"])
def test_list_of_blocks_that_came_with_the_task_is_not_asked_for(api: Api, tmp_path: Path, carried: str) -> None:
    data = os.urandom(2 * BLOCK_BYTES + 9)
    blocks = api.stored(data)
    lists = {"right": blocks.digests, "none": b"", "wrong": bytes(len(blocks.digests))}
    with Agent(api, 4, tmp_path / "blobs") as agent:
        grant = replace(api.grant("GET", blocks, agent.device.agent), blocks=lists[carried])
        assert agent.transfer.fetch(grant, agent.folder, cancel=agent.cancel).read_bytes() == data
        assert (f"{grant.path}/blocks" in agent.hub.asked) == (carried != "right")


def test_inline_payload_needs_no_hub(api: Api, tmp_path: Path) -> None:
    data = b"few bytes"
    with Agent(api, 3, tmp_path / "blobs", url="https://127.0.0.1:1") as agent:
        grant = Grant(BlobRef(blocks_of([data]).digest, len(data)), inline=data)
        assert agent.transfer.fetch(grant, agent.folder, cancel=agent.cancel).read_bytes() == data


def test_fetch_goes_on_after_a_reboot_where_it_stopped(api: Api, tmp_path: Path) -> None:
    data = os.urandom(4 * BLOCK_BYTES)
    blocks = api.stored(data)
    with Agent(api, 4, tmp_path / "blobs") as agent:
        part = agent.folder / f"{blocks.digest}.part"
        kept = bytearray(data[: 2 * BLOCK_BYTES + 5000])
        kept[BLOCK_BYTES + 1] ^= 1  # what a power cut did to a block that was not durable yet
        part.write_bytes(kept)
        grant = api.grant("GET", blocks, agent.device.agent)
        path = agent.transfer.fetch(grant, agent.folder, cancel=agent.cancel, moved=agent.note)
        assert path.read_bytes() == data and agent.moved == 3 * BLOCK_BYTES
        assert not part.exists()


def test_frozen_layers_are_not_fetched_again(api: Api, tmp_path: Path) -> None:
    first = os.urandom(5 * BLOCK_BYTES)
    second = first[: 2 * BLOCK_BYTES] + os.urandom(BLOCK_BYTES) + first[3 * BLOCK_BYTES :]
    with Agent(api, 5, tmp_path / "blobs") as agent:
        for data, moved in ((first, 5 * BLOCK_BYTES), (second, BLOCK_BYTES)):
            grant = api.grant("GET", api.stored(data), agent.device.agent)
            agent.moved = 0
            path = agent.transfer.fetch(
                grant, agent.folder, cancel=agent.cancel, held=held_blocks(agent.folder), moved=agent.note
            )
            assert (path.read_bytes(), agent.moved) == (data, moved)


def test_held_block_that_is_damaged_is_fetched_instead(api: Api, tmp_path: Path) -> None:
    data = os.urandom(3 * BLOCK_BYTES)
    longer = data + b"more"
    with Agent(api, 6, tmp_path / "blobs") as agent:
        path = agent.transfer.fetch(
            api.grant("GET", api.stored(data), agent.device.agent), agent.folder, cancel=agent.cancel
        )
        with path.open("r+b") as stream:
            stream.seek(BLOCK_BYTES + 3)
            stream.write(b"\0\0\0\0\0\0\0\0")
        grant = api.grant("GET", api.stored(longer), agent.device.agent)
        held = held_blocks(agent.folder)
        path = agent.transfer.fetch(grant, agent.folder, cancel=agent.cancel, held=held, moved=agent.note)
        assert path.read_bytes() == longer and agent.moved == BLOCK_BYTES + 4


def test_grant_that_expired_is_for_the_caller_to_renew(api: Api, tmp_path: Path) -> None:
    blocks = api.stored(os.urandom(10))
    with Agent(api, 7, tmp_path / "blobs") as agent:
        grant = api.grant("GET", blocks, agent.device.agent, expires_in_s=-5)
        with pytest.raises(GrantRefused, match="expired"):
            agent.transfer.fetch(grant, agent.folder, cancel=agent.cancel)


def test_blob_that_is_gone_is_refused_in_words(api: Api, tmp_path: Path) -> None:
    with Agent(api, 8, tmp_path / "blobs") as agent:
        grant = api.grant("GET", blocks_of([b"never stored"]), agent.device.agent)
        with pytest.raises(HubRefused, match="not here"):
            agent.transfer.fetch(grant, agent.folder, cancel=agent.cancel)


def test_damaged_blob_at_the_hub_is_never_taken(api: Api, tmp_path: Path) -> None:
    data = os.urandom(1000)
    blocks = api.stored(data)
    row = api.do(lambda tx, now, out: tx.get(Blob, blocks.digest))
    assert row is not None
    api.services.blobs.path(row.file).write_bytes(b"\0" * 1000)
    with Agent(api, 9, tmp_path / "blobs") as agent:
        grant = api.grant("GET", blocks, agent.device.agent)
        with pytest.raises(HubRefused, match="again and again"):
            agent.transfer.fetch(grant, agent.folder, cancel=agent.cancel)
        assert not (agent.folder / blocks.digest).exists()


@pytest.mark.parametrize("size", [0, 300, BLOCK_BYTES, 3 * BLOCK_BYTES + 1])
def test_update_is_brought_from_a_file_and_from_memory(api: Api, tmp_path: Path, size: int) -> None:
    for index, as_file in enumerate((True, False)):
        data = os.urandom(size)
        blocks = blocks_of([data])
        (tmp_path / "update").write_bytes(data)
        with Agent(api, 10 + index, tmp_path / "blobs") as agent:
            grant = api.grant("PUT", blocks, agent.device.agent)
            source = tmp_path / "update" if as_file else data
            agent.transfer.upload(source, grant, blocks, cancel=agent.cancel, moved=agent.note)
            assert agent.moved == size or blocks.size == 0
            agent.transfer.upload(source, grant, blocks, cancel=agent.cancel, moved=agent.note)  # it is there: no byte
            assert agent.moved == size
        assert api.do(lambda tx, now, out, digest=blocks.digest: tx.get(Blob, digest)) is not None  # type: ignore[misc]


def test_file_that_changed_since_it_was_hashed_is_not_sent_for_ever(api: Api, tmp_path: Path) -> None:
    data = os.urandom(2 * BLOCK_BYTES)
    blocks = blocks_of([data])
    (tmp_path / "update").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with Agent(api, 13, tmp_path / "blobs") as agent:
        grant = api.grant("PUT", blocks, agent.device.agent)
        with pytest.raises(AgentError, match="changed on this disk"):
            agent.transfer.upload(tmp_path / "update", grant, blocks, cancel=agent.cancel, moved=agent.note)
        assert agent.moved < 8 * BLOCK_BYTES  # the first block was sent once


def test_transfer_that_is_cancelled_ends(api: Api, tmp_path: Path) -> None:
    with Agent(api, 14, tmp_path / "blobs", url="https://127.0.0.1:1") as agent:
        timer = threading.Timer(0.3, agent.cancel.set)
        timer.start()
        grant = api.grant("GET", blocks_of([b"x"]), agent.device.agent)
        with pytest.raises(TransferCancelled):
            agent.transfer.fetch(grant, agent.folder, cancel=agent.cancel)
        timer.join()


def test_upload_goes_on_after_the_hub_was_started_again(tmp_path: Path) -> None:
    data = os.urandom(6 * BLOCK_BYTES)
    blocks, store = blocks_of([data]), MemoryStore()
    with running_api(tmp_path / "hub", store=store) as api:
        port, pki = api.server.port, api.pki
        with bad_link(port, bits_s=40e6, cut_every_s=0) as link:
            agent = Agent(api, 1, tmp_path / "blobs", url=link.url)
            grant = api.grant("PUT", blocks, agent.device.agent)

            def bring(agent: Agent = agent, grant: Grant = grant) -> None:
                with contextlib.suppress(TransferCancelled):
                    agent.transfer.upload(data, grant, blocks, cancel=agent.cancel, moved=agent.note)

            thread = threading.Thread(target=bring)
            thread.start()
            while agent.moved < 2 * BLOCK_BYTES:
                time.sleep(0.01)
    agent.hub.close()
    sent = agent.moved
    with running_api(tmp_path / "hub", store=store, port=port, pki=pki) as api:
        agent.cancel.set()
        thread.join(30)
        with Agent(api, 1, tmp_path / "blobs") as again:
            again.transfer.upload(
                data, api.grant("PUT", blocks, again.device.agent), blocks, cancel=again.cancel, moved=again.note
            )
            assert sent + again.moved < len(data) + BLOCK_BYTES // 2
        assert api.do(lambda tx, now, out: tx.get(Blob, blocks.digest)) is not None


def _bring_over(api: Api, folder: Path, number: int, *, size: int, bits_s: float, cut_every_s: float) -> None:
    data = os.urandom(size)
    blocks = blocks_of([data])
    (folder / "update").write_bytes(data)
    with (
        bad_link(api.server.port, bits_s=bits_s, cut_every_s=cut_every_s, seed=number) as link,
        Agent(api, number, folder / "blobs", url=link.url) as agent,
    ):
        grant = api.grant("PUT", blocks, agent.device.agent)
        agent.transfer.upload(folder / "update", grant, blocks, cancel=agent.cancel, moved=agent.note)
        row = api.do(lambda tx, now, out: tx.get(Blob, blocks.digest))
        assert row is not None and api.services.blobs.path(row.file).read_bytes() == data
        assert row.blocks == blocks.digests
        print(f"{link.up} bytes over the link for {size}, {link.up / size:.3f}, {link.cuts} cuts")
        assert link.cuts >= 2
        assert link.up <= size * 1.05


def test_update_arrives_over_a_bad_link_and_no_block_is_sent_twice(api: Api, tmp_path: Path) -> None:
    _bring_over(api, tmp_path, 20, size=BLOCK_BYTES, bits_s=2e6, cut_every_s=1.0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_megabytes_arrive_over_256_kbit_with_cuts_every_few_seconds(api: Api, tmp_path: Path) -> None:
    _bring_over(api, tmp_path, 21, size=10 * BLOCK_BYTES, bits_s=256e3, cut_every_s=5.0)


def test_model_arrives_over_a_bad_link(api: Api, tmp_path: Path) -> None:
    data = os.urandom(2 * BLOCK_BYTES)
    blocks = api.stored(data)
    with (
        bad_link(api.server.port, bits_s=4e6, cut_every_s=1.0) as link,
        Agent(api, 22, tmp_path / "blobs", url=link.url) as agent,
    ):
        grant = api.grant("GET", blocks, agent.device.agent)
        path = agent.transfer.fetch(grant, agent.folder, cancel=agent.cancel, moved=agent.note)
        assert path.read_bytes() == data and agent.moved == len(data)
        assert link.cuts >= 2
        assert link.down <= len(data) * 1.2
