"""``/health``: this process answers. ``/ready``: an engine whose heart beats takes requests. ``/version``: what runs.

None of them costs a token.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from sagellm_gateway.errors import RETRY_AFTER_S
from sagellm_gateway.gateway import gateway_of
from sagellm_protocol import PROTOCOL_VERSION, EngineRecord, EngineState, PlaneStatus

from .base import answer

router = APIRouter()


@router.head("/health", include_in_schema=False, response_model=None)
@router.get("/health", response_model=None)
async def health() -> Response:
    """Say that the gateway is alive, whatever its engines do."""
    return answer({"status": "ok"})


@router.head("/ready", include_in_schema=False, response_model=None)
@router.get("/ready", response_model=None)
async def ready(request: Request) -> Response:
    """Say whether requests can be served now, and if not, why."""
    gateway = gateway_of(request)
    status = await gateway.plane.status()
    reason = "draining" if gateway.lifecycle.draining else why_not(status, gateway.settings.max_heartbeat_age_s)
    engines = [_shape(record) for record in status.engines]
    if reason is None:
        return answer({"status": "ready", "engines": engines})
    return Response(
        json.dumps({"status": "not ready", "reason": reason, "engines": engines}),
        status_code=503,
        headers={"retry-after": str(int(RETRY_AFTER_S))},
        media_type="application/json",
    )


@router.get("/version", response_model=None)
async def versions() -> Response:
    """Say which gateway runs, and which wire version it speaks."""
    return answer({"version": version("isagellm-gateway"), "protocol": PROTOCOL_VERSION})


def why_not(status: PlaneStatus, max_age_s: float) -> str | None:
    """Why nothing can be served, if so.

    Args:
        status: The control plane now.
        max_age_s: Age of a heartbeat after which an engine no longer counts.
    """
    if not status.ready:
        return status.reason or "no engine is ready"
    taking = [record for record in status.engines if record.info.state is EngineState.READY]
    late = [record for record in taking if (_age(record) or 0.0) > max_age_s]
    if taking and len(late) == len(taking):
        ages = ", ".join(f"{record.info.engine_id} {_age(record):.0f} s ago" for record in late)
        return f"no engine's heart beats (last: {ages})"
    return None


def _age(record: EngineRecord) -> float | None:
    return record.stats.heartbeat_age_s if record.stats is not None else None


def _shape(record: EngineRecord) -> dict[str, Any]:
    return {
        "id": record.info.engine_id,
        "models": record.info.served_names,
        "state": record.info.state.value,
        "error": record.info.error,
        "heartbeat_age_s": _age(record),
    }
