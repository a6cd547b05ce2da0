import asyncio

import pytest

from fedfleet_coordinator.api import uploads
from fedfleet_coordinator.api.uploads import Admission
from fedfleet_coordinator.errors import Busy


def test_places_are_given_out_in_order_and_never_more_than_there_are() -> None:
    async def story() -> list[str]:
        admission, order, most = Admission(at_once=2), [], 0

        async def upload(name: str) -> None:
            nonlocal most
            async with admission.place(name):
                order.append(name)
                most = max(most, admission.active)
                await asyncio.sleep(0.01)

        await asyncio.gather(*(upload(f"agent {index}") for index in range(6)))
        assert most == 2 and (admission.active, admission.waiting) == (0, 0)
        return order

    assert asyncio.run(story()) == [f"agent {index}" for index in range(6)]


def test_who_waits_too_long_is_told_when_to_come_back() -> None:
    async def story() -> None:
        admission = Admission(at_once=1, wait_s=0.02)
        async with admission.place("a"):
            with pytest.raises(Busy, match="come back later") as told:
                async with admission.place("b"):
                    raise AssertionError
            assert told.value.retry_after_s > 0
        async with admission.place("c"):
            assert admission.active == 1
        assert (admission.active, admission.waiting) == (0, 0)

    asyncio.run(story())


def test_who_gives_up_waiting_takes_no_place_with_it() -> None:
    async def story() -> None:
        admission = Admission(at_once=1)

        async def upload() -> None:
            async with admission.place("b"):
                raise AssertionError

        async with admission.place("a"):
            waiting = asyncio.create_task(upload())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert (admission.active, admission.waiting) == (0, 0)

    asyncio.run(story())


def test_one_agent_cannot_take_all_places() -> None:
    async def story() -> None:
        admission = Admission(at_once=16)
        async with asyncio.TaskGroup() as group:
            hold = asyncio.Event()

            async def upload() -> None:
                async with admission.place("greedy"):
                    await hold.wait()

            for _ in range(uploads.PER_OWNER):
                group.create_task(upload())
            await asyncio.sleep(0.01)
            with pytest.raises(Busy, match="greedy has"):
                async with admission.place("greedy"):
                    raise AssertionError
            hold.set()

    asyncio.run(story())


def test_slow_upload_gives_its_place_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "SLOW_AFTER_S", 0.0)

    async def story() -> None:
        admission = Admission(at_once=1, wait_s=0.02)
        async with admission.place("slow") as place:
            await asyncio.sleep(0.01)
            place.note(10)
            assert (admission.active, admission.slow) == (0, 1)
            async with admission.place("quick"):
                assert admission.active == 1
        assert (admission.active, admission.slow) == (0, 0)

    asyncio.run(story())
