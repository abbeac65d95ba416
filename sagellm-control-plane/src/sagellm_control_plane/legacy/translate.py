"""From the manager's words to the plane's: names of strategies, requests, and engines that are asked for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from pydantic import ValidationError

from sagellm_control_plane.types import RequestMetadata, RequestPriority, RequestType
from sagellm_protocol import SLO, EmbedRequest, EngineSpec, Message, Request, SageLLMError, SamplingParams

from .errors import BadValue, refuse_other_than

ROUTERS = {
    "load_balanced": "least_load",
    "weighted_round_robin": "weighted",
    "least_connections": "least_load",
    "least_response_time": "lowest_latency",
}
"""Strategies that have another name now; the rest kept theirs."""


def router_of(routing_strategy: str) -> str:
    """The router that a strategy's old name stands for."""
    return ROUTERS.get(routing_strategy, routing_strategy)


def requests_of(metadata: RequestMetadata, model: str) -> list[Request | EmbedRequest]:
    """The requests that one of the manager's stands for: one, or for embeddings one a batch.

    Args:
        metadata: What was submitted.
        model: The model to ask, which it may have left open.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` (also a ``ValueError``) for what is missing or out of range;
            ``UNSUPPORTED`` for what cannot be honoured.
    """
    refuse_other_than(
        {
            "parallelism_hint": None,
            "billing_tier": "standard",
            "prefill_completed": False,
            "can_be_preempted": True,
        },
        vars(metadata),
    )
    common: dict[str, Any] = {
        "request_id": metadata.request_id,
        "model": model,
        "priority": metadata.priority.value - RequestPriority.NORMAL.value,
        "user": metadata.user_id,
    }
    try:
        if metadata.slo_deadline_ms is not None or metadata.tbt_slo_ms is not None:
            common["slo"] = SLO(deadline_ms=metadata.slo_deadline_ms, tpot_ms=metadata.tbt_slo_ms)
        if metadata.is_embedding_request:
            return [EmbedRequest(inputs=tuple(texts), **common) for texts in _batches(metadata)]
        if not metadata.prompt:
            raise BadValue(f"request {metadata.request_id!r} has no prompt", "prompt")
        sampling = SamplingParams(
            temperature=metadata.temperature, top_p=metadata.top_p, max_tokens=metadata.max_tokens
        )
        if metadata.request_type is RequestType.LLM_CHAT:
            message = Message.model_validate({"role": "user", "content": metadata.prompt})
            return [Request(messages=(message,), sampling=sampling, **common)]
        return [Request(prompt=metadata.prompt, sampling=sampling, **common)]
    except ValidationError as error:
        cause = SageLLMError.from_validation(error)
        raise BadValue(cause.message, cause.param) from error


def _batches(metadata: RequestMetadata) -> list[list[str]]:
    texts, size = metadata.embedding_texts, metadata.embedding_batch_size
    if not texts:
        raise BadValue(f"request {metadata.request_id!r} has no embedding_texts", "embedding_texts")
    if size < 1:
        raise BadValue(f"embedding_batch_size must be 1 or more (got {size})", "embedding_batch_size")
    return [texts[start : start + size] for start in range(0, len(texts), size)]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadValue(f"extra_spawn_args: {message}", "extra_spawn_args")


_ARGUMENTS = {
    "--engine": ("engine", str),
    "--dtype": ("dtype", str),
    "--device": ("device", str),
    "--quantization": ("quantization", str),
    "--load-format": ("load_format", str),
    "--max-model-len": ("max_model_len", int),
    "--max-num-seqs": ("max_num_seqs", int),
    "--max-num-batched-tokens": ("max_num_batched_tokens", int),
    "--kv-cache-memory": ("kv_cache_memory_bytes", int),
    "--served-model-name": ("served_names", str),
    "--seed": ("seed", int),
}


def spec_of(
    model_id: str,
    *,
    tensor_parallel_size: int,
    pipeline_parallel_size: int,
    extra_spawn_args: Sequence[str] | None,
    use_gpu: bool | None,
) -> EngineSpec:
    """The engine that is asked for; ``extra_spawn_args`` are those of ``sagellm engine`` that describe an engine.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` (also a ``ValueError``) naming what is unknown or out of range.
    """
    for name, value in (
        ("tensor_parallel_size", tensor_parallel_size),
        ("pipeline_parallel_size", pipeline_parallel_size),
    ):
        if value < 1:
            raise BadValue(f"{name} must be 1 or more (got {value})", name)
    parser = _Parser(prog="extra_spawn_args", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for flag, (name, kind) in _ARGUMENTS.items():
        parser.add_argument(flag, dest=name, type=kind)
    fields: dict[str, Any] = vars(parser.parse_args(list(extra_spawn_args or ())))
    if "served_names" in fields:
        fields["served_names"] = (fields["served_names"],)
    if use_gpu is not None:
        device = "cuda" if use_gpu else "cpu"
        if fields.setdefault("device", device) != device:
            raise BadValue(f"use_gpu={use_gpu} and --device {fields['device']} contradict each other", "use_gpu")
    try:
        return EngineSpec(
            model=model_id,
            tensor_parallel=tensor_parallel_size,
            pipeline_parallel=pipeline_parallel_size,
            **fields,
        )
    except ValidationError as error:
        cause = SageLLMError.from_validation(error)
        raise BadValue(cause.message, cause.param) from error
