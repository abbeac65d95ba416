"""``/v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``: adapters come and go, where the operator lets them.

An engine reads only within the folder that it was started with (``adapter_root``); without one it refuses.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from sagellm_gateway.gateway import gateway_of
from sagellm_gateway.openai.adapters import ADAPTER_NAMES, LoadAdapterBody, UnloadAdapterBody
from sagellm_gateway.openai.body import parse
from sagellm_protocol import AdapterHost, ErrorCode, SageLLMError

from .base import json_body, takes, worded

router = APIRouter()


@router.post("/v1/load_lora_adapter", openapi_extra=takes(LoadAdapterBody), response_model=None)
async def load_adapter(request: Request) -> Response:
    """Serve a LoRA adapter under a name of its own."""
    body = parse(LoadAdapterBody, await json_body(request))
    with worded(ADAPTER_NAMES):
        await _host(request).load_adapter(body.adapter())
    return PlainTextResponse(f"Success: LoRA adapter {body.lora_name!r} added successfully.")


@router.post("/v1/unload_lora_adapter", openapi_extra=takes(UnloadAdapterBody), response_model=None)
async def unload_adapter(request: Request) -> Response:
    """Serve it no more; requests that use it end as they would."""
    body = parse(UnloadAdapterBody, await json_body(request))
    with worded(ADAPTER_NAMES):
        await _host(request).unload_adapter(body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter {body.lora_name!r} removed successfully.")


def _host(request: Request) -> AdapterHost:
    plane = gateway_of(request).plane
    if not isinstance(plane, AdapterHost):
        raise SageLLMError(ErrorCode.UNSUPPORTED, "this control plane takes no adapters while it runs")
    return plane
