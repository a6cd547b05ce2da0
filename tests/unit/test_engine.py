"""The engine: nobody's error, and nobody's impatience, takes somebody else's work with it."""

import asyncio
import threading

import pytest

from fedfleet_coordinator.engine import Engine
from fedfleet_coordinator.errors import BadRequest
from fedfleet_coordinator.rows import Token
from fedfleet_coordinator.store.memory import MemoryStore
from fedfleet_coordinator.store.port import Tx
from fedfleet_protocol.ids import run_id


def put(tx: Tx, name: str) -> str:
    tx.put(Token(hashed=name))
    return name


def test_who_gives_up_waiting_does_not_stop_the_engine() -> None:
    async def story() -> None:
        engine, hold, begun = Engine(MemoryStore()), threading.Event(), threading.Event()

        def slow(*_: object) -> None:
            begun.set()
            hold.wait(5)

        at_work = asyncio.create_task(engine.do(slow))
        await asyncio.to_thread(begun.wait, 5)
        queued = asyncio.create_task(engine.do(lambda tx, now, out: put(tx, "unwanted")))
        await asyncio.sleep(0)
        for task in (at_work, queued):
            task.cancel()
        await asyncio.gather(at_work, queued, return_exceptions=True)
        hold.set()
        assert await asyncio.wait_for(engine.do(lambda tx, now, out: put(tx, "b")), 5) == "b"
        assert await engine.do(lambda tx, now, out: tx.get(Token, "unwanted")) is None
        await engine.close()

    asyncio.run(story())


def test_work_that_fails_leaves_the_others_of_its_batch_alone() -> None:
    async def story() -> None:
        engine, hold = Engine(MemoryStore()), threading.Event()

        def fails(tx: Tx, *_: object) -> None:
            put(tx, "half done")
            raise BadRequest("no")

        first = asyncio.create_task(engine.do(lambda tx, now, out: hold.wait(5)))
        await asyncio.sleep(0.05)
        rest = [
            asyncio.create_task(engine.do(lambda tx, now, out: put(tx, "a"))),
            asyncio.create_task(engine.do(fails)),
            asyncio.create_task(engine.do(lambda tx, now, out: put(tx, "b"))),
        ]
        await asyncio.sleep(0)
        hold.set()
        await first
        results = await asyncio.gather(*rest, return_exceptions=True)
        assert (results[0], results[2]) == ("a", "b") and isinstance(results[1], BadRequest)
        kept = await engine.do(lambda tx, now, out: [row.hashed for row in tx.find(Token)])
        assert kept == ["a", "b"]
        await engine.close()

    asyncio.run(story())


def test_change_wakes_who_watches_the_run() -> None:
    async def story() -> None:
        engine, run = Engine(MemoryStore()), run_id(bytes(16))
        watch = asyncio.create_task(engine.changed(run, 5.0))
        await asyncio.sleep(0)
        await engine.do(lambda tx, now, out: out.changed(run))
        assert await watch is True
        assert await engine.changed(run, 0.01) is False
        await engine.close()

    asyncio.run(story())


def test_engine_that_is_closed_has_done_what_was_queued() -> None:
    async def story() -> list[str]:
        store = MemoryStore()
        engine = Engine(store)
        tasks = [asyncio.create_task(engine.do(lambda tx, now, out, n=n: put(tx, n))) for n in "abc"]  # type: ignore[misc]
        await asyncio.sleep(0)
        await engine.close()
        await asyncio.gather(*tasks)
        with store.transaction() as tx:
            return [row.hashed for row in tx.find(Token)]

    assert asyncio.run(story()) == ["a", "b", "c"]


@pytest.mark.parametrize("error", [BadRequest("no"), ValueError("a bug")])
def test_who_asked_gets_the_error(error: Exception) -> None:
    async def story() -> None:
        engine = Engine(MemoryStore())

        def fails(*_: object) -> None:
            raise error

        with pytest.raises(type(error), match=str(error)):
            await engine.do(fails)
        await engine.close()

    asyncio.run(story())
