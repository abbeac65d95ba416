"""Requests of several adapters and of the model itself, run together, answer as each alone, and as peft's merges do."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from core_harness import Harness, assert_all_free
from lora import greedy, save_adapter
from sagellm_core.adapters.base import AdapterRef
from sagellm_core.core.adapter_places import AdapterPlaces
from sagellm_core.engine import create
from sagellm_core.executor.backends import open_backend
from sagellm_core.executor.inline import InlineExecutor
from sagellm_core.llm import LLM
from sagellm_core.loading import open_checkpoint
from sagellm_protocol import (
    AdapterSpec,
    DeltaEvent,
    EngineSpec,
    ErrorCode,
    ErrorEvent,
    Request,
    SageLLMError,
    SamplingParams,
)
from sagellm_protocol.responses import collect
from tiny_llm import write_tiny

ANSWER = 10
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.mark.parametrize("places", [1, 4])
def test_adapters_and_the_model_in_one_batch_answer_as_each_alone(places: int, tmp_path: Path) -> None:
    reference = tiny.make("llama")
    merged: list[Any] = [
        save_adapter(reference, tmp_path / f"adapter{index}", seed=index, r=rank)
        for index, rank in enumerate((2, 8, 5))
    ]
    ops = open_backend("cpu", dtype="float32", threads=1)
    checkpoint = open_checkpoint(tiny.save(reference, tmp_path / "base"))
    executor: Any = InlineExecutor(checkpoint, ops, dtype="float32", kv_cache_dtype="float32")
    store = executor.adapters(64)
    refs = []
    for index in range(3):
        path = str(tmp_path / f"adapter{index}")
        refs.append(AdapterRef(store.check(path).result(), path))
    harness = Harness(
        executor, num_blocks=40, max_num_batched_tokens=16, max_model_len=64, adapters=AdapterPlaces(store, places)
    )
    deck = random.Random(7)
    asked = [(index % 4, [deck.randrange(tiny.VOCAB) for _ in range(5 + 3 * index)]) for index in range(8)]
    for ticket, (which, prompt) in enumerate(asked):
        harness.add(ticket, prompt, ANSWER, temperature=0, adapter=refs[which] if which < 3 else None)
    while harness.core.in_flight:
        if not harness.core.has_work:
            wait_for_reading(store)
        harness.settle()
        harness.step()
    for ticket, (which, prompt) in enumerate(asked):
        model = merged[which] if which < 3 else reference
        assert harness.tokens[ticket, 0] == greedy(model, prompt, ANSWER), (ticket, which)
    assert harness.core.stats().adapters_in_memory == min(places, 3)
    assert_all_free(harness.core)
    harness.core.stop()


def wait_for_reading(store: Any) -> None:
    """Until what is being read is there: readings are done one after another."""
    store.check("").exception(timeout=60)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that speaks ASCII in ``base``, and two adapters of it in ``adapters``."""
    import transformers

    folder = tmp_path_factory.mktemp("lora")
    write_tiny(folder / "base")
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    for seed, name in enumerate(("one", "two")):
        save_adapter(reference, folder / "adapters" / name, seed=seed, r=3)
    return folder


def spec(folders: Path, **fields: Any) -> EngineSpec:
    settings = {"core": "inline", "dtype": "float32", "device": "cpu", "max_model_len": 64, "threads": 1, **fields}
    return EngineSpec(model=str(folders / "base"), served_names=("m",), **settings)


def ask(request_id: str, **fields: Any) -> Request:
    return Request(**{"request_id": request_id, "model": "m", "prompt": "Hello", "sampling": GREEDY, **fields})


async def text(engine: Any, request: Request) -> str:
    return (await collect(engine.generate(request), request.model)).output_text


@pytest.fixture
async def engine(folders: Path) -> AsyncIterator[Any]:
    made = create(
        spec(
            folders,
            adapters={"one": str(folders / "adapters" / "one")},
            adapter_root=str(folders / "adapters"),
            max_adapters=1,
            block_size=4,
        )
    )
    await made.start()
    yield made
    await made.stop()


async def test_an_adapter_is_asked_for_as_a_model_or_beside_it(engine: Any) -> None:
    as_model = await text(engine, ask("a", model="one"))
    beside = await text(engine, ask("b", adapter="one"))
    plain = await text(engine, ask("c"))
    assert as_model == beside != plain
    assert engine.info.served_names == ("m",)
    assert engine.info.names == ("m", "one")
    assert "adapter" in engine.info.capabilities.features


async def test_adapters_come_and_go_while_requests_run(engine: Any) -> None:
    plain = await text(engine, ask("before"))
    await engine.load_adapter(AdapterSpec(name="two", path="two"))
    assert engine.info.names == ("m", "one", "two")
    answers = await asyncio.gather(
        *(text(engine, ask(f"r{index}", model=("m", "one", "two")[index % 3])) for index in range(9))
    )
    assert answers[:3] * 3 == answers
    assert len(set(answers[:3])) == 3
    assert answers[0] == plain
    stats = await engine.stats()
    assert (stats.adapters, stats.adapters_in_memory) == (2, 1)
    stream = engine.generate(ask("last", model="two"))
    events = [await anext(stream), await anext(stream)]
    await engine.unload_adapter("two")
    events += [event async for event in stream]
    assert "".join(event.text for event in events if isinstance(event, DeltaEvent)) == answers[2]
    error = await refused(engine, ask("gone", model="two"))
    assert error.code is ErrorCode.MODEL_NOT_FOUND
    assert "this engine serves m, one" in error.message


async def refused(engine: Any, request: Request) -> Any:
    [event] = [event async for event in engine.generate(request)]
    assert isinstance(event, ErrorEvent)
    return event.error


async def test_what_cannot_be_loaded_is_refused(engine: Any, folders: Path) -> None:
    for adapter, code in [
        (AdapterSpec(name="one", path="two"), ErrorCode.CONFLICT),
        (AdapterSpec(name="m", path="two"), ErrorCode.CONFLICT),
        (AdapterSpec(name="x", path=str(folders / "base")), ErrorCode.PERMISSION_DENIED),
        (AdapterSpec(name="x", path="../base"), ErrorCode.PERMISSION_DENIED),
        (AdapterSpec(name="x", path="none"), ErrorCode.MODEL_NOT_FOUND),
        (AdapterSpec(name="x", path="two", base="other"), ErrorCode.MODEL_NOT_FOUND),
    ]:
        with pytest.raises(SageLLMError) as caught:
            await engine.load_adapter(adapter)
        assert caught.value.code is code
    with pytest.raises(SageLLMError, match="no adapter 'x' is loaded; there are: one"):
        await engine.unload_adapter("x")


async def test_a_link_out_of_the_allowed_folder_leads_nowhere(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to(folders / "adapters" / "one")
    made = create(spec(folders, adapter_root=str(tmp_path / "inside")))
    await made.start()
    try:
        with pytest.raises(SageLLMError, match="not within the folder") as caught:
            await made.load_adapter(AdapterSpec(name="x", path="link"))
        assert caught.value.code is ErrorCode.PERMISSION_DENIED
    finally:
        await made.stop()


async def test_an_adapter_is_replaced_where_that_is_asked_for(engine: Any) -> None:
    before = await text(engine, ask("a", model="one"))
    await engine.load_adapter(AdapterSpec(name="one", path="two", replace=True))
    after = await text(engine, ask("b", model="one"))
    assert before != after
    await engine.load_adapter(AdapterSpec(name="again", path="one"))
    assert await text(engine, ask("c", model="again")) == before


@pytest.mark.parametrize("level", [1, 2])
async def test_adapters_are_there_again_after_sleep(engine: Any, level: int) -> None:
    before = await text(engine, ask("a", model="one"))
    await engine.sleep(level)
    with pytest.raises(SageLLMError, match="SLEEPING"):
        await engine.load_adapter(AdapterSpec(name="two", path="two"))
    await engine.wake()
    assert await text(engine, ask("b", model="one")) == before


async def test_adapters_go_with_the_weights_that_are_taken_in_place(engine: Any, folders: Path) -> None:
    before = await text(engine, ask("a", model="one"))
    await engine.reload(str(folders / "base"))
    assert await text(engine, ask("b", model="one")) == before


async def test_prompts_of_adapters_are_hashed_by_what_is_in_them(engine: Any) -> None:
    await engine.load_adapter(AdapterSpec(name="alias", path="one"))
    await engine.load_adapter(AdapterSpec(name="two", path="two"))
    hashes = {}
    for name in ("m", "one", "alias", "two"):
        prompt = await engine.renderer.render(ask("r", model=name, prompt="a longer prompt"))
        hashes[name] = prompt.block_hashes
    assert hashes["one"] == hashes["alias"]
    assert len(set(hashes.values())) == 3


async def test_an_adapter_that_vanished_fails_its_requests_with_the_reason(folders: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for file in (folders / "adapters" / name).glob("adapter*"):
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    made = create(spec(folders, adapters={name: str(tmp_path / name) for name in ("one", "two")}, max_adapters=1))
    await made.start()
    try:
        await text(made, ask("a", model="one"))
        (tmp_path / "two" / "adapter_config.json").unlink()
        gone, plain, one = await asyncio.gather(
            collect(made.generate(ask("b", model="two")), "two"),
            text(made, ask("c")),
            text(made, ask("d", model="one")),
            return_exceptions=True,
        )
        assert isinstance(gone, SageLLMError)
        assert (gone.code, gone.param) == (ErrorCode.INVALID_REQUEST, "adapter")
        assert "has no adapter_config.json" in gone.message
        assert isinstance(plain, str)
        assert isinstance(one, str)
    finally:
        await made.stop()


async def test_an_adapter_that_came_later_and_vanished_does_not_keep_the_engine_from_starting_again(
    folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folders / "adapters" / "two", tmp_path / "two")
    made = create(
        spec(folders, adapters={"one": str(folders / "adapters" / "one")}, adapter_root=str(tmp_path), max_adapters=2)
    )
    await made.start()
    try:
        await made.load_adapter(AdapterSpec(name="two", path="two"))
        await made.stop()
        shutil.rmtree(tmp_path / "two")
        await made.start()
        assert [adapter.name for adapter in made.info.adapters or ()] == ["one"]
        assert "adapter 'two' is not served any more" in caplog.text
        assert await text(made, ask("a", model="one"))
    finally:
        await made.stop()


async def test_an_engine_does_not_start_with_an_adapter_that_does_not_fit(folders: Path) -> None:
    made = create(spec(folders, adapters={"bad": str(folders / "base")}))
    with pytest.raises(SageLLMError, match=r"adapter 'bad': .* holds no adapter"):
        await made.start()
    await made.stop()


async def test_adapters_are_refused_where_numbers_must_not_depend_on_neighbours(folders: Path) -> None:
    made = create(spec(folders, adapter_root=str(folders), dtype="bfloat16", options={"deterministic": True}))
    with pytest.raises(SageLLMError, match="deterministic cannot be kept"):
        await made.start()
    await made.stop()


async def test_without_adapters_they_are_not_offered(folders: Path) -> None:
    made = create(spec(folders))
    await made.start()
    try:
        assert made.info.adapters is None
        assert (await refused(made, ask("a", adapter="one"))).code is ErrorCode.UNSUPPORTED
        with pytest.raises(SageLLMError, match="--adapter-root"):
            await made.load_adapter(AdapterSpec(name="one", path="one"))
    finally:
        await made.stop()


def test_they_work_offline_and_across_processes(folders: Path) -> None:
    fields: dict[str, Any] = {"dtype": "float32", "max_model_len": 64, "threads": 1}
    with LLM(str(folders / "base"), core="process", adapter_root=str(folders), **fields) as llm:
        llm.load_adapter("one", "adapters/one")
        plain = llm.generate("Hello", GREEDY)
        adapted = llm.generate("Hello", GREEDY, adapter="one")
        assert plain[0].output_text != adapted[0].output_text
        llm.unload_adapter("one")
        with pytest.raises(SageLLMError, match="no adapter 'one'"):
            llm.generate("Hello", GREEDY, adapter="one")


def test_beams_and_several_answers_go_through_the_adapter(folders: Path) -> None:
    fields: dict[str, Any] = {"dtype": "float32", "max_model_len": 64, "threads": 1}
    one = {"one": str(folders / "adapters" / "one")}
    with LLM(str(folders / "base"), adapters=one, **fields) as llm:
        alone = llm.generate("Hello", GREEDY, adapter="one")[0]
        many = llm.generate("Hello", GREEDY.model_copy(update={"n": 3}), adapter="one")[0]
        assert {output.text for output in many.outputs} == {alone.output_text}
        beams = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, beam_width=1)
        assert llm.generate("Hello", beams, adapter="one")[0].output_text == alone.output_text
