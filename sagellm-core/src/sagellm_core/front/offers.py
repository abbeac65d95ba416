"""What an engine offers with the model its core has loaded: features by name, and sizes.

Knows nothing of requests.
"""

from __future__ import annotations

from sagellm_core.transport.messages import Ready
from sagellm_protocol import features
from sagellm_protocol.engine import EngineCapabilities, EngineSpec

from .form import OutputForm

_OF_GENERATION = frozenset(
    {
        *(features.GENERATE, features.LOGPROBS, features.PROMPT_LOGPROBS, features.LOGIT_BIAS),
        *(features.ALLOWED_TOKEN_IDS, features.BAD_WORDS, features.ECHO, features.CACHE_SALT),
        *(features.STRUCTURED_OUTPUT, features.BEAM_SEARCH),
    }
)
_OF_VECTORS = frozenset({features.EMBED, features.DIMENSIONS, features.SCORE})


def offered_features(core: Ready, form: OutputForm, *, trusting: bool) -> frozenset[str]:
    """Features by their names in :mod:`sagellm_protocol.features`.

    Args:
        core: What it has loaded.
        form: The form of the model's output.
        trusting: Whether templates that requests bring are run.
    """
    offered: set[str] = set()
    if core.generates:
        offered |= _OF_GENERATION | _of_conversations(form, trusting=trusting)
    if core.embedding_size is not None:
        offered |= _OF_VECTORS
    if core.scores:
        offered.add(features.SCORE)
    if core.adapters:
        offered.add(features.ADAPTER)
    return frozenset(offered)


def capabilities(core: Ready, offered: frozenset[str], spec: EngineSpec) -> EngineCapabilities:
    """What it says of itself."""
    return EngineCapabilities(
        features=offered,
        max_model_len=core.max_model_len,
        max_num_seqs=core.max_num_seqs,
        max_num_batched_tokens=core.max_num_batched_tokens,
        vocab_size=core.vocab_size,
        block_size=core.block_size,
        total_blocks=core.total_blocks,
        dtype=core.dtype,
        quantization=spec.quantization,
        embedding_dimensions=core.embedding_size,
    )


def _of_conversations(form: OutputForm, *, trusting: bool) -> frozenset[str]:
    """What the model's template and form of output offer to conversations."""
    chat = form.tokenizer.chat
    offered = {
        features.CHAT: bool(chat.sources) or trusting,
        features.CHAT_TEMPLATE: trusting,
        features.REASONING_EFFORT: chat.reads("reasoning_effort"),
        features.TOOLS: form.tools is not None,
        features.TOOL_CHOICE: form.tools is not None,
    }
    return frozenset(name for name, offers in offered.items() if offers)
