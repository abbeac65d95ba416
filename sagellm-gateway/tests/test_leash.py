"""Work that is ended from elsewhere."""

from __future__ import annotations

import asyncio

import pytest

from sagellm_gateway.leash import Leash


async def test_the_error_takes_the_work_s_place_once_it_has_cleaned_up() -> None:
    cleaned = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        with Leash() as leash:
            loop.call_soon(leash.end, ValueError("late"))
            loop.call_soon(leash.end, ValueError("later"))
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                cleaned.append(True)

    with pytest.raises(ValueError, match=r"^late$"):
        await work()
    assert cleaned
    await asyncio.sleep(0)  # the task itself goes on


async def test_work_that_is_over_is_not_disturbed() -> None:
    with Leash() as leash:
        await asyncio.sleep(0)
    leash.end(ValueError("late"))
    await asyncio.sleep(0)


async def test_of_two_leashes_ended_at_once_the_outer_one_s_error_counts() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        with Leash() as outer, Leash() as inner:
            loop.call_soon(inner.end, ValueError("inner"))
            loop.call_soon(outer.end, KeyError("outer"))
            await asyncio.Event().wait()

    # Before Python 3.11 tasks do not count who cancelled them, and the nearest is taken for it.
    with pytest.raises(KeyError if hasattr(asyncio.Task, "uncancel") else ValueError):
        await work()
    await asyncio.sleep(0)


async def test_a_task_that_is_cancelled_stays_cancelled() -> None:
    async def work() -> None:
        with Leash() as leash:
            started.set_result(leash)
            await asyncio.Event().wait()

    started: asyncio.Future[Leash] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(work())
    await started
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
