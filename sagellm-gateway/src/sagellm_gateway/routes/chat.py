"""``/v1/chat/completions``."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from sagellm_gateway.gateway import gateway_of, trace_of
from sagellm_gateway.openai.answers import chat_answer
from sagellm_gateway.openai.body import parse
from sagellm_gateway.openai.chat import ChatBody
from sagellm_gateway.openai.chunks import DONE, ChatChunks
from sagellm_gateway.openai.head import Head, mint
from sagellm_gateway.stream import EventWriter
from sagellm_protocol.features import GENERATE

from .base import attended, event_stream, json_body, takes, worded

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=takes(ChatBody), response_model=None)
async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    gateway = gateway_of(request)
    body = parse(ChatBody, await json_body(request))
    model = await gateway.served(body.model, GENERATE)
    head = Head(mint("chatcmpl"), model)
    wanted, look = body.request(model, head.id, trace_of(request)), body.look

    async def produce(writer: EventWriter) -> None:
        chunks = ChatChunks(head, wanted.sampling.n, include_usage=body.include_usage, look=look)
        with worded(body.names):
            [usage] = await gateway.relay.stream([wanted], [chunks], writer)
        await writer.write((chunks.usage(usage) if body.include_usage else b"") + DONE)

    if body.stream:
        return event_stream(gateway, produce)
    with worded(body.names):
        return await attended(
            gateway, request, gateway.relay.respond([wanted]), lambda responses: chat_answer(head, responses[0], look)
        )
