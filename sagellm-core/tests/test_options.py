"""Every field of an engine's spec is honoured, or refused by its name."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import tiny
from fake_model import TEMPLATE, write_tokenizer
from sagellm_core.engine import create
from sagellm_core.front.engine import FrontEngine
from sagellm_protocol import EngineInfo, EngineSpec, EngineStats, ErrorCode, Request, Response, SageLLMError, collect

REFUSED: list[tuple[dict[str, Any], ErrorCode, str]] = [
    ({"tensor_parallel": 2}, ErrorCode.UNSUPPORTED, "tensor_parallel=2"),
    ({"pipeline_parallel": 2}, ErrorCode.UNSUPPORTED, "pipeline_parallel=2"),
    ({"data_parallel": 2}, ErrorCode.UNSUPPORTED, "data_parallel=2"),
    ({"options": {"eagerness": 1}}, ErrorCode.INVALID_REQUEST, "eagerness"),
    ({"options": {"deterministic": "yes"}}, ErrorCode.INVALID_REQUEST, "deterministic is 'yes'; give true or false"),
    ({"options": {"step_log": 5}}, ErrorCode.INVALID_REQUEST, "step_log is 5"),
    ({"options": {"step_log": "./nowhere/steps"}}, ErrorCode.INVALID_REQUEST, "nowhere/steps"),
    ({"quantization": "int3"}, ErrorCode.UNSUPPORTED, "'int3' is not offered by backend 'cpu'"),
    ({"dtype": "float3"}, ErrorCode.UNSUPPORTED, "float3"),
    ({"kv_cache_dtype": "float3"}, ErrorCode.UNSUPPORTED, "float3"),
    ({"device": "abacus"}, ErrorCode.NOT_INSTALLED, "abacus"),
    ({"device": "cpu:7"}, ErrorCode.UNSUPPORTED, "cpu:7"),
    ({"tokenizer": "./nowhere"}, ErrorCode.MODEL_NOT_FOUND, "nowhere"),
    ({"tool_parser": "telepathy"}, ErrorCode.INVALID_REQUEST, "there are deepseek, deepseek_v31, glm, granite"),
    ({"reasoning_parser": "telepathy"}, ErrorCode.INVALID_REQUEST, "there are granite, harmony, mistral, seed_oss"),
    ({"chat_template": "./nowhere.jinja"}, ErrorCode.INVALID_REQUEST, "nowhere.jinja"),
    ({"revision": "v2"}, ErrorCode.INVALID_REQUEST, "revision"),
    ({"load_format": "gguf"}, ErrorCode.MODEL_NOT_FOUND, "gguf"),
    ({"max_model_len": 10**6}, ErrorCode.INVALID_REQUEST, "max_model_len=1000000"),
    ({"kv_cache_memory_bytes": 1}, ErrorCode.INVALID_REQUEST, "kv_cache_memory_bytes"),
    ({"max_num_seqs": 10**9}, ErrorCode.INVALID_REQUEST, "max_num_seqs"),
    ({"max_num_seqs": 8, "max_num_batched_tokens": 4}, ErrorCode.INVALID_REQUEST, "max_num_batched_tokens=4"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.save(tiny.make("llama"), tmp_path_factory.mktemp("model"))
    return write_tokenizer(folder)


def spec(model: Path, **fields: Any) -> EngineSpec:
    return EngineSpec.model_validate(
        {"model": str(model), "core": "inline", "dtype": "float32", "threads": 1, "max_num_seqs": 4, **fields}
    )


def run(asked: EngineSpec, *requests: dict[str, Any]) -> tuple[EngineInfo, EngineStats, list[Response]]:
    """An engine's life: what it says of itself, and its answers, one after another."""

    async def live() -> tuple[EngineInfo, EngineStats, list[Response]]:
        engine: FrontEngine = create(asked)
        await engine.start()
        try:
            name, answers = asked.names[0], []
            for number, fields in enumerate(requests):
                prompt = {} if "messages" in fields else {"prompt": "the cat sat on the mat again"}
                sampling = {"max_tokens": 6, "ignore_eos": True, **fields.pop("sampling", {})}
                request = Request.model_validate(
                    {"request_id": str(number), "model": name, "sampling": sampling, **prompt, **fields}
                )
                answers.append(await collect(engine.generate(request), name))
            return engine.info, await engine.stats(), answers
        finally:
            await engine.stop()

    return asyncio.run(live())


@pytest.mark.parametrize(("fields", "code", "words"), REFUSED, ids=[words for _, _, words in REFUSED])
def test_what_cannot_be_honoured_is_refused_by_name(
    model: Path, fields: dict[str, Any], code: ErrorCode, words: str
) -> None:
    with pytest.raises(SageLLMError) as refusal:
        run(spec(model, **fields))
    assert refusal.value.code is code, refusal.value.message
    assert words in refusal.value.message


def test_limits_are_as_told(model: Path) -> None:
    limits = {"max_model_len": 40, "max_num_seqs": 3, "max_num_batched_tokens": 7, "block_size": 4}
    info, stats, _ = run(spec(model, **limits, kv_cache_memory_bytes=100_000), {})
    assert {name: getattr(info.capabilities, name) for name in limits} == limits
    assert stats.kv_bytes is not None
    assert 90_000 < stats.kv_bytes <= 100_000
    assert stats.steps is not None
    assert stats.steps >= 4 + 5  # 28 tokens of prompt, 7 a step, and what follows the first of six


@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_blocks_may_have_any_size(model: Path, block_size: int) -> None:
    greedy = {"sampling": {"temperature": 0}}
    _, _, [usual] = run(spec(model), dict(greedy))
    _, _, [answer] = run(spec(model, block_size=block_size), dict(greedy))
    assert answer.output_tokens == usual.output_tokens


def test_types_are_as_told(model: Path) -> None:
    wide, _, _ = run(spec(model, dtype="float32", kv_cache_dtype="float32", block_size=16, max_model_len=32))
    assert wide.capabilities.dtype == "float32"
    assert wide.device is not None
    assert wide.device.kind == "cpu"


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_an_engine_says_what_its_weights_are_quantised_to(model: Path, quantization: str) -> None:
    info, _, [answer] = run(spec(model, quantization=quantization), {})
    assert info.capabilities.quantization == quantization
    assert len(answer.output_tokens) == 6


def test_a_model_answers_to_the_names_it_is_served_under(model: Path) -> None:
    info, _, _ = run(spec(model, served_names=("cat", "tac")), {})
    assert info.served_names == ("cat", "tac")
    with pytest.raises(SageLLMError, match="this engine serves cat, tac"):
        run(spec(model, served_names=("cat", "tac")), {"model": str(model)})


def test_without_a_prefix_cache_nothing_is_found(model: Path) -> None:
    for caching, found in ((True, 16), (False, 0)):
        _, _, answers = run(spec(model, prefix_caching=caching), {}, {})
        assert [answer.usage.cached_tokens for answer in answers] == [0, found]


def test_an_engines_seed_repeats_its_answers_in_order_of_arrival(model: Path) -> None:
    first, second = (run(spec(model, seed=3), {}, {})[2] for _ in range(2))
    assert [answer.output_tokens for answer in first] == [answer.output_tokens for answer in second]
    assert first[0].output_tokens != first[1].output_tokens


def test_dummy_weights_need_no_file(model: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    _, _, [answer] = run(spec(tmp_path, load_format="dummy"), {})
    assert len(answer.output_tokens) == 6


def test_a_tokenizer_and_a_template_may_come_from_elsewhere(model: Path, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    (model / "tokenizer.json").rename(tokenizer)
    template = tmp_path / "chat.jinja"
    template.write_text(TEMPLATE)
    try:
        asked = spec(model, tokenizer=str(tmp_path), chat_template=str(template))
        _, _, [answer] = run(asked, {"messages": [{"role": "user", "content": "hi"}]})
    finally:
        tokenizer.rename(model / "tokenizer.json")
    assert answer.usage.prompt_tokens == len("user: hi\n")


def test_no_field_of_a_spec_is_left_out_here() -> None:
    refused = {name for fields, _, _ in REFUSED for name in fields}
    honoured = {"engine", "model", "core", "threads", "served_names", "block_size", "prefix_caching", "seed"}
    honoured.add("trust_request_chat_template")
    # Asked after, and refused, in tests of their own.
    honoured |= {"kv_offload_memory_bytes", "kv_offload_dir", "kv_offload_disk_bytes", "speculative"}
    honoured |= {"adapters", "adapter_root", "max_adapters", "max_adapter_rank"}  # in tests/adapters
    assert refused | honoured == set(EngineSpec.model_fields)
