"""``/v1/embeddings``."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from sagellm_gateway.gateway import gateway_of, trace_of
from sagellm_gateway.openai.body import parse
from sagellm_gateway.openai.embeddings import NAMES, EmbeddingBody, embeddings_answer
from sagellm_gateway.openai.head import mint
from sagellm_protocol.features import EMBED
from sagellm_protocol.tracing import traced

from .base import attended, json_body, takes, worded

router = APIRouter()


@router.post("/v1/embeddings", openapi_extra=takes(EmbeddingBody), response_model=None)
async def embeddings(request: Request) -> Response:
    """Make one vector of each input."""
    gateway = gateway_of(request)
    body = parse(EmbeddingBody, await json_body(request))
    model = await gateway.served(body.model, EMBED)
    wanted = body.request(model, mint("embd"), trace_of(request), gateway.settings.max_embedding_inputs)
    with worded(NAMES):
        return await attended(
            gateway,
            request,
            gateway.plane.embed(traced(wanted)),
            lambda response: embeddings_answer(response, body.encoding_format),
        )
