from __future__ import annotations

from sagellm_control_plane.service import create
from sagellm_protocol import EngineSpec, Request, SamplingParams, collect


async def test_a_request_is_answered_by_a_launched_engine() -> None:
    plane = create()
    await plane.start()
    try:
        await plane.start_engine(EngineSpec(engine="mock", model="m"))
        request = Request(request_id="a", model="m", prompt="hello", sampling=SamplingParams(max_tokens=8))
        response = await collect(plane.submit(request), "m")
        assert response.usage.completion_tokens == 8
        status = await plane.status()
        assert status.accepted == sum(status.ended.values()) == 1
        assert status.in_flight == 0
    finally:
        await plane.stop()
