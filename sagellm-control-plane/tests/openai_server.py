"""A small server that speaks OpenAI's API, for what asks such servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serving import LocalServer


class OpenAIServer:
    """Answers with ``words``; refuses with each of ``refusals`` first, and holds while ``gate`` is shut."""

    def __init__(self, **options: Any) -> None:
        self.words = ["one", " two", " three"]
        self.refusals: list[int] = []
        self.calls: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.breaks_off = False
        self.well = True
        vars(self).update(options)
        self._server = LocalServer(
            Starlette(
                routes=[
                    Route("/health", self._health),
                    Route("/v1/models", self._models),
                    Route("/v1/chat/completions", self._complete, methods=["POST"]),
                    Route("/v1/completions", self._complete, methods=["POST"]),
                    Route("/v1/embeddings", self._embed, methods=["POST"]),
                ]
            )
        )
        self.port = int(self._server.url.rsplit(":", 1)[1])

    async def __aenter__(self) -> OpenAIServer:
        await self._server.start()
        return self

    async def __aexit__(self, *failure: object) -> None:
        self.gate.set()
        await self._server.stop()

    async def _health(self, request: Request) -> Response:
        return Response(status_code=200 if self.well else 503)

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "m"}]})

    async def _taken(self, request: Request) -> Response | None:
        self.calls.append(await request.json())
        self.keys.append(request.headers.get("authorization"))
        if self.refusals:
            return JSONResponse({"error": {"message": "refused here"}}, self.refusals.pop(0))
        await self.gate.wait()
        return None

    async def _complete(self, request: Request) -> Response:
        refused = await self._taken(request)
        chat = "chat" in request.url.path
        return refused or StreamingResponse(self._chunks(chat), media_type="text/event-stream")

    async def _chunks(self, chat: bool) -> AsyncIterator[str]:
        for index, word in enumerate(self.words):
            last = index == len(self.words) - 1
            if last and self.breaks_off:
                return
            said: dict[str, Any] = {"delta": {"content": word}} if chat else {"text": word}
            choice = {"index": 0, **said, "finish_reason": "stop" if last else None}
            yield f"data: {json.dumps({'id': 'c', 'model': 'm', 'choices': [choice]})}\n\n"
        usage = {"prompt_tokens": 5, "completion_tokens": len(self.words), "total_tokens": 5 + len(self.words)}
        yield f"data: {json.dumps({'id': 'c', 'model': 'm', 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"

    async def _embed(self, request: Request) -> Response:
        refused = await self._taken(request)
        texts = self.calls[-1]["input"]
        data = [{"index": i, "embedding": [float(len(text)), 1.0]} for i, text in reversed(list(enumerate(texts)))]
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        return refused or JSONResponse({"object": "list", "model": "v", "data": data, "usage": usage})


@contextlib.contextmanager
def nobody() -> Any:
    """A port that nobody listens at."""
    server = LocalServer(None)
    server._listener.close()
    yield int(server.url.rsplit(":", 1)[1])
