"""Servers of others behind the plane: small ones over real HTTP, in vLLM's, SGLang's, llama.cpp's, Ollama's shapes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from conftest import until
from sagellm_control_plane.foreign import ForeignEngine
from sagellm_control_plane.service import ControlPlaneService
from sagellm_protocol import (
    DeltaEvent,
    EmbedRequest,
    EndEvent,
    EngineState,
    ErrorCode,
    ErrorEvent,
    FinishReason,
    Message,
    Request,
    SageLLMError,
    SamplingParams,
    StreamEvent,
    StructuredOutput,
    ToolDefinition,
    collect,
    features,
)
from serving import LocalServer

PATIENCE_S = 30.0
METRICS = {
    "vllm": 'vllm:num_requests_running{model_name="m"} 3.0\nvllm:num_requests_waiting{model_name="m"} 2.0\n',
    "sglang": 'sglang:num_running_reqs{tp_rank="0"} 3.0\nsglang:num_queue_reqs{tp_rank="0"} 2.0\n',
    "llamacpp": "# HELP llamacpp:requests_processing n\nllamacpp:requests_processing 3\nllamacpp:requests_deferred 2\n",
}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


SAID = (
    delta(role="assistant", content=""),
    delta(reasoning_content="hm"),
    delta(content="Hel"),
    delta(content="lo"),
    delta("stop"),
    {"choices": [], "usage": USAGE},
)


class Theirs:
    """A server of a kind, which says what it is told to and remembers what it was asked."""

    def __init__(self, owner: str = "vllm", *pieces: Any, metrics: str | None = None, embeds: bool = False) -> None:
        self.owner = owner
        self.pieces = pieces or SAID
        self.metrics = metrics
        self.embeds = embeds
        self.asked: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        self.refusal: Response | None = None
        self.app = Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/v1/chat/completions", self.generate, methods=["POST"]),
                Route("/v1/completions", self.generate, methods=["POST"]),
                Route("/v1/embeddings", self.embed, methods=["POST"]),
                Route("/metrics", self.tell),
                Route("/slots", self.slots),
                Route("/props", self.props),
            ]
        )

    async def models(self, http: HttpRequest) -> Response:
        if http.headers.get("authorization") == "Bearer wrong":
            return JSONResponse({"error": {"message": "bad key"}}, 401)
        extra = {"max_model_len": 4096} if self.owner in ("vllm", "sglang") else {}
        data = [{"id": name, "object": "model", "owned_by": self.owner, **extra} for name in ("m", "n")]
        return JSONResponse({"object": "list", "data": data})

    async def generate(self, http: HttpRequest) -> Response:
        self.asked.append(await http.json())
        if self.refusal is not None:
            return self.refusal

        async def stream() -> AsyncIterator[bytes]:
            try:
                for piece in self.pieces:
                    if piece is None:
                        await asyncio.sleep(3600)
                    elif piece == "cut":
                        return
                    else:
                        yield b"data: " + json.dumps(piece).encode() + b"\n\n"
                yield b"data: [DONE]\n\n"
            finally:
                self.left.set()

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def embed(self, http: HttpRequest) -> Response:
        if not self.embeds:
            return JSONResponse({"error": {"message": "no"}}, 400)
        inputs = (await http.json())["input"]
        data = [{"index": number, "embedding": [1.0, 0.0]} for number in range(len(inputs))]
        return JSONResponse({"data": data, "usage": {"prompt_tokens": 2}})

    async def tell(self, http: HttpRequest) -> Response:
        return PlainTextResponse(self.metrics) if self.metrics is not None else PlainTextResponse("no", 404)

    async def slots(self, http: HttpRequest) -> Response:
        if self.owner != "llamacpp":
            return PlainTextResponse("no", 404)
        return JSONResponse([{"id": 0, "is_processing": True}, {"id": 1, "is_processing": False}])

    async def props(self, http: HttpRequest) -> Response:
        return JSONResponse({"total_slots": 2, "default_generation_settings": {"n_ctx": 2048}})


@contextlib.asynccontextmanager
async def running(theirs: Theirs, **options: Any) -> AsyncIterator[ForeignEngine]:
    server = LocalServer(theirs.app)
    await server.start()
    engine = ForeignEngine(server.url + "/v1", **options)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.stop()
        await server.stop()


def chat(**fields: Any) -> Request:
    return Request(**{"request_id": "r", "model": "m", "messages": (Message(role="user", content="Hi"),), **fields})


async def events_of(engine: ForeignEngine, request: Request) -> list[StreamEvent]:
    async def read() -> list[StreamEvent]:
        return [event async for event in engine.generate(request)]

    return await asyncio.wait_for(read(), PATIENCE_S)


async def error_of(engine: ForeignEngine, request: Request) -> SageLLMError:
    last = (await events_of(engine, request))[-1]
    assert isinstance(last, ErrorEvent)
    return SageLLMError.from_info(last.error)


async def test_an_answer_comes_with_its_reasoning_its_end_and_the_tokens_counted_there() -> None:
    theirs = Theirs()
    async with running(theirs, api_key="k") as engine:
        response = await collect(
            engine.generate(chat(sampling=SamplingParams(max_tokens=4, top_k=3), add_special_tokens=False)), "m"
        )
        assert (response.output_text, response.outputs[0].reasoning) == ("Hello", "hm")
        assert response.finish_reason is FinishReason.STOP
        assert (response.usage.prompt_tokens, response.usage.cached_tokens) == (9, 8)
        assert (await engine.stats()).completed == 1
    asked = theirs.asked[0]
    assert asked["messages"] == [{"role": "user", "content": "Hi"}]
    assert (asked["max_tokens"], asked["top_k"], asked["temperature"]) == (4, 3, 1.0)


async def test_a_prompt_is_completed() -> None:
    pieces = ({"choices": [{"index": 0, "text": "on", "finish_reason": "length"}]},)
    theirs = Theirs("library", *pieces)
    async with running(theirs) as engine:
        response = await collect(engine.generate(Request(request_id="r", model="n", prompt="Go")), "n")
        assert (response.output_text, response.finish_reason) == ("on", FinishReason.LENGTH)
        assert response.usage.prompt_tokens == 1, "estimated where the server does not say"
    assert (theirs.asked[0]["prompt"], theirs.asked[0]["model"]) == ("Go", "n")


async def test_tool_calls_come_in_pieces() -> None:
    def call(**function: str) -> dict[str, Any]:
        return {"index": 0, "function": function}

    theirs = Theirs(
        "vllm",
        delta(tool_calls=[{**call(name="f", arguments=""), "id": "c"}]),
        delta(tool_calls=[call(arguments='{"a":')]),
        delta(tool_calls=[call(arguments="1}")]),
        delta("tool_calls"),
    )
    async with running(theirs) as engine:
        tools = (ToolDefinition(name="f", parameters={"type": "object"}),)
        response = await collect(engine.generate(chat(tools=tools, tool_choice="required")), "m")
    made = response.outputs[0].tool_calls[0]
    assert (made.id, made.name, made.arguments) == ("c", "f", '{"a":1}')
    assert response.finish_reason is FinishReason.TOOL_CALLS
    assert theirs.asked[0]["tools"] == [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    ]
    assert theirs.asked[0]["tool_choice"] == "required"


@pytest.mark.parametrize(
    ("owner", "fields", "param"),
    [
        ("vllm", {"sampling": SamplingParams(logprobs=2)}, "sampling.logprobs"),
        ("library", {"sampling": SamplingParams(top_k=3)}, "sampling.top_k"),
        ("llamacpp", {"sampling": SamplingParams(n=2)}, "sampling.n"),
        ("someone", {"structured": StructuredOutput(regex="a+")}, "structured"),
        ("library", {"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ("library", {"messages": None, "prompt_token_ids": (1, 2)}, "prompt_token_ids"),
        ("vllm", {"cache_salt": "s"}, "cache_salt"),
        ("vllm", {"messages": None, "prompt": "a", "add_special_tokens": False}, "add_special_tokens"),
        ("vllm", {"add_generation_prompt": False}, "add_generation_prompt"),
    ],
)
async def test_what_a_server_does_not_take_is_refused_by_name_and_never_dropped(
    owner: str, fields: dict[str, Any], param: str
) -> None:
    theirs = Theirs(owner)
    async with running(theirs) as engine:
        error = await error_of(engine, chat(**fields))
    assert (error.code, error.param) == (ErrorCode.UNSUPPORTED, param)
    assert theirs.asked == []


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        (400, "This model's maximum context length is 16 tokens", ErrorCode.CONTEXT_LENGTH_EXCEEDED),
        (400, "bad", ErrorCode.INVALID_REQUEST),
        (401, "key", ErrorCode.UNAUTHENTICATED),
        (404, "model", ErrorCode.MODEL_NOT_FOUND),
        (429, "slow down", ErrorCode.RATE_LIMITED),
        (500, "boom", ErrorCode.ENGINE_FAILED),
        (503, "loading", ErrorCode.UNAVAILABLE),
    ],
)
async def test_refusals_keep_their_meaning_and_words(status: int, message: str, code: ErrorCode) -> None:
    theirs = Theirs()
    theirs.refusal = JSONResponse({"error": {"message": message}}, status, headers={"retry-after": "7"})
    async with running(theirs) as engine:
        error = await error_of(engine, chat())
    assert error.code is code
    assert message in error.message
    assert error.retry_after_s == 7


@pytest.mark.parametrize("end", [("cut",), ({"error": {"message": "boom", "code": 500}},), ("nonsense",)])
async def test_a_stream_that_breaks_off_is_a_failure_and_never_a_finish(end: tuple[Any, ...]) -> None:
    async with running(Theirs("vllm", delta(content="Hel"), *end)) as engine:
        events = await events_of(engine, chat())
    assert isinstance(events[-1], ErrorEvent)
    assert events[-1].error.code is ErrorCode.ENGINE_FAILED


@pytest.mark.parametrize("way", ["close", "abort", "stop"])
async def test_leaving_a_request_closes_its_connection(way: str) -> None:
    theirs = Theirs("vllm", delta(content="Hel"), None)
    async with running(theirs) as engine:
        stream = engine.generate(chat())
        while not isinstance(await asyncio.wait_for(anext(stream), PATIENCE_S), DeltaEvent):
            pass
        if way == "close":
            await stream.aclose()
        else:
            await (engine.abort("r") if way == "abort" else engine.stop())
            last = await asyncio.wait_for(anext(stream), PATIENCE_S)
            assert isinstance(last, ErrorEvent)
            assert last.error.code is ErrorCode.CANCELLED
            await stream.aclose()
        await asyncio.wait_for(theirs.left.wait(), PATIENCE_S)
        assert not await engine.abort("r")


@pytest.mark.parametrize("owner", ["vllm", "sglang", "llamacpp"])
async def test_load_is_read_where_the_server_tells_it(owner: str) -> None:
    async with running(Theirs(owner, metrics=METRICS[owner])) as engine:
        stats = await engine.stats()
        assert (stats.state, stats.running, stats.waiting) == (EngineState.READY, 3, 2)


async def test_slots_and_context_of_llama_cpp_are_read_without_its_metrics() -> None:
    async with running(Theirs("llamacpp")) as engine:
        assert (await engine.stats()).running == 1
        known = engine.info.capabilities
        assert (engine.info.engine, known.max_model_len, known.max_num_seqs) == ("llama.cpp", 2048, 2)


async def test_embeddings_are_offered_where_the_server_makes_them() -> None:
    request = EmbedRequest(request_id="e", model="m", inputs=("a", "b"))
    async with running(Theirs(embeds=True)) as engine:
        response = await engine.embed(request)
        assert [vector.values for vector in response.vectors] == [(1.0, 0.0)] * 2
        assert response.usage.prompt_tokens == 2
    async with running(Theirs()) as engine:
        assert features.EMBED not in engine.info.capabilities.features
        with pytest.raises(SageLLMError) as refusal:
            await engine.embed(request)
        assert refusal.value.code is ErrorCode.UNSUPPORTED


async def test_a_wrong_key_and_what_is_no_server_are_told() -> None:
    with pytest.raises(SageLLMError) as refusal:
        async with running(Theirs(), api_key="wrong"):
            pass
    assert refusal.value.code is ErrorCode.UNAUTHENTICATED
    engine = ForeignEngine("http://127.0.0.1:9")
    with pytest.raises(SageLLMError) as refusal:
        await engine.start()
    assert (refusal.value.code, engine.info.state) == (ErrorCode.UNAVAILABLE, EngineState.ERROR)
    await engine.stop()


async def test_common_beginnings_are_estimated_as_common_blocks() -> None:
    async with running(Theirs()) as engine:
        short = await engine.renderer.render(chat(messages=(Message(role="user", content="a b " * 100),)))
        longer = await engine.renderer.render(chat(messages=(Message(role="user", content="a b " * 200),)))
    assert len(longer.token_ids) > len(short.token_ids) > 50
    assert longer.block_hashes[: len(short.block_hashes)] == short.block_hashes


@pytest.mark.parametrize("scheme", ["", "openai+"])
async def test_a_plane_serves_through_one_told_or_found_out_and_notices_when_it_goes_and_comes(
    planes: Callable[..., ControlPlaneService], scheme: str
) -> None:
    theirs = Theirs("sglang", metrics=METRICS["sglang"])
    server = LocalServer(theirs.app)
    await server.start()
    plane = planes()
    await plane.start()
    record = await plane.attach_engine(scheme + server.url, "theirs")
    assert (record.info.engine, record.info.served_names) == ("sglang", ("m", "n"))
    events = [event async for event in plane.submit(chat(model="n"))]
    assert isinstance(events[-1], EndEvent)
    port = int(server.url.rsplit(":", 1)[1])
    await server.stop()
    await until(lambda: plane.fleet.member("theirs").state is EngineState.ERROR)
    again = LocalServer(theirs.app, port)
    await again.start()
    await until(lambda: plane.fleet.member("theirs").ready)
    await plane.stop_engine("theirs")
    await again.stop()
