"""``/sleep``, ``/wake_up``, ``/is_sleeping`` as vLLM has them, and ``/reload_weights``: what operators do to engines.

Off unless the operator allows it: who puts engines to sleep takes the service from everyone else.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from sagellm_gateway.gateway import Gateway, gateway_of
from sagellm_gateway.openai.body import parse
from sagellm_gateway.openai.management import ReloadBody
from sagellm_gateway.settings import PREFIX
from sagellm_protocol import EngineRecord, EngineState, ErrorCode, SageLLMError, SleepManager, SleepMode

from .base import answer, json_body, takes

router = APIRouter()
_LEVEL = re.compile("[0-9]{1,3}")


@router.post("/sleep", response_model=None)
async def sleep(request: Request, level: str = "1", mode: str = "wait", engine: str | None = None) -> Response:
    """Have engines give up their cache, and at level 2 their weights; all of them, or one by id."""
    if not _LEVEL.fullmatch(level):
        raise SageLLMError(ErrorCode.INVALID_REQUEST, f"level={level!r:.80} is no number; there are 1 and 2", "level")
    return await _each(request, engine, lambda plane, one: plane.sleep_engine(one, int(level), cast(SleepMode, mode)))


@router.post("/wake_up", response_model=None)
async def wake_up(request: Request, engine: str | None = None) -> Response:
    """Have engines be ready again, with empty caches."""
    return await _each(request, engine, lambda plane, one: plane.wake_engine(one))


@router.get("/is_sleeping", response_model=None)
async def is_sleeping(request: Request, engine: str | None = None) -> Response:
    """Say whether engines sleep: all of those asked about."""
    gateway, _ = _manager(request)
    records = await _engines(gateway, engine)
    states = {record.info.engine_id: record.info.state for record in records}
    sleeping = bool(states) and all(state is EngineState.SLEEPING for state in states.values())
    return answer({"is_sleeping": sleeping, "engines": {name: state.value for name, state in states.items()}})


@router.post("/reload_weights", openapi_extra=takes(ReloadBody), response_model=None)
async def reload_weights(request: Request) -> Response:
    """Have an engine take other weights of the same shape: ``{"model": ..., "revision": ..., "engine": ...}``."""
    _manager(request)
    body = parse(ReloadBody, await json_body(request))
    return await _each(request, body.engine, lambda plane, one: plane.reload_engine(one, body.model, body.revision))


async def _each(
    request: Request, engine: str | None, change: Callable[[SleepManager, str], Awaitable[None]]
) -> Response:
    """Change engines side by side; answers once all are done, with the first thing that went wrong."""
    gateway, plane = _manager(request)
    names = [record.info.engine_id for record in await _engines(gateway, engine)]
    outcomes = await asyncio.gather(*(change(plane, name) for name in names), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return answer({"engines": names})


def _manager(request: Request) -> tuple[Gateway, SleepManager]:
    gateway = gateway_of(request)
    if not gateway.settings.allow_management:
        raise SageLLMError(
            ErrorCode.PERMISSION_DENIED,
            f"{request.url.path} is for operators, and off; set allow_management ({PREFIX}ALLOW_MANAGEMENT=1, or"
            " sagellm serve --allow-management)",
        )
    if not isinstance(gateway.plane, SleepManager):
        raise SageLLMError(ErrorCode.UNSUPPORTED, "this gateway's control plane cannot put engines to sleep")
    return gateway, gateway.plane


async def _engines(gateway: Gateway, engine: str | None) -> list[EngineRecord]:
    records = (await gateway.plane.status()).engines
    chosen = [record for record in records if engine in (None, record.info.engine_id)]
    if not chosen:
        known = ", ".join(record.info.engine_id for record in records) or "none"
        raise SageLLMError(ErrorCode.NOT_FOUND, f"no engine {engine!r} here; there are: {known}", "engine")
    return chosen
