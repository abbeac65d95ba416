"""``/v1/completions``, the older API: prompts in place of messages, and several at once."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from sagellm_gateway.gateway import gateway_of, trace_of
from sagellm_gateway.openai.answers import completion_answer
from sagellm_gateway.openai.body import parse
from sagellm_gateway.openai.chunks import DONE, CompletionChunks
from sagellm_gateway.openai.completions import CompletionBody
from sagellm_gateway.openai.head import Head, mint
from sagellm_gateway.openai.shapes import total
from sagellm_gateway.stream import EventWriter
from sagellm_protocol.features import GENERATE

from .base import attended, event_stream, json_body, takes, worded

router = APIRouter()


@router.post("/v1/completions", openapi_extra=takes(CompletionBody), response_model=None)
async def completions(request: Request) -> Response:
    """Continue one prompt or several."""
    gateway = gateway_of(request)
    body = parse(CompletionBody, await json_body(request))
    model = await gateway.served(body.model, GENERATE)
    head = Head(mint("cmpl"), model)
    wanted = body.requests(model, head.id, trace_of(request), gateway.settings.max_prompts)
    look = body.look

    async def produce(writer: EventWriter) -> None:
        choices = wanted[0].sampling.n
        chunks = [
            CompletionChunks(head, choices, first=number * choices, include_usage=body.include_usage, look=look)
            for number in range(len(wanted))
        ]
        with worded(body.names):
            usages = await gateway.relay.stream(wanted, chunks, writer)
        await writer.write((chunks[0].usage(total(usages)) if body.include_usage else b"") + DONE)

    if body.stream:
        return event_stream(gateway, produce)
    with worded(body.names):
        return await attended(
            gateway,
            request,
            gateway.relay.respond(wanted),
            lambda responses: completion_answer(head, responses, look),
        )
