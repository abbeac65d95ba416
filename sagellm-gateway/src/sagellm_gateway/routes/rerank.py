"""``/v1/rerank`` and ``/v1/score``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from sagellm_gateway.gateway import gateway_of, trace_of
from sagellm_gateway.openai.body import parse
from sagellm_gateway.openai.head import mint
from sagellm_gateway.openai.rerank import (
    RERANK_NAMES,
    SCORE_NAMES,
    RerankBody,
    ScoreBody,
    rerank_answer,
    score_answer,
)
from sagellm_protocol import ScoreRequest, ScoreResponse
from sagellm_protocol.features import SCORE
from sagellm_protocol.tracing import traced

from .base import attended, json_body, takes, worded

router = APIRouter()
AnyScoreBody = TypeVar("AnyScoreBody", RerankBody, ScoreBody)


async def _scored(
    request: Request,
    kind: type[AnyScoreBody],
    prefix: str,
    names: Mapping[str, str],
    say: Callable[[ScoreResponse, AnyScoreBody, ScoreRequest], dict[str, Any]],
) -> Response:
    gateway = gateway_of(request)
    body = parse(kind, await json_body(request))
    model = await gateway.served(body.model, SCORE)
    wanted = body.request(model, mint(prefix), trace_of(request), gateway.settings.max_embedding_inputs)
    with worded(names):
        return await attended(
            gateway, request, gateway.plane.score(traced(wanted)), lambda response: say(response, body, wanted)
        )


@router.post("/v1/rerank", openapi_extra=takes(RerankBody), response_model=None)
@router.post("/v2/rerank", openapi_extra=takes(RerankBody), response_model=None)
async def rerank(request: Request) -> Response:
    """Put documents in order of how well they answer a query."""
    return await _scored(request, RerankBody, "rerank", RERANK_NAMES, rerank_answer)


@router.post("/v1/score", openapi_extra=takes(ScoreBody), response_model=None)
async def score(request: Request) -> Response:
    """Say how well each text goes with another."""
    return await _scored(request, ScoreBody, "score", SCORE_NAMES, score_answer)
