"""``/v1/rerank`` and ``/v1/score``."""

from __future__ import annotations

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
from sagellm_protocol.features import SCORE

from .base import attended, json_body, takes, worded

router = APIRouter()


@router.post("/v1/rerank", openapi_extra=takes(RerankBody), response_model=None)
@router.post("/v2/rerank", openapi_extra=takes(RerankBody), response_model=None)
async def rerank(request: Request) -> Response:
    """Put documents in order of how well they answer a query."""
    gateway = gateway_of(request)
    body = parse(RerankBody, await json_body(request))
    model = await gateway.served(body.model, SCORE)
    request_id = mint("rerank")
    wanted = body.request(model, request_id, trace_of(request), gateway.settings.max_embedding_inputs)
    with worded(RERANK_NAMES):
        return await attended(
            gateway,
            request,
            gateway.plane.score(wanted),
            lambda response: rerank_answer(response, body, request_id, wanted.documents),
        )


@router.post("/v1/score", openapi_extra=takes(ScoreBody), response_model=None)
async def score(request: Request) -> Response:
    """Say how well each text goes with another."""
    gateway = gateway_of(request)
    body = parse(ScoreBody, await json_body(request))
    model = await gateway.served(body.model, SCORE)
    request_id = mint("score")
    wanted = body.request(model, request_id, trace_of(request), gateway.settings.max_embedding_inputs)
    with worded(SCORE_NAMES):
        return await attended(
            gateway, request, gateway.plane.score(wanted), lambda response: score_answer(response, request_id)
        )
