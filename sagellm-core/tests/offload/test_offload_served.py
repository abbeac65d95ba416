"""Blocks kept elsewhere, through the engine's own seams and over real kernels: exact, and there after a kill."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from sagellm_core import LLM, create
from sagellm_protocol import EngineSpec, ErrorCode, Request, Response, SageLLMError, SamplingParams, collect
from sagellm_protocol.blocks import BlocksStored
from tiny_llm import write_tiny

PATIENCE_S = 60.0
PROMPT = "The quick brown fox jumps over the lazy dog, and then it does so once more, as foxes do."
BLOCK = 8
FULL = (len(PROMPT) - 1) // BLOCK * BLOCK
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"), hidden_size=64)


def told(response: Response) -> Any:
    [choice] = response.outputs
    return choice.token_ids, choice.logprobs


@pytest.mark.parametrize(("dtype", "kv_cache_dtype"), [("float32", "auto"), ("bfloat16", "auto"), ("bfloat16", "int8")])
def test_what_comes_back_from_disk_is_what_was_there(
    model: Path, tmp_path: Path, dtype: str, kv_cache_dtype: str
) -> None:
    options: dict[str, Any] = {"dtype": dtype, "kv_cache_dtype": kv_cache_dtype, "block_size": BLOCK}
    try:
        first = LLM(str(model), kv_offload_dir=str(tmp_path), **options)
    except SageLLMError as refusal:
        if refusal.code is ErrorCode.UNSUPPORTED:
            pytest.skip(f"not offered here: {refusal.message}")
        raise
    with first:
        first.generate(PROMPT, GREEDY)
        [again] = first.generate(PROMPT, GREEDY)
    with LLM(str(model), kv_offload_dir=str(tmp_path), **options) as second:
        [response] = second.generate(PROMPT, GREEDY)
        stats = second.stats()
    assert stats.disk_hit_tokens == stats.prefix_hit_tokens == FULL
    assert told(response) == told(again)
    assert response.usage is not None
    assert response.usage.cached_tokens == FULL
    # Of another type, it is another's.
    with LLM(
        str(model), **{**options, "kv_offload_dir": str(tmp_path), "kv_cache_dtype": "auto", "dtype": "float32"}
    ) as other:
        other.generate(PROMPT, GREEDY)
        assert (other.stats().disk_hit_tokens == FULL) is (dtype == "float32")


def test_tenants_of_different_salts_share_nothing_anywhere(model: Path, tmp_path: Path) -> None:
    def cached(llm: LLM, salt: str | None) -> int | None:
        [response] = llm.generate(PROMPT, GREEDY, cache_salt=salt)
        assert response.usage is not None
        return response.usage.cached_tokens

    options: dict[str, Any] = {"dtype": "float32", "block_size": BLOCK, "kv_offload_dir": str(tmp_path)}
    with LLM(str(model), **options) as llm:
        assert [cached(llm, salt) for salt in ("a", "b", None, "a")] == [0, 0, 0, FULL]
    with LLM(str(model), **options) as llm:
        assert [cached(llm, salt) for salt in ("c", "b")] == [0, FULL]


async def test_a_killed_engine_leaves_its_blocks_to_the_next(model: Path, tmp_path: Path) -> None:
    spec = EngineSpec(
        model=str(model), dtype="float32", block_size=BLOCK, kv_offload_dir=str(tmp_path), kv_offload_disk_bytes=1 << 20
    )
    request = Request(request_id="r", model=str(model), prompt=PROMPT, sampling=GREEDY)
    first = create(spec)
    await first.start()
    events = first.kv_events()
    before = await collect(first.generate(request), str(model))
    on_disk: set[bytes] = set()
    while len(on_disk) < FULL // BLOCK:
        batch = await asyncio.wait_for(anext(events), PATIENCE_S)
        for event in batch.events:
            if isinstance(event, BlocksStored) and event.medium == "disk":
                on_disk.update(event.block_hashes)
    os.kill(first._link._client.pid, signal.SIGKILL)  # type: ignore[union-attr]
    await first.stop()
    second = create(spec)
    await second.start()
    after = await collect(second.generate(request), str(model))
    stats = await second.stats()
    await second.stop()
    assert after.outputs[0].token_ids == before.outputs[0].token_ids
    assert stats.disk_hit_tokens == FULL
    assert stats.free_blocks is not None
    assert stats.total_blocks == sum(
        getattr(stats, f"{state}_blocks") for state in ("free", "cached", "used", "leased")
    )


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"kv_offload_disk_bytes": 1 << 20}, "kv_offload_disk_bytes"),
        ({"kv_offload_memory_bytes": 10}, "kv_offload_memory_bytes"),
        ({"kv_offload_dir": "/proc/none"}, "kv_offload_dir"),
        ({"kv_offload_memory_bytes": 1 << 20, "prefix_caching": False}, "kv_offload_memory_bytes"),
    ],
)
def test_what_cannot_be_is_refused_by_name(model: Path, options: dict[str, Any], param: str) -> None:
    with pytest.raises(SageLLMError) as refusal:
        LLM(str(model), dtype="float32", **options)
    assert (refusal.value.code, refusal.value.param) == (ErrorCode.INVALID_REQUEST, param)
