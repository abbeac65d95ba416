"""How large a core is made, and what is said when what was asked for cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from sagellm_core.core.sizing import CoreLimits, bytes_per_block, decide_limits
from sagellm_protocol import DType, EngineSpec, ErrorCode, KVSpec, SageLLMError

LAYERS = [KVSpec(3, 64, 64)] * 30
PER_BLOCK = 30 * 3 * 128 * 2 * 16
GIB = 1 << 30


def decide(free_bytes: int = 64 * GIB, device_kind: str = "cpu", **fields: Any) -> CoreLimits:
    return decide_limits(
        EngineSpec(model="m", **fields),
        kv_specs=LAYERS,
        kv_dtype=DType.BFLOAT16,
        max_position_embeddings=8192,
        device_kind=device_kind,
        free_bytes=free_bytes,
    )


def test_a_block_is_what_every_layer_keeps_of_its_tokens() -> None:
    assert bytes_per_block(LAYERS, DType.BFLOAT16, 16) == PER_BLOCK
    assert bytes_per_block([KVSpec(1, 576, 0)], DType.FLOAT32, 8) == 576 * 4 * 8


def test_the_pool_is_no_larger_than_all_sequences_need() -> None:
    assert decide(max_model_len=512, max_num_seqs=4).num_blocks == 4 * 512 // 16


def test_the_pool_leaves_half_of_the_free_memory() -> None:
    limits = decide(free_bytes=2 * GIB)
    assert limits.num_blocks == GIB // PER_BLOCK


def test_a_cpu_pool_is_capped() -> None:
    assert decide(free_bytes=512 * GIB).num_blocks == 4 * GIB // PER_BLOCK
    assert decide(free_bytes=512 * GIB, device_kind="cuda").num_blocks == 256 * 8192 // 16


def test_the_pool_is_as_told() -> None:
    assert decide(kv_cache_memory_bytes=600 * PER_BLOCK + 1).num_blocks == 600


def test_a_context_that_was_not_asked_for_shrinks_to_what_fits() -> None:
    limits = decide(kv_cache_memory_bytes=100 * PER_BLOCK)
    assert limits.max_model_len == 1600


def test_a_context_that_was_asked_for_and_does_not_fit_is_refused_with_the_fix() -> None:
    with pytest.raises(SageLLMError) as refusal:
        decide(max_model_len=8192, kv_cache_memory_bytes=100 * PER_BLOCK)
    assert refusal.value.code is ErrorCode.INVALID_REQUEST
    assert refusal.value.param == "kv_cache_memory_bytes"
    assert f"at least {512 * PER_BLOCK}" in refusal.value.message
    assert "max_model_len to 1600" in refusal.value.message


def test_a_pool_of_no_block_is_refused() -> None:
    with pytest.raises(SageLLMError, match=f"one block of 16 tokens takes {PER_BLOCK} bytes") as refusal:
        decide(kv_cache_memory_bytes=PER_BLOCK - 1)
    assert f"at least {512 * PER_BLOCK}" in refusal.value.message


def test_a_context_of_one_token_is_refused() -> None:
    with pytest.raises(SageLLMError, match="max_model_len=1 leaves no room"):
        decide(max_model_len=1)


def test_more_sequences_than_blocks_are_refused_where_they_were_asked_for() -> None:
    with pytest.raises(SageLLMError, match="set max_num_seqs to at most 40, or raise kv_cache_memory_bytes"):
        decide(max_num_seqs=41, kv_cache_memory_bytes=40 * PER_BLOCK)
    assert decide(kv_cache_memory_bytes=40 * PER_BLOCK).max_num_seqs == 64


def test_a_context_beyond_the_models_positions_is_refused() -> None:
    with pytest.raises(SageLLMError, match=r"max_model_len=9000 .* 8192"):
        decide(max_model_len=9000)


@pytest.mark.parametrize(
    ("fields", "sequences", "tokens"),
    [
        ({}, 64, 512),
        ({"max_num_seqs": 1000}, 1000, 1000),
        ({"max_num_batched_tokens": 16}, 16, 16),
        ({"max_num_batched_tokens": 4096}, 64, 4096),
    ],
)
def test_what_is_left_open_agrees_with_what_was_set(fields: dict[str, int], sequences: int, tokens: int) -> None:
    limits = decide(**fields)
    assert (limits.max_num_seqs, limits.max_num_batched_tokens) == (sequences, tokens)


def test_a_step_without_a_token_for_every_sequence_is_refused() -> None:
    with pytest.raises(SageLLMError, match="set max_num_batched_tokens to at least 32, or max_num_seqs to at most 16"):
        decide(max_num_seqs=32, max_num_batched_tokens=16)
