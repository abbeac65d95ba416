"""Awaiting what others may call off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import anyio
import pytest

from sagellm_control_plane.interruptible import Interrupted, Interruptible


async def _suspended(task: asyncio.Task[object], reached: asyncio.Event) -> None:
    await asyncio.wait_for(reached.wait(), 10)
    assert not task.done()


async def test_what_is_done_at_once_gives_its_result_and_what_it_raises_passes() -> None:
    async def answer() -> int:
        return 7

    async def fail() -> int:
        raise ValueError("no")

    assert await Interruptible(answer()) == 7
    with pytest.raises(ValueError, match="no"):
        await Interruptible(fail())


async def test_what_has_to_wait_gives_its_result() -> None:
    async def answer() -> str:
        for _ in range(3):
            await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        return await asyncio.to_thread(lambda: "late")

    assert await Interruptible(answer()) == "late"


async def test_an_interruption_cleans_up_what_was_awaited_and_leaves_the_task_alone() -> None:
    trace: list[str] = []
    reached = asyncio.Event()

    async def work() -> None:
        try:
            reached.set()
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0.001)  # the interruption comes once: cleaning up is not interrupted
            trace.append("cleaned up")

    awaited = Interruptible(work())

    async def caller() -> str:
        with pytest.raises(Interrupted):
            await awaited
        await asyncio.sleep(0.001)
        return "went on"

    task = asyncio.ensure_future(caller())
    await _suspended(task, reached)
    awaited.interrupt()
    awaited.interrupt()
    assert await asyncio.wait_for(task, 10) == "went on"
    assert trace == ["cleaned up"]


@pytest.mark.parametrize("inner_first", [False, True])
async def test_of_one_within_another_each_answers_for_its_own_interruption(inner_first: bool) -> None:
    reached, went_on = asyncio.Event(), asyncio.Event()
    inside: list[Interruptible[None]] = []

    async def wait() -> None:
        reached.set()
        await asyncio.get_running_loop().create_future()

    async def work() -> None:
        for _ in range(2):
            inside.append(Interruptible(wait()))
            try:
                await inside[-1]
            except Interrupted:
                went_on.set()

    outer = Interruptible(work())

    async def caller() -> str:
        with pytest.raises(Interrupted):
            await outer
        return "over"

    task = asyncio.ensure_future(caller())
    await _suspended(task, reached)
    for one in (inside[0], outer) if inner_first else (outer, inside[0]):
        one.interrupt()
    assert await asyncio.wait_for(task, 10) == "over"
    assert went_on.is_set() == inner_first


async def test_the_next_item_of_a_stream_can_be_called_off_and_the_stream_then_closed() -> None:
    reached, closed = asyncio.Event(), asyncio.Event()

    async def stream() -> AsyncIterator[int]:
        try:
            yield 1
            reached.set()
            await asyncio.get_running_loop().create_future()
            yield 2
        finally:
            closed.set()

    items = stream()
    assert await Interruptible(items.__anext__()) == 1
    awaited = Interruptible(items.__anext__())
    task = asyncio.ensure_future(_outcome(awaited))
    await _suspended(task, reached)
    awaited.interrupt()
    assert await asyncio.wait_for(task, 10) == "interrupted"
    assert closed.is_set()


async def test_an_interruption_before_it_suspends_comes_when_it_does() -> None:
    async def work() -> None:
        awaited.interrupt()
        await asyncio.sleep(0)
        await asyncio.get_running_loop().create_future()

    awaited = Interruptible(work())
    assert await asyncio.wait_for(_outcome(awaited), 10) == "interrupted"


async def test_a_result_that_came_before_the_interruption_stands() -> None:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    awaited = Interruptible(ready)
    task = asyncio.ensure_future(_outcome(awaited))
    await asyncio.sleep(0)
    ready.set_result("in time")
    awaited.interrupt()
    assert await asyncio.wait_for(task, 10) == "in time"


async def test_a_cancelled_task_is_cancelled_not_interrupted() -> None:
    reached = asyncio.Event()

    async def work() -> None:
        reached.set()
        await asyncio.get_running_loop().create_future()

    task = asyncio.ensure_future(_outcome(Interruptible(work())))
    await _suspended(task, reached)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)


@pytest.mark.skipif(not hasattr(asyncio.Task, "cancelling"), reason="before Python 3.11 tasks do not say")
@pytest.mark.parametrize("first", ["interrupt", "cancel"])
async def test_a_task_that_is_cancelled_in_the_turn_of_an_interruption_is_cancelled(first: str) -> None:
    reached = asyncio.Event()

    async def work() -> None:
        reached.set()
        await asyncio.get_running_loop().create_future()

    awaited = Interruptible(work())
    task = asyncio.ensure_future(_outcome(awaited))
    await _suspended(task, reached)
    for end in (awaited.interrupt, task.cancel) if first == "interrupt" else (task.cancel, awaited.interrupt):
        end()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)


async def test_scopes_inside_and_outside_keep_working() -> None:
    async def work() -> str:
        with anyio.move_on_after(0.001):
            await anyio.sleep_forever()
        return "moved on"

    assert await Interruptible(work()) == "moved on"
    with anyio.move_on_after(0.001) as scope:
        await Interruptible(anyio.sleep_forever())
    assert scope.cancelled_caught


async def _outcome(awaited: Interruptible[object]) -> object:
    try:
        return await awaited
    except Interrupted:
        return "interrupted"
