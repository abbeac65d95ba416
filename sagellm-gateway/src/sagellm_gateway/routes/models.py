"""``/v1/models``: what can be asked for by name."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from sagellm_gateway.gateway import gateway_of
from sagellm_protocol import ErrorCode, ModelInfo, SageLLMError

from .base import answer

router = APIRouter()


@router.get("/v1/models", response_model=None)
async def list_models(request: Request) -> Response:
    """List the models, ready or not."""
    models = await gateway_of(request).plane.models()
    return answer({"object": "list", "data": [_shape(model) for model in models]})


@router.get("/v1/models/{model:path}", response_model=None)
async def get_model(request: Request, model: str) -> Response:
    """Show one model."""
    models = await gateway_of(request).plane.models()
    for known in models:
        if known.name == model:
            return answer(_shape(known))
    served = ", ".join(known.name for known in models) or "none"
    raise SageLLMError(ErrorCode.MODEL_NOT_FOUND, f"no model is named {model!r}; models: {served}", "model")


def _shape(model: ModelInfo) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_s,
        "owned_by": "sagellm",
        # The model that a LoRA adapter was trained on.
        "parent": model.parent,
        "max_model_len": model.max_model_len,
        "ready": model.ready > 0,
        "engines": model.engines,
        "features": sorted(model.features),
        # Says that its answers are made up.
        "mock": model.mock,
    }
