"""What the front makes of a core's answers: text, stops, figures, endings."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from fake_executor import alone
from fake_model import CHARACTERS, build_fake, fake_engine, fake_spec, write_tokenizer
from sagellm_core.front.engine import FrontEngine
from sagellm_core.store import CalledOffError
from sagellm_core.transport.base import CoreClient
from sagellm_core.transport.inline import InlineClient
from sagellm_protocol import (
    SLO,
    BlocksStored,
    DeltaEvent,
    EndEvent,
    EngineSpec,
    EngineState,
    ErrorCode,
    ErrorEvent,
    FinishReason,
    Request,
    Response,
    SageLLMError,
    collect,
)
from sagellm_protocol.interfaces import KVEventSource

PROMPT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("fake"))


@pytest_asyncio.fixture
async def engine(folder: Path) -> AsyncIterator[FrontEngine]:
    engine = fake_engine(folder, fake_spec("inline", max_num_seqs=8, max_num_batched_tokens=32))
    await engine.start()
    yield engine
    stats = await engine.stats()
    assert (stats.running, stats.waiting, stats.used_blocks) == (0, 0, 0)
    await engine.stop()


def request(number: int = 0, prompt: str = PROMPT, **fields: Any) -> Request:
    sampling = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, **fields.pop("sampling", {})}
    return Request(request_id=f"r{number}", model="fake", prompt=prompt, sampling=sampling, **fields)


def expected(prompt: str = PROMPT, count: int = 12) -> list[int]:
    return alone([CHARACTERS.index(character) + 1 for character in prompt], count)


def text(tokens: list[int]) -> str:
    return "".join("" if token == 0 else CHARACTERS[token - 1] for token in tokens)


async def answer(engine: FrontEngine, asked: Request) -> Response:
    return await collect(engine.generate(asked), asked.model)


async def test_a_caller_that_leaves_while_its_prompt_is_read_counts_as_cancelled(
    engine: FrontEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = asyncio.Event()

    async def for_ever(*_: Any) -> Any:
        reading.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(type(engine.renderer), "render", for_ever)
    leaving = asyncio.create_task(answer(engine, request()))
    await reading.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert (await engine.stats()).cancelled == 1


async def test_text_and_tokens_are_the_models(engine: FrontEngine) -> None:
    response = await answer(engine, request())
    assert list(response.output_tokens) == expected()
    assert response.output_text == text(expected())
    assert response.finish_reason is FinishReason.LENGTH


async def test_figures_are_measured_and_agree_with_one_another(engine: FrontEngine) -> None:
    await answer(engine, request(0))
    response = await answer(engine, request(1))
    metrics, stamps, usage = response.metrics, response.timestamps, response.usage
    assert stamps.queued is not None
    assert stamps.scheduled is not None
    assert stamps.first_token is not None
    assert stamps.finished is not None
    assert stamps.queued <= stamps.scheduled <= stamps.first_token <= stamps.finished
    assert metrics.ttft_ms == pytest.approx((stamps.first_token - stamps.queued) * 1e3)
    assert metrics.queue_ms == pytest.approx((stamps.scheduled - stamps.queued) * 1e3)
    assert metrics.e2e_ms == pytest.approx((stamps.finished - stamps.queued) * 1e3)
    assert metrics.throughput_tps == pytest.approx(12 / (stamps.finished - stamps.queued))
    assert metrics.ttft_ms < metrics.e2e_ms
    assert metrics.tpot_ms is not None
    assert metrics.tbt_ms is not None
    assert 0 < metrics.tpot_ms <= metrics.tbt_ms
    assert usage.prompt_tokens == len(PROMPT)
    assert usage.completion_tokens == 12
    assert usage.cached_tokens == 16
    assert metrics.prefix_hit_rate == 16 / 22
    assert metrics.kv_used_tokens == 33
    assert metrics.evict_count == 0
    assert metrics.spec_accept_rate is None


async def test_tokens_after_a_stop_string_are_neither_told_nor_counted(engine: FrontEngine) -> None:
    whole = text(expected(count=60))
    stop = whole[20:23]
    response = await answer(engine, request(sampling={"max_tokens": 60, "stop": ("no such", stop)}))
    at = whole.index(stop)
    assert response.output_text == whole[:at]
    assert response.outputs[0].stop_reason == stop
    assert response.usage.completion_tokens == len(response.output_tokens)
    assert list(response.output_tokens) == expected(count=60)[: response.usage.completion_tokens]


async def test_a_stop_string_in_one_choice_leaves_the_others_alone(engine: FrontEngine) -> None:
    whole = text(expected(count=30))
    response = await answer(engine, request(sampling={"max_tokens": 30, "n": 3, "stop": (whole[10:13],)}))
    assert {output.text for output in response.outputs} == {whole[: whole.index(whole[10:13])]}


async def test_stop_strings_are_not_looked_for_before_min_tokens(engine: FrontEngine) -> None:
    whole = text(expected(count=30))
    sampling = {"max_tokens": 30, "stop": (whole[4:6],), "min_tokens": 20}
    response = await answer(engine, request(sampling=sampling))
    assert len(response.output_tokens) >= 20
    assert response.output_text.startswith(whole[:6])


async def test_prompt_logprobs_come_with_the_start_or_are_refused_by_name(engine: FrontEngine) -> None:
    response = await answer(engine, request(sampling={"prompt_logprobs": 0}))
    assert response.prompt_logprobs == (None,)  # the fake reports none
    assert list(response.output_tokens) == expected()


async def test_one_bad_request_harms_no_other(engine: FrontEngine) -> None:
    good = asyncio.ensure_future(answer(engine, request(0, sampling={"max_tokens": 100})))
    stream = engine.generate(request(1, sampling={"max_tokens": 100}))
    await anext(stream)
    with pytest.raises(SageLLMError, match="cannot compute token 96") as failure:
        await answer(engine, request(2, prompt="a ~ that the fake cannot compute"))
    assert failure.value.code is ErrorCode.ENGINE_FAILED
    await stream.aclose()
    # Those in the very step that failed fail with it; whoever asks next is served.
    await asyncio.wait([good])
    assert list((await answer(engine, request(3))).output_tokens) == expected()


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"model": "other"}, ErrorCode.MODEL_NOT_FOUND, "serves fake"),
        ({"sampling": {"max_tokens": 1020}}, ErrorCode.CONTEXT_LENGTH_EXCEEDED, "1024"),
        ({"sampling": {"stop_token_ids": (97,)}}, ErrorCode.INVALID_REQUEST, "97"),
        ({"adapter": "a"}, ErrorCode.UNSUPPORTED, "adapter"),
        ({"requires": ("levitation",)}, ErrorCode.UNSUPPORTED, "levitation"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_name(
    engine: FrontEngine, fields: dict[str, Any], code: ErrorCode, words: str
) -> None:
    before = (await engine.stats()).refused
    asked = request().model_copy(update=fields) if "model" in fields else request(**fields)
    events = [event async for event in engine.generate(asked)]
    assert len(events) == 1
    assert isinstance(events[0], ErrorEvent)
    assert events[0].error.code is code
    assert words in events[0].error.message
    assert (await engine.stats()).refused == before + 1


async def test_a_prompt_rendered_elsewhere_is_checked_all_the_same(engine: FrontEngine) -> None:
    prompt = await engine.renderer.render(request())
    beyond = prompt.model_copy(update={"token_ids": (5, 9999)})
    [event] = [event async for event in engine.generate(request(), beyond)]
    assert isinstance(event, ErrorEvent)
    assert "9999" in event.error.message


async def test_a_deadline_ends_a_request_that_waits(engine: FrontEngine) -> None:
    busy = [engine.generate(request(number, sampling={"max_tokens": 900})) for number in range(8)]
    for stream in busy:
        await anext(stream)
    events = [event async for event in engine.generate(request(9, slo=SLO(deadline_ms=50)))]
    assert isinstance(events[-1], ErrorEvent)
    assert events[-1].error.code is ErrorCode.DEADLINE_EXCEEDED
    assert "50 ms" in events[-1].error.message
    assert (await engine.stats()).expired == 1
    for stream in busy:
        await stream.aclose()


async def test_an_abort_frees_blocks_by_the_time_statistics_answer(engine: FrontEngine) -> None:
    stream = engine.generate(request(sampling={"max_tokens": 900}))
    events = [await anext(stream), await anext(stream)]
    assert isinstance(events[1], DeltaEvent)
    assert (await engine.stats()).used_blocks
    await engine.abort("r0")
    assert (await engine.stats()).used_blocks == 0
    assert isinstance([event async for event in stream][-1], ErrorEvent)


async def test_unseeded_requests_differ_and_a_seeded_engine_repeats_itself(folder: Path) -> None:
    seeds = []
    for _ in range(2):
        engine = fake_engine(folder, fake_spec("inline", seed=7))
        seeds.append([engine._random.getrandbits(64) for _ in range(3)])
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 3


async def test_a_reader_that_lingers_finds_everything_in_order(engine: FrontEngine) -> None:
    stream = engine.generate(request())
    first = await anext(stream)
    await asyncio.wait_for(_completed(engine), 30)
    events = [first, *[event async for event in stream]]
    assert isinstance(events[-1], EndEvent)
    tokens = [token for event in events if isinstance(event, DeltaEvent) for token in event.token_ids]
    assert tokens == expected()


async def test_a_start_that_fails_says_why_and_may_be_tried_again(folder: Path, tmp_path: Path) -> None:
    engine = fake_engine(tmp_path, fake_spec("inline"))  # there is no tokenizer here
    with pytest.raises(SageLLMError) as failure:
        await engine.start()
    assert failure.value.code is ErrorCode.MODEL_NOT_FOUND
    assert engine.info.state is EngineState.ERROR
    assert engine.info.error == failure.value.message
    write_tokenizer(tmp_path)
    await engine.start()
    assert list((await answer(engine, request())).output_tokens) == expected()
    await engine.stop()


async def test_a_tokenizer_that_is_not_there_is_told_from_a_model_that_is_not(folder: Path) -> None:
    def locate(model: str, revision: str | None) -> Path:
        if model != "fake":
            raise SageLLMError(ErrorCode.MODEL_NOT_FOUND, f"there is no {model!r}", "model")
        return folder

    engine = FrontEngine(
        fake_spec("inline", tokenizer="elsewhere"), locate, lambda spec, path: InlineClient(spec, path, build_fake)
    )
    with pytest.raises(SageLLMError, match="tokenizer: there is no 'elsewhere'") as failure:
        await engine.start()
    assert failure.value.param == "tokenizer"
    await engine.stop()


async def test_a_start_that_is_cancelled_calls_off_the_search_for_its_model(folder: Path) -> None:
    searching, called_off = threading.Event(), threading.Event()

    def locate(model: str, revision: str | None) -> Path:
        searching.set()
        called_off.wait(30)
        raise CalledOffError

    engine = FrontEngine(fake_spec("inline"), locate, _no_core, called_off=called_off)
    starting = asyncio.create_task(engine.start())
    await asyncio.to_thread(searching.wait, 30)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert called_off.is_set()
    assert engine.info.state is EngineState.STOPPED


def _no_core(spec: EngineSpec, path: Path) -> CoreClient:
    raise AssertionError("no model was found, and yet a core is wanted")


async def test_limits_that_contradict_each_other_are_refused_at_the_start(folder: Path) -> None:
    engine = fake_engine(folder, fake_spec("inline", max_num_seqs=64, max_num_batched_tokens=32))
    with pytest.raises(SageLLMError, match="max_num_batched_tokens=32 is less than max_num_seqs=64"):
        await engine.start()


async def _completed(engine: FrontEngine) -> None:
    while (await engine.stats()).completed == 0:  # each answer takes a turn of the core
        pass


@pytest.mark.parametrize("core", ["inline", "process"])
async def test_changes_of_the_prefix_cache_are_told_by_the_contracts_hashes(folder: Path, core: str) -> None:
    engine = fake_engine(folder, fake_spec(core, block_size=4))
    await engine.start()
    assert isinstance(engine, KVEventSource)
    feed = engine.kv_events()
    prompt = await engine.renderer.render(request())
    await answer(engine, request())
    batch = await asyncio.wait_for(anext(feed), 30)
    assert batch.sequence == 0
    assert batch.engine_id == engine.info.engine_id
    [event] = batch.events
    assert isinstance(event, BlocksStored)
    assert event.block_hashes == prompt.block_hashes
    assert event.parent is None
    assert event.block_size == 4
    await engine.stop()
    later = [batch.sequence async for batch in feed]
    assert later == list(range(1, len(later) + 1))
    assert later
