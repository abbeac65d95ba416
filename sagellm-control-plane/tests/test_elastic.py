"""Engines that come and go with load: mock engines in this process, and once in processes of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from conftest import ask, mock, until
from sagellm_control_plane.scaling import ScalingSettings
from sagellm_control_plane.service import ControlPlaneService
from sagellm_protocol import EndEvent, ErrorCode, ErrorEvent, SageLLMError, StreamEvent

Planes = Callable[..., ControlPlaneService]
EAGER: dict[str, Any] = {
    "interval_s": 0.1,
    "up_cooldown_s": 0.0,
    "down_after_s": 0.3,
    "idle_to_zero_s": 0.5,
    "ttft_s": None,
    "predictor": "constant",
}


async def read(plane: ControlPlaneService, request: object) -> list[StreamEvent]:
    events = [event async for event in plane.submit(request)]  # type: ignore[arg-type]
    return events


def error(events: list[StreamEvent]) -> Any:
    assert isinstance(events[-1], ErrorEvent), events
    return events[-1].error


async def test_a_model_without_engines_is_served_by_one_that_starts_for_it_and_goes_again(planes: Planes) -> None:
    plane = planes()
    plane.scale(mock(start_delay_s=0.2), settings=ScalingSettings(min_engines=0, max_engines=2, **EAGER))
    status = plane.status_now()
    assert status.ready
    assert [model.name for model in await plane.models()] == ["m"]
    answers = await asyncio.gather(*(read(plane, ask()) for _ in range(5)))
    assert all(isinstance(events[-1], EndEvent) for events in answers)
    assert len(plane.fleet) == 1
    await until(lambda: len(plane.fleet) == 0)
    assert "nothing was asked for" in plane.status_now().scaling[0].reason
    assert isinstance((await read(plane, ask()))[-1], EndEvent)


async def test_no_more_wait_for_the_first_engine_than_may(planes: Planes) -> None:
    plane = planes()
    plane.scale(mock(start_delay_s=0.3), settings=ScalingSettings(min_engines=0, max_waiting=2, **EAGER))
    answers = await asyncio.gather(*(read(plane, ask()) for _ in range(4)))
    refused = [error(events) for events in answers if isinstance(events[-1], ErrorEvent)]
    assert [one.code for one in refused] == [ErrorCode.QUEUE_FULL] * 2
    assert "max_waiting=2" in refused[0].message


async def test_those_who_wait_for_an_engine_that_does_not_start_in_time_are_told_so(planes: Planes) -> None:
    plane = planes()
    plane.scale(mock(start_delay_s=60), settings=ScalingSettings(min_engines=0, start_timeout_s=0.2, **EAGER))
    told = error(await read(plane, ask()))
    assert told.code is ErrorCode.UNAVAILABLE
    assert "start_timeout_s" in told.message
    assert told.retry_after_s is not None


async def test_an_engine_that_cannot_start_is_given_up_with_its_reason(planes: Planes) -> None:
    plane = planes(max_restarts=0)
    plane.scale(mock(no_such_option=1), settings=ScalingSettings(min_engines=0, **EAGER))
    told = error(await read(plane, ask()))
    assert "no_such_option" in told.message
    again = error(await read(plane, ask()))
    assert again.code is ErrorCode.UNAVAILABLE
    assert "no_such_option" in plane.status_now().scaling[0].reason


async def test_the_least_number_is_kept_when_one_is_stopped_by_hand(planes: Planes) -> None:
    plane = planes()
    plane.scale(mock(), settings=ScalingSettings(min_engines=2, **EAGER))
    await until(lambda: sum(member.ready for member in plane.fleet) == 2)
    await plane.stop_engine(next(iter(plane.fleet)).engine_id)
    await until(lambda: sum(member.ready for member in plane.fleet) == 2)
    plane.unscale("m")
    await plane.stop_engine(next(iter(plane.fleet)).engine_id)
    assert len(plane.fleet) == 1
    with pytest.raises(SageLLMError) as unknown:
        plane.unscale("m")
    assert unknown.value.code is ErrorCode.NOT_FOUND


async def test_scaling_is_off_unless_set_and_then_follows_the_engines_that_are_started(planes: Planes) -> None:
    still = planes()
    await still.start_engine(mock())
    assert still.status_now().scaling == ()
    plane = planes(scaling=ScalingSettings(min_engines=2, **EAGER))
    await plane.start_engine(mock())
    await until(lambda: sum(member.ready for member in plane.fleet) == 2)
    with pytest.raises(SageLLMError) as taken:
        plane.scale(mock())
    assert taken.value.code is ErrorCode.CONFLICT


async def test_engines_in_processes_come_under_load_and_go_after_it_losing_nothing(planes: Planes) -> None:
    plane = planes()
    # An engine takes 4 sequences at 20 ms a token: 200 tokens a second. Processes take their time.
    spec = mock(max_num_seqs=4, itl_ms=20.0)
    settings = ScalingSettings(min_engines=0, max_engines=3, **{**EAGER, "interval_s": 0.5, "ttft_s": 0.2})
    plane.scale(spec, "subprocess", settings)
    most = 0
    answers: list[asyncio.Task[list[StreamEvent]]] = []

    async def loaded() -> bool:
        nonlocal most
        if len(answers) < 600:
            answers.append(asyncio.create_task(read(plane, ask(max_tokens=10))))
        await asyncio.sleep(0.01)
        most = max(most, sum(member.ready for member in plane.fleet))
        return most >= 2

    await until(loaded)
    assert all(isinstance(events[-1], EndEvent) for events in await asyncio.gather(*answers))
    scaling = plane.status_now().scaling[0]
    assert scaling.reason
    # What tokens cost was measured from the engines' own counters.
    assert sum(scaling.inputs[name] for name in ("step_s", "prompt_token_s", "output_token_s")) > 0
    await until(lambda: len(plane.fleet) == 0)
    assert isinstance((await read(plane, ask()))[-1], EndEvent)
