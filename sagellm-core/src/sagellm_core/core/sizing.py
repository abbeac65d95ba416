"""How large a core may be: sequences, tokens of a step, context, and the blocks of the KV pool.

What the operator set is kept or refused by name; what was left open is decided from the model and the memory there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sagellm_protocol.backend import KVSpec
from sagellm_protocol.devices import DType
from sagellm_protocol.engine import EngineSpec
from sagellm_protocol.errors import ErrorCode, SageLLMError

BLOCK_SIZE = 16
MEMORY_SHARE = 0.5
"""Share of the free memory that the pool may claim unless told."""
MEMORY_CAP_BYTES = {"cpu": 4 << 30}
"""Most that the pool claims unless told, by kind of device: a laptop's memory is not ours alone."""
SEQUENCES = {"cpu": 64}
STEP_TOKENS = {"cpu": 512}
_SEQUENCES_ELSEWHERE = 256
_STEP_TOKENS_ELSEWHERE = 2048

_BYTES = {
    DType.FLOAT32: 4,
    DType.BFLOAT16: 2,
    DType.FLOAT16: 2,
    DType.FLOAT8_E4M3: 1,
    DType.FLOAT8_E5M2: 1,
    DType.INT8: 1,
}


@dataclass(frozen=True)
class CoreLimits:
    """How large a core is.

    Attributes:
        num_blocks: Blocks of the pool in each layer.
        block_size: Tokens of a block.
        max_num_seqs: Sequences that run at once.
        max_num_batched_tokens: Tokens of a step.
        max_model_len: Tokens of a sequence, prompt and output together.
    """

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int


def bytes_per_block(specs: Sequence[KVSpec], dtype: DType, block_size: int) -> int:
    """Bytes of one block in all layers."""
    elements = sum(spec.num_kv_heads * (spec.head_dim + spec.value_dim) for spec in specs)
    # In 8 bits each token has a float32 scale for its key and one for its value, head by head.
    scales = 8 * sum(spec.num_kv_heads for spec in specs) if dtype is DType.INT8 else 0
    return (elements * _BYTES[dtype] + scales) * block_size


def decide_limits(
    spec: EngineSpec,
    *,
    kv_specs: Sequence[KVSpec],
    kv_dtype: DType,
    max_position_embeddings: int,
    device_kind: str,
    free_bytes: int,
) -> CoreLimits:
    """Settle every limit that ``spec`` leaves open.

    Args:
        spec: What the operator asked for.
        kv_specs: What each layer keeps of a token.
        kv_dtype: Type it is kept in.
        max_position_embeddings: Longest sequence the model is made for.
        device_kind: ``cpu``, ``cuda``, …
        free_bytes: Memory there is for the pool.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` when what was set cannot be met; the message names what to change.
    """
    block_size = spec.block_size or BLOCK_SIZE
    per_block = bytes_per_block(kv_specs, kv_dtype, block_size)
    length = _length(spec, max_position_embeddings)
    if length < 2:
        raise _wrong("max_model_len", "max_model_len=1 leaves no room for a token of prompt and one of output; set 2")
    sequences, tokens = _concurrency(spec, device_kind)
    blocks_each = -(-length // block_size)
    if spec.kv_cache_memory_bytes is not None:
        budget, because = spec.kv_cache_memory_bytes, f"kv_cache_memory_bytes={spec.kv_cache_memory_bytes}"
        num_blocks = budget // per_block
    else:
        budget = min(int(free_bytes * MEMORY_SHARE), MEMORY_CAP_BYTES.get(device_kind, free_bytes))
        because = f"{MEMORY_SHARE:.0%} of the {free_bytes >> 20} MiB of free memory, at most what is capped,"
        num_blocks = min(budget // per_block, sequences * blocks_each)
    if num_blocks == 0:
        raise _wrong(
            "kv_cache_memory_bytes",
            f"the KV cache is too small: one block of {block_size} tokens takes {per_block} bytes and {because} allows"
            f" {budget}; raise kv_cache_memory_bytes to at least {blocks_each * per_block}, which is what"
            f" max_model_len={length} takes",
        )
    if num_blocks < blocks_each:
        if spec.max_model_len is not None:
            raise _wrong(
                "kv_cache_memory_bytes",
                f"the KV cache is too small for max_model_len={length}: that takes {blocks_each * per_block} bytes and"
                f" {because} allows {num_blocks * per_block}; raise kv_cache_memory_bytes to at least"
                f" {blocks_each * per_block}, or lower max_model_len to {num_blocks * block_size}",
            )
        length = num_blocks * block_size
    if sequences > num_blocks and spec.max_num_seqs is not None:
        raise _wrong(
            "max_num_seqs",
            f"max_num_seqs={sequences} sequences cannot run at once: each needs a block of the KV cache at least, and"
            f" there are {num_blocks}; set max_num_seqs to at most {num_blocks}, or raise kv_cache_memory_bytes",
        )
    return CoreLimits(num_blocks, block_size, sequences, tokens, length)


def decide_encoder_limits(spec: EngineSpec, *, max_position_embeddings: int, device_kind: str) -> CoreLimits:
    """Settle every limit of a model that reads an input in one step and keeps nothing of it.

    Args:
        spec: What the operator asked for.
        max_position_embeddings: Longest input the model is made for.
        device_kind: ``cpu``, ``cuda``, …

    Raises:
        SageLLMError: ``INVALID_REQUEST`` when what was set cannot be met; the message names what to change.
    """
    for name, neutral in (("kv_cache_memory_bytes", None), ("kv_cache_dtype", "auto")):
        value = getattr(spec, name)
        if value != neutral:
            raise _wrong(name, f"{name}={value} has no meaning for an encoder, which keeps no keys and values; drop it")
    length = _length(spec, max_position_embeddings)
    sequences, tokens = _concurrency(spec, device_kind)
    if spec.max_num_batched_tokens is None:
        tokens = max(tokens, length)
    if tokens < length:
        raise _wrong(
            "max_num_batched_tokens",
            f"max_num_batched_tokens={tokens} is less than max_model_len={length}, and an encoder reads an input in one"
            f" step; set max_num_batched_tokens to at least {length}, or max_model_len to at most {tokens}",
        )
    return CoreLimits(0, spec.block_size or BLOCK_SIZE, sequences, tokens, length)


def _length(spec: EngineSpec, max_position_embeddings: int) -> int:
    length = spec.max_model_len or max_position_embeddings
    if length > max_position_embeddings:
        raise _wrong(
            "max_model_len",
            f"max_model_len={length} is more than the {max_position_embeddings} positions the model has",
        )
    return length


def _concurrency(spec: EngineSpec, device_kind: str) -> tuple[int, int]:
    sequences, tokens = spec.max_num_seqs, spec.max_num_batched_tokens
    if sequences is not None and tokens is not None and tokens < sequences:
        raise _wrong(
            "max_num_batched_tokens",
            f"max_num_batched_tokens={tokens} is less than max_num_seqs={sequences}: a step must have a token for every"
            f" sequence; set max_num_batched_tokens to at least {sequences}, or max_num_seqs to at most {tokens}",
        )
    if tokens is None:
        tokens = max(STEP_TOKENS.get(device_kind, _STEP_TOKENS_ELSEWHERE), sequences or 0)
    if sequences is None:
        sequences = min(SEQUENCES.get(device_kind, _SEQUENCES_ELSEWHERE), tokens)
    return sequences, tokens


def _wrong(param: str, message: str) -> SageLLMError:
    return SageLLMError(ErrorCode.INVALID_REQUEST, message, param)
