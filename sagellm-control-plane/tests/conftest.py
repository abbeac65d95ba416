"""What the tests share."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sagellm_control_plane.service import ControlPlaneService
from sagellm_control_plane.settings import PlaneSettings
from sagellm_protocol import EngineSpec, Request, SamplingParams

_IDS = itertools.count()
QUICK: dict[str, Any] = {"poll_interval_s": 0.05, "poll_timeout_s": 0.5, "restart_backoff_s": 0.01}


def mock(model: str = "m", max_num_seqs: int | None = None, **options: Any) -> EngineSpec:
    """A mock engine that is asked for."""
    return EngineSpec(engine="mock", model=model, max_num_seqs=max_num_seqs, options=options)


def ask(model: str = "m", max_tokens: int | None = 8, **fields: Any) -> Request:
    """A request with a fresh id."""
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return Request(
        **{"request_id": f"r{next(_IDS)}", "model": model, "prompt": "hello", "sampling": sampling, **fields}
    )


async def until(holds: Callable[[], Any], patience_s: float = 30.0) -> None:
    """Return once ``holds`` does, which may be a coroutine function; fail after a while."""

    async def watch() -> None:
        while True:
            held = holds()
            if await held if inspect.isawaitable(held) else held:
                return
            await asyncio.sleep(0.005)

    await asyncio.wait_for(watch(), patience_s)


@pytest.fixture
async def planes() -> AsyncIterator[Callable[..., ControlPlaneService]]:
    """Makes planes that watch their engines closely, and stops them."""
    made: list[ControlPlaneService] = []

    def make(**settings: Any) -> ControlPlaneService:
        plane = ControlPlaneService(PlaneSettings.of(**{**QUICK, **settings}))
        made.append(plane)
        return plane

    yield make
    for plane in made:
        await plane.stop()
        status = plane.status_now()
        assert status.in_flight == 0
        assert status.accepted == sum(status.ended.values())
        assert plane.dispatcher.placed == 0
