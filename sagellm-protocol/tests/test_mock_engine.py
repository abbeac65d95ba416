from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sagellm_protocol import (
    BlocksRemoved,
    BlocksStored,
    DeltaEvent,
    EmbedRequest,
    EngineSpec,
    EngineState,
    ErrorCode,
    ErrorEvent,
    FinishReason,
    KVEventSource,
    Request,
    Response,
    SageLLMError,
    collect,
)
from sagellm_protocol.testing import MockEngine, VirtualClock, check_stream, read_all

PROMPT = (1,) * 100


def mock(clock: VirtualClock | None = None, *, spec: dict[str, Any] | None = None, **options: Any) -> MockEngine:
    fields = {"engine": "mock", "model": "m", **(spec or {})}
    return MockEngine(EngineSpec(**fields, options=options), clock or VirtualClock())


@pytest.fixture
async def started() -> AsyncIterator[Any]:
    """Starts mock engines, and stops them at the end."""
    engines: list[MockEngine] = []

    async def start(*args: Any, **kwargs: Any) -> MockEngine:
        engine = mock(*args, **kwargs)
        engines.append(engine)
        await engine.start()
        return engine

    yield start
    for engine in engines:
        await engine.stop()


def request(name: str = "r", prompt: tuple[int, ...] = PROMPT, output: int = 10, **fields: Any) -> Request:
    sampling = {"max_tokens": output, "ignore_eos": True, **fields.pop("sampling", {})}
    return Request(request_id=name, model="m", prompt_token_ids=prompt, sampling=sampling, **fields)


async def answer(engine: MockEngine, asked: Request) -> Response:
    events = await read_all(engine.generate(asked))
    last = check_stream(events, asked)
    if isinstance(last, ErrorEvent):
        raise SageLLMError.from_info(last.error)
    return await collect(_again(events), "m")


async def _again(events: list[Any]) -> AsyncIterator[Any]:
    for event in events:
        yield event


# -- latency ----------------------------------------------------------------------------------------------------------


async def test_time_passes_as_the_rates_say(started) -> None:
    engine = await started(prefill_tokens_per_s=1000, itl_ms=20)
    metrics = (await answer(engine, request())).metrics
    assert metrics.ttft_ms == pytest.approx(100)
    assert metrics.tpot_ms == pytest.approx(20)
    assert metrics.tbt_ms == pytest.approx(20)
    assert metrics.e2e_ms == pytest.approx(100 + 9 * 20)
    assert metrics.throughput_tps == pytest.approx(10 / 0.28)


async def test_a_decode_rate_is_a_way_of_giving_the_latency(started) -> None:
    engine = await started(decode_tokens_per_s=50)
    assert (await answer(engine, request())).metrics.tpot_ms == pytest.approx(20)


async def test_latency_grows_with_the_batch(started) -> None:
    engine = await started(itl_ms=10, itl_ms_per_sequence=1)
    alone = await answer(engine, request())
    together = await asyncio.gather(*(answer(engine, request(f"r{i}")) for i in range(5)))
    assert alone.metrics.tpot_ms == pytest.approx(11)
    assert together[-1].metrics.tpot_ms == pytest.approx(15)


async def test_a_long_prompt_is_computed_in_chunks_beside_what_decodes(started) -> None:
    engine = await started(spec={"max_num_batched_tokens": 51, "max_num_seqs": 4}, prefill_tokens_per_s=1000, itl_ms=1)
    stream = engine.generate(request("short", (2,), 100))
    while not isinstance(await anext(stream), DeltaEvent):
        pass
    long = asyncio.create_task(answer(engine, request("long", PROMPT, 1)))
    await long
    # The short one went on meanwhile: at no time did it wait for more than one chunk.
    events = await read_all(stream)
    assert events[-1].metrics.tbt_ms == pytest.approx(51)
    assert long.result().metrics.ttft_ms == pytest.approx(102, abs=2)


async def test_what_exceeds_the_sequences_waits(started) -> None:
    engine = await started(spec={"max_num_seqs": 1}, itl_ms=10)
    first, second = await asyncio.gather(answer(engine, request("a")), answer(engine, request("b")))
    assert first.metrics.queue_ms == 0
    assert second.metrics.queue_ms == pytest.approx(90)


async def test_priority_goes_before_arrival(started) -> None:
    engine = await started(spec={"max_num_seqs": 1}, itl_ms=10)
    ended: list[str] = []

    async def run(name: str, priority: int) -> None:
        await answer(engine, request(name, priority=priority))
        ended.append(name)

    await asyncio.gather(run("patient", 1), run("usual", 0), run("urgent", -1))
    assert ended == ["urgent", "usual", "patient"]


async def test_starting_takes_its_time() -> None:
    clock = VirtualClock()
    engine = mock(clock, start_delay_s=30)
    await engine.start()
    assert clock.now() == 30
    await engine.stop()


async def test_by_default_it_answers_at_once(started) -> None:
    clock = VirtualClock()
    engine = await started(clock)
    await answer(engine, request(output=200))
    assert clock.now() == 0


# -- blocks -----------------------------------------------------------------------------------------------------------


async def test_a_prefix_is_computed_once(started) -> None:
    engine = await started(prefill_tokens_per_s=1000)
    first = await answer(engine, request("a", output=1))
    second = await answer(engine, request("b", output=1))
    assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, 96)
    assert second.metrics.prefix_hit_rate == pytest.approx(0.96)
    assert second.metrics.ttft_ms == pytest.approx(4)


async def test_output_is_found_again_as_part_of_the_next_turn(started) -> None:
    engine = await started()
    first = await answer(engine, request("a", output=60))
    turn = (*PROMPT, *first.output_tokens, 1, 2, 3)
    assert (await answer(engine, request("b", turn, 1))).usage.cached_tokens == 144


async def test_the_oldest_prefix_makes_room(started) -> None:
    engine = await started(total_blocks=16)
    prompts = {name: (number,) * 96 for number, name in enumerate("abc", 1)}
    await answer(engine, request("1", prompts["a"], 1))
    await answer(engine, request("2", prompts["b"], 1))
    await answer(engine, request("3", prompts["c"], 1))
    assert (await answer(engine, request("4", prompts["c"], 1))).usage.cached_tokens == 95
    assert (await answer(engine, request("5", prompts["a"], 1))).usage.cached_tokens < 95
    stats = await engine.stats()
    assert stats.evicted_blocks
    assert stats.free_blocks + stats.cached_blocks == 16


async def test_want_of_blocks_preempts_the_newest_and_all_finish(started) -> None:
    engine = await started(total_blocks=20, spec={"prefix_caching": False}, itl_ms=10)
    responses = await asyncio.gather(*(answer(engine, request(f"r{i}", (i,) * 64, 60)) for i in range(4)))
    assert [response.finish_reason for response in responses] == [FinishReason.LENGTH] * 4
    assert {response.usage.completion_tokens for response in responses} == {60}
    assert responses[0].metrics.evict_count == 0
    assert responses[-1].metrics.evict_count >= 1
    assert responses[-1].metrics.evict_ms > 0
    assert (await engine.stats()).preemptions >= 1


async def test_a_request_alone_that_outgrows_the_pool_is_cut(started) -> None:
    engine = await started(total_blocks=8)
    response = await answer(engine, request(output=1000))
    assert response.finish_reason is FinishReason.LENGTH
    assert response.usage.total_tokens == 128


async def test_choices_that_outgrow_the_pool_are_cut_and_end(started) -> None:
    engine = await started(total_blocks=9)
    response = await answer(engine, request(output=200, sampling={"n": 2}))
    assert [output.finish_reason for output in response.outputs] == [FinishReason.LENGTH] * 2
    assert (await engine.stats()).used_blocks == 0


async def test_a_prompt_larger_than_the_pool_is_refused_by_name(started) -> None:
    engine = await started(total_blocks=3)
    with pytest.raises(SageLLMError, match="100 tokens and needs 7 KV blocks of 16; this engine has 3") as refusal:
        await answer(engine, request())
    assert refusal.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED


async def test_it_tells_what_its_cache_holds(started) -> None:
    engine = await started(total_blocks=8)
    assert isinstance(engine, KVEventSource)
    changes = engine.kv_events()
    prompt = await engine.renderer.render(request())
    await answer(engine, request(output=1))
    batch = await anext(changes)
    stored = [event for event in batch.events if isinstance(event, BlocksStored)]
    assert tuple(block for event in stored for block in event.block_hashes) == prompt.block_hashes
    assert [event.parent for event in stored] == [None, *prompt.block_hashes[:-1]]
    await answer(engine, request("other", (9,) * 100, 1))
    following = await anext(changes)
    assert following.sequence == batch.sequence + 1
    assert any(isinstance(event, BlocksRemoved) for event in following.events)
    await engine.stop()
    assert [type(event).__name__ for batch in [batch async for batch in changes] for event in batch.events][-1] == (
        "BlocksCleared"
    )


# -- failures ---------------------------------------------------------------------------------------------------------


async def test_it_fails_a_request_when_told_to(started) -> None:
    engine = await started(fail_after_tokens=4)
    events = await read_all(engine.generate(request()))
    last = check_stream(events)
    assert isinstance(last, ErrorEvent)
    assert last.error.code is ErrorCode.ENGINE_FAILED
    assert last.usage is not None
    assert last.usage.completion_tokens == 4
    assert (await engine.stats()).failed == 1


async def test_it_refuses_when_told_to(started) -> None:
    engine = await started(refuse="queue_full", retry_after_s=7)
    with pytest.raises(SageLLMError) as refusal:
        await answer(engine, request())
    assert (refusal.value.code, refusal.value.retry_after_s) == (ErrorCode.QUEUE_FULL, 7)
    with pytest.raises(SageLLMError):
        await engine.embed(EmbedRequest(request_id="e", model="m", inputs=("x",)))


async def test_a_full_queue_refuses(started) -> None:
    engine = await started(spec={"max_num_seqs": 1}, max_waiting=1, itl_ms=10)
    outcomes = await asyncio.gather(*(answer(engine, request(f"r{i}")) for i in range(4)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, SageLLMError)]
    assert refused
    assert {error.code for error in refused} == {ErrorCode.QUEUE_FULL}
    assert (await engine.stats()).refused == len(refused)


async def test_it_dies_when_told_to(started) -> None:
    engine = await started(die_after_tokens=5, itl_ms=1)
    outcomes = await asyncio.gather(*(answer(engine, request(f"r{i}")) for i in range(3)), return_exceptions=True)
    assert {outcome.code for outcome in outcomes if isinstance(outcome, SageLLMError)} == {ErrorCode.ENGINE_FAILED}
    assert len(outcomes) == 3
    assert engine.info.state is EngineState.ERROR
    assert engine.info.error
    with pytest.raises(SageLLMError, match="told to die"):
        await answer(engine, request())
    await asyncio.wait_for(engine.drain(), 5)


async def test_a_hanging_engine_shows_it_by_its_heartbeat(started) -> None:
    clock = VirtualClock()
    engine = await started(clock, hang_after_tokens=3, itl_ms=10)
    stream = asyncio.create_task(answer(engine, request()))
    await clock.sleep(60)
    stats = await engine.stats()
    assert stats.heartbeat_age_s > 50
    assert not stream.done()
    engine.resume()
    assert (await stream).usage.completion_tokens == 10
    assert (await engine.stats()).heartbeat_age_s == 0


async def test_a_start_that_fails_says_why() -> None:
    engine = mock(fail_start="no model folder")
    with pytest.raises(SageLLMError, match="no model folder"):
        await engine.start()
    assert (engine.info.state, engine.info.error) == (EngineState.ERROR, "no model folder")
    await engine.stop()


async def test_stopping_while_it_starts_ends_the_start() -> None:
    clock = VirtualClock()
    engine = mock(clock, start_delay_s=10)
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0)
    await engine.stop()
    with pytest.raises(SageLLMError, match="stopped while it started"):
        await starting
    assert engine.info.state is EngineState.STOPPED


async def test_a_deadline_is_kept_in_the_middle_of_a_step(started) -> None:
    clock = VirtualClock()
    engine = await started(clock, prefill_tokens_per_s=1)
    with pytest.raises(SageLLMError) as expiry:
        await answer(engine, request(slo={"deadline_ms": 1500}))
    assert expiry.value.code is ErrorCode.DEADLINE_EXCEEDED
    assert clock.now() == pytest.approx(1.5)


# -- what it can be told ----------------------------------------------------------------------------------------------


def test_an_unknown_option_is_refused_with_those_there_are() -> None:
    with pytest.raises(SageLLMError) as refusal:
        mock(speed=3)
    assert refusal.value.param == "options.speed"
    assert "itl_ms" in refusal.value.message


@pytest.mark.parametrize(
    ("options", "param"),
    [({"itl_ms": -1}, "options.itl_ms"), ({"itl_ms": 1, "decode_tokens_per_s": 1}, "options")],
)
def test_a_senseless_option_is_refused(options: dict[str, Any], param: str) -> None:
    with pytest.raises(SageLLMError) as refusal:
        mock(**options)
    assert refusal.value.param == param


@pytest.mark.parametrize(
    "spec",
    [
        {"dtype": "float16"},
        {"device": "cuda"},
        {"quantization": "int8"},
        {"tensor_parallel": 2},
        {"tokenizer": "x"},
        {"kv_cache_memory_bytes": 1},
        {"load_format": "gguf"},
    ],
)
def test_what_a_mock_cannot_honour_is_refused_by_name(spec: dict[str, Any]) -> None:
    [name] = spec
    with pytest.raises(SageLLMError, match=name) as refusal:
        mock(spec=spec)
    assert (refusal.value.code, refusal.value.param) == (ErrorCode.UNSUPPORTED, name)


def test_more_sequences_than_tokens_of_a_step_are_refused() -> None:
    with pytest.raises(SageLLMError, match="raise max_num_batched_tokens"):
        mock(spec={"max_num_seqs": 10, "max_num_batched_tokens": 5})


async def test_it_says_that_it_is_a_mock(started) -> None:
    engine = await started()
    asked = Request(request_id="r", model="m", prompt="Are you real?")
    response = await answer(engine, asked)
    assert response.output_text == "mock answer to 13 tokens ending in: Are you real?"
    assert response.finish_reason is FinishReason.STOP
    assert engine.info.mock


async def test_it_says_what_it_is_told_to_say(started) -> None:
    engine = await started(text="mock né ", output_tokens=12)
    asked = Request(request_id="r", model="m", prompt="x", sampling={"max_tokens": 100})
    response = await answer(engine, asked)
    assert response.output_text == "mock né moc"
    assert response.usage.completion_tokens == 13


async def test_it_offers_no_more_than_it_is_told_to(started) -> None:
    engine = await started(features=["generate"])
    with pytest.raises(SageLLMError, match="'chat'"):
        await answer(engine, Request(request_id="r", model="m", messages=({"role": "user", "content": "x"},)))


async def test_special_tokens_are_shown_on_demand(started) -> None:
    engine = await started(text="hi")
    asked = Request(request_id="r", model="m", prompt="x", sampling={"skip_special_tokens": False})
    assert (await answer(engine, asked)).output_text == "hi</s>"


async def test_a_prompt_is_truncated_from_its_beginning(started) -> None:
    engine = await started()
    prompt = await engine.renderer.render(request(prompt=(1, 2, 3, 4), sampling={"truncate_prompt_tokens": 2}))
    assert prompt.token_ids == (3, 4)


async def test_embeddings_may_be_shortened_but_not_lengthened(started) -> None:
    engine = await started(embedding_dimensions=8)
    short = await engine.embed(EmbedRequest(request_id="e", model="m", inputs=("x",), dimensions=3))
    assert len(short.vectors[0].values) == 3
    with pytest.raises(SageLLMError, match="8 dimensions"):
        await engine.embed(EmbedRequest(request_id="e", model="m", inputs=("x",), dimensions=9))


async def test_an_input_too_long_to_embed_is_refused_or_cut(started) -> None:
    engine = await started(spec={"max_model_len": 4})
    with pytest.raises(SageLLMError, match="6 tokens, more than the model's context of 4"):
        await engine.embed(EmbedRequest(request_id="e", model="m", inputs=("abcdef",)))
    cut = await engine.embed(EmbedRequest(request_id="e", model="m", inputs=("abcdef", "abcd"), truncate=True))
    assert cut.vectors[0].values == cut.vectors[1].values
