"""``/metrics``, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from sagellm_gateway.gateway import gateway_of

router = APIRouter()


@router.get("/metrics", response_model=None)
async def metrics(request: Request) -> Response:
    """All series."""
    gateway = gateway_of(request)
    text = gateway.meters.exposition(await gateway.plane.status())
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})
