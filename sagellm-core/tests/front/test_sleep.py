"""An engine that sleeps gives its memory up, says so, and comes back; one that is given other weights takes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from fake_executor import alone
from fake_model import CHARACTERS, fake_engine, fake_spec, write_tokenizer
from sagellm_core import create
from sagellm_core.front.engine import FrontEngine
from sagellm_core.tokenizer import load_tokenizer
from sagellm_core.transport.messages import CheckAdapter, Control, FrontMessage
from sagellm_protocol import (
    AdapterSpec,
    EngineSpec,
    EngineState,
    ErrorCode,
    ErrorEvent,
    Request,
    SageLLMError,
    SamplingParams,
    SleepControl,
    Speculation,
    collect,
)
from sagellm_protocol.blocks import BlocksCleared
from scripted_core import ScriptedCore

PATIENCE_S = 60.0
PROMPT = "hello there"
TOKENS = [CHARACTERS.index(character) + 1 for character in PROMPT]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("fake"))


@pytest_asyncio.fixture(params=["inline", "process"])
async def engine(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[FrontEngine]:
    engine = fake_engine(folder, fake_spec(request.param, block_size=4))
    await engine.start()
    yield engine
    await engine.stop()


def ask(number: int = 0, max_tokens: int = 10, model: str = "fake") -> Request:
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    return Request(request_id=f"r{number}", model=model, prompt=PROMPT, sampling=sampling)


async def answer(engine: FrontEngine, request: Request) -> Any:
    return await asyncio.wait_for(collect(engine.generate(request), request.model), PATIENCE_S)


async def refused(engine: FrontEngine, request: Request) -> ErrorEvent:
    [event] = [event async for event in engine.generate(request)]
    assert isinstance(event, ErrorEvent)
    return event


@pytest.mark.parametrize("level", [1, 2])
async def test_a_sleeping_engine_refuses_by_name_and_serves_once_it_is_woken(engine: FrontEngine, level: int) -> None:
    assert isinstance(engine, SleepControl)
    await answer(engine, ask(0))
    await engine.sleep(level)
    assert engine.info.state is EngineState.SLEEPING
    stats = await engine.stats()
    assert (stats.state, stats.cached_blocks) == (EngineState.SLEEPING, 0)
    assert stats.free_blocks == stats.total_blocks
    event = await refused(engine, ask(1))
    assert event.error.code is ErrorCode.UNAVAILABLE
    assert "/wake_up" in event.error.message
    await engine.sleep(level)  # again
    await engine.wake()
    await engine.wake()
    assert engine.info.state is EngineState.READY
    woken = await answer(engine, ask(2))
    assert list(woken.outputs[0].token_ids) == alone(TOKENS, 10)
    assert woken.usage.cached_tokens == 0


async def test_what_is_in_flight_finishes_before_it_sleeps(engine: FrontEngine) -> None:
    stream = engine.generate(ask(0, 60))
    await anext(stream)
    await anext(stream)
    going = asyncio.ensure_future(engine.sleep())
    await asyncio.sleep(0)
    assert engine.info.state is EngineState.SLEEPING
    assert (await refused(engine, ask(1))).error.code is ErrorCode.UNAVAILABLE
    assert not going.done()
    last = [event async for event in stream][-1]
    assert last.type == "end"
    await asyncio.wait_for(going, PATIENCE_S)
    assert engine.info.state is EngineState.SLEEPING


async def test_what_is_in_flight_may_be_aborted_instead(engine: FrontEngine) -> None:
    stream = engine.generate(ask(0, 900))
    await anext(stream)
    await asyncio.wait_for(engine.sleep(2, "abort"), PATIENCE_S)
    last = [event async for event in stream][-1]
    assert isinstance(last, ErrorEvent)
    assert last.error.code is ErrorCode.CANCELLED


async def test_a_caller_that_leaves_does_not_leave_it_half_asleep(engine: FrontEngine) -> None:
    stream = engine.generate(ask(0, 40))
    await anext(stream)
    going = asyncio.ensure_future(engine.sleep())
    await asyncio.sleep(0)
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going
    await stream.aclose()
    await asyncio.wait_for(engine.wake(), PATIENCE_S)
    assert engine.info.state is EngineState.READY
    assert list((await answer(engine, ask(1))).outputs[0].token_ids) == alone(TOKENS, 10)


@pytest.mark.parametrize("asleep", [False, True])
async def test_reloaded_weights_are_another_model_under_the_same_name(
    engine: FrontEngine, folder: Path, tmp_path: Path, asleep: bool
) -> None:
    events = engine.kv_events()
    before = await engine.renderer.render(ask(0))
    await answer(engine, ask(0))
    other = tmp_path / "other"
    other.mkdir()
    engine._locate = lambda model, revision: Path(model)
    if asleep:
        await engine.sleep(2)
    await engine.reload(str(other))
    assert engine.info.state is EngineState.READY
    assert (engine.info.model, engine.info.model_key, engine.info.served_names) == (str(other), "other", ("fake",))
    after = await engine.renderer.render(ask(1))
    assert after.token_ids == before.token_ids
    assert not set(after.block_hashes) & set(before.block_hashes)
    told = await answer(engine, ask(2))
    assert told.usage.cached_tokens == 0
    while True:
        batch = await asyncio.wait_for(anext(events), PATIENCE_S)
        if any(isinstance(event, BlocksCleared) for event in batch.events):
            break


@pytest.mark.parametrize("asleep", [False, True])
async def test_weights_of_another_shape_are_refused_and_the_old_ones_serve_on(
    engine: FrontEngine, tmp_path: Path, asleep: bool
) -> None:
    engine._locate = lambda model, revision: Path(model)
    if asleep:
        await engine.sleep(2)
    with pytest.raises(SageLLMError) as refusal:
        await engine.reload(str(tmp_path / "other-shape"))
    assert (refusal.value.code, refusal.value.param) == (ErrorCode.INVALID_REQUEST, "model")
    assert engine.info.state is EngineState.READY
    assert engine.info.model_key == "fake"
    assert list((await answer(engine, ask(1))).outputs[0].token_ids) == alone(TOKENS, 10)


@pytest.mark.parametrize(
    ("change", "param"),
    [(lambda engine: engine.sleep(3), "level"), (lambda engine: engine.sleep(1, "later"), "mode")],
)
async def test_what_there_is_not_is_refused(
    engine: FrontEngine, change: Callable[[FrontEngine], Any], param: str
) -> None:
    with pytest.raises(SageLLMError) as refusal:
        await change(engine)
    assert (refusal.value.code, refusal.value.param) == (ErrorCode.INVALID_REQUEST, param)
    assert engine.info.state is EngineState.READY


async def test_an_engine_that_was_stopped_neither_sleeps_nor_wakes(engine: FrontEngine) -> None:
    await engine.stop()
    for change in (engine.sleep(), engine.wake(), engine.reload("other")):
        with pytest.raises(SageLLMError) as refusal:
            await change
        assert refusal.value.code is ErrorCode.CONFLICT


class Silent(ScriptedCore):
    """A core that is asked and does not answer."""

    def __init__(self, folder: Path) -> None:
        super().__init__(load_tokenizer(folder), "")
        self.asked: asyncio.Queue[FrontMessage] = asyncio.Queue()

    def send(self, message: FrontMessage) -> None:
        self.asked.put_nowait(message)


async def test_whoever_waits_for_a_core_that_is_stopped_is_told(folder: Path) -> None:
    silent = Silent(folder)
    spec = fake_spec("inline", adapter_root=str(folder))
    engine = FrontEngine(spec, lambda model, revision: folder, lambda spec, path: silent)
    await engine.start()
    loading = asyncio.ensure_future(engine.load_adapter(AdapterSpec(name="style", path=str(folder))))
    assert isinstance(await asyncio.wait_for(silent.asked.get(), PATIENCE_S), CheckAdapter)
    going = asyncio.ensure_future(engine.sleep())
    assert isinstance(await asyncio.wait_for(silent.asked.get(), PATIENCE_S), Control)
    await engine.stop()
    for waiting in (loading, going):
        with pytest.raises(SageLLMError, match="ended"):
            await asyncio.wait_for(waiting, PATIENCE_S)
    assert engine.info.state is EngineState.STOPPED


def large(folder: Path, layers: int = 6) -> Path:
    """A model of some 100 MB, by its configuration alone."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=0,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    return write_tokenizer(folder)


@pytest.mark.parametrize("drafting", [False, True])
async def test_memory_is_given_back_to_the_system_and_the_same_answers_come_after(
    tmp_path: Path, drafting: bool
) -> None:
    # What drafts is larger than what it drafts for, lest the one's memory hide the other's.
    model, drafter = str(large(tmp_path / "model", 1 if drafting else 6)), str(large(tmp_path / "drafter"))
    weights = 4 * 6 * (4 * 512 * 512 + 3 * 512 * 2048)  # bytes in float32
    how = Speculation(method="draft", model=drafter, adaptive=False) if drafting else None
    spec = EngineSpec(model=model, dtype="float32", load_format="dummy", max_num_seqs=8, seed=1, speculative=how)
    engine = create(spec)
    await engine.start()
    process = psutil.Process(engine._link._client.pid)  # type: ignore[union-attr]

    def resident() -> int:
        return int(process.memory_info().rss)

    before = (await answer(engine, ask(0, model=model))).outputs[0].token_ids
    awake = resident()
    await engine.sleep(2)
    assert awake - resident() > 0.8 * weights
    await engine.wake()
    assert (await answer(engine, ask(1, model=model))).outputs[0].token_ids == before
    assert resident() < awake + 0.5 * weights, "weights are there once"
    assert bool((await engine.stats()).drafted_tokens) is drafting
    await engine.stop()


async def test_other_weights_of_a_checkpoint_are_taken_in_place(tmp_path: Path) -> None:
    from tiny_llm import write_tiny

    first, second, deeper = (tmp_path / name for name in ("first", "second", "deeper"))
    write_tiny(first)
    write_tiny(second)
    _perturb(second)
    write_tiny(deeper, hidden_size=64)
    served = EngineSpec(model=str(first), dtype="float32", served_names=("m",))
    engine = create(served)
    await engine.start()
    before = (await answer(engine, ask(0, model="m"))).outputs[0].token_ids
    await engine.reload(str(second))
    after = (await answer(engine, ask(1, model="m"))).outputs[0].token_ids
    await engine.sleep(2)
    with pytest.raises(SageLLMError, match="hidden_size 64 instead of 32"):
        await engine.reload(str(deeper))
    assert (await answer(engine, ask(2, model="m"))).outputs[0].token_ids == after
    await engine.stop()
    fresh = create(served.model_copy(update={"model": str(second)}))
    await fresh.start()
    assert (await answer(fresh, ask(3, model="m"))).outputs[0].token_ids == after != before
    await fresh.stop()


def _perturb(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    [path] = folder.glob("*.safetensors")
    save_file({name: tensor.flip(0).contiguous() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
