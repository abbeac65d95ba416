"""What OpenAI-compatible servers offer, by kind: parameters beyond the common ones, and where they tell their load.

Names are those of vLLM (``vllm/entrypoints/openai``, ``/metrics``), SGLang (``/metrics``), llama.cpp (``tools/server``)
and Ollama (``docs/openai.md``). Knows nothing of connections.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sagellm_protocol import features


def _same(*names: str) -> dict[str, str]:
    return dict(zip(names, names, strict=True))


COMMON = _same("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "stop", "max_tokens")
_SGLANG = {
    **COMMON,
    **_same("n", "top_k", "min_p", "repetition_penalty", "ignore_eos", "min_tokens"),
    **_same("stop_token_ids", "skip_special_tokens", "logit_bias"),
}
_VLLM = {**_SGLANG, **_same("include_stop_str_in_output")}
_CHAT = frozenset({features.GENERATE, features.CHAT, features.TOOLS, features.TOOL_CHOICE, features.STRUCTURED_OUTPUT})


@dataclass(frozen=True)
class Kind:
    """A kind of server."""

    name: str
    sampling: Mapping[str, str] = field(default_factory=lambda: COMMON)
    """Sampling parameters it takes, by ours, with its names for them."""
    features: frozenset[str] = _CHAT
    tokens: bool = True
    """Whether completions take a prompt of token ids."""
    template_kwargs: bool = False
    running: tuple[str, ...] = ()
    """Its metrics of sequences under way, whichever there is."""
    waiting: tuple[str, ...] = ()


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "vllm",
            _VLLM,
            _CHAT | {features.LOGIT_BIAS},
            template_kwargs=True,
            running=("vllm:num_requests_running",),
            waiting=("vllm:num_requests_waiting",),
        ),
        Kind(
            "sglang",
            _SGLANG,
            _CHAT | {features.LOGIT_BIAS},
            template_kwargs=True,
            running=("sglang:num_running_reqs",),
            waiting=("sglang:num_queue_reqs",),
        ),
        Kind(
            "llama.cpp",
            {**COMMON, **_same("top_k", "min_p", "ignore_eos"), "repetition_penalty": "repeat_penalty"},
            template_kwargs=True,
            running=("llamacpp:requests_processing",),
            waiting=("llamacpp:requests_deferred",),
        ),
        Kind("ollama", features=_CHAT - {features.TOOL_CHOICE}, tokens=False),
        Kind("openai", tokens=False),
    )
}
_OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp", "library": "ollama"}


def kind_of(models: Sequence[Mapping[str, Any]]) -> Kind:
    """The kind of a server, as the owner of its models in ``/v1/models`` tells it."""
    owners = {str(model.get("owned_by")) for model in models}
    return KINDS[_OWNERS.get(owners.pop(), "openai") if len(owners) == 1 else "openai"]


_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{.*\})?\s+([-+.\deE]+|[+-]?Inf|NaN)(?:\s+\d+)?\s*$", re.MULTILINE)


def metric(text: str, names: tuple[str, ...]) -> float | None:
    """The sum of the first of these metrics that a Prometheus exposition has, over its labels."""
    samples = _SAMPLE.findall(text)
    for name in names:
        values = [float(value) for found, value in samples if found == name]
        if values:
            return sum(values)
    return None
