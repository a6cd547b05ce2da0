"""Which blobs go, and which stay."""

from typing import Any

import pytest

from fedfleet_coordinator import garbage
from fedfleet_coordinator.clock import Now
from fedfleet_coordinator.rows import Blob, Ref
from fedfleet_coordinator.store.memory import MemoryStore, MemoryTx
from fedfleet_protocol.ids import Digest

GRACE_S = 100.0


def collect(store: MemoryStore, up: float) -> list[str]:
    with store.transaction() as tx:
        return garbage.collect(tx, Now(up, 0.0), GRACE_S)


def blob(name: str, stored_at: float = 0.0, **rest: Any) -> Blob:
    return Blob(digest=Digest(name), size=1, file=f"{name}.x", stored_at=stored_at, **rest)


def left(store: MemoryStore) -> list[str]:
    with store.transaction() as tx:
        return [row.digest for row in tx.find(Blob)]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def test_a_blob_that_nothing_names_goes_after_the_grace_time(store: MemoryStore) -> None:
    with store.transaction() as tx:
        tx.put(blob("old", 0.0), blob("young", 50.0))
    assert collect(store, 99.0) == []
    assert collect(store, 100.0) == ["old.x"]
    assert left(store) == ["young"]


def test_a_blob_that_a_row_names_stays(store: MemoryStore) -> None:
    with store.transaction() as tx:
        tx.put(
            blob("a"), blob("b"), Ref(digest=Digest("a"), holder="model:r"), Ref(digest=Digest("a"), holder="reply:r")
        )
    assert collect(store, 1000.0) == ["b.x"]
    with store.transaction() as tx:
        tx.delete(Ref(digest=Digest("a"), holder="model:r"))
    assert collect(store, 1000.0) == []
    with store.transaction() as tx:
        tx.delete(Ref(digest=Digest("a"), holder="reply:r"))
    assert collect(store, 1000.0) == ["a.x"]


def test_a_blob_in_its_row_leaves_no_file_to_unlink(store: MemoryStore) -> None:
    with store.transaction() as tx:
        tx.put(Blob(digest=Digest("a"), size=1, inline=b"x"))
    assert collect(store, 1000.0) == []
    assert left(store) == []


def test_many_that_stay_hide_none_that_may_go_even_if_all_came_at_once(store: MemoryStore) -> None:
    with store.transaction() as tx:
        tx.put(*(blob(f"{i:04}") for i in range(700)))
        tx.put(*(Ref(digest=Digest(f"{i:04}"), holder="h") for i in range(699)))
    assert collect(store, 1000.0) == ["0699.x"]


def test_one_transaction_removes_a_bounded_number(store: MemoryStore) -> None:
    with store.transaction() as tx:
        tx.put(*(blob(f"{i:04}", i / 1000) for i in range(1200)))
    assert [len(collect(store, 1000.0)) for _ in range(4)] == [500, 500, 200, 0]


def test_collecting_asks_a_few_questions_however_many_blobs_there_are(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.transaction() as tx:
        tx.put(*(blob(f"{i:04}", i / 1000) for i in range(1000)))
        tx.put(*(Ref(digest=Digest(f"{i:04}"), holder="h") for i in range(1000)))
    asked: list[type] = []
    find = MemoryTx.find

    def counted(self: MemoryTx, kind: Any, **rest: Any) -> list[Any]:
        asked.append(kind)
        return find(self, kind, **rest)

    monkeypatch.setattr(MemoryTx, "find", counted)
    assert collect(store, 1000.0) == []
    assert len(asked) <= 40
