"""From a request's sampling parameters to what the core samples by: token ids, seeds, limits.

Knows the vocabulary and nothing of logits.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from sagellm_core.core.plan import TokenSampling
from sagellm_core.tokenizer import Tokenizer
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.sampling import SamplingParams

from .text import check_text

MAX_BAD_WORDS = 1024
"""Each is looked for before every token; beyond this a request would slow its neighbours."""
_MASK = 2**64 - 1


def resolve_sampling(
    params: SamplingParams,
    tokenizer: Tokenizer,
    eos_token_ids: Sequence[int],
    vocab_size: int,
    grammar: str | None = None,
) -> TokenSampling:
    """How tokens are chosen, in token ids; those that ``params`` names are in the vocabulary.

    Args:
        params: As asked.
        tokenizer: The model's.
        eos_token_ids: Tokens that end an answer.
        vocab_size: Rows of the model's embedding table.
        grammar: What the output must follow.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for a bad word without tokens.
    """
    ends = [*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)]
    return TokenSampling(
        temperature=params.temperature,
        top_k=min(max(params.top_k, 0), vocab_size),
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=dict(params.logit_bias or {}),
        allowed=params.allowed_token_ids,
        bad_words=bad_word_ids(params.bad_words, tokenizer),
        min_tokens=params.min_tokens,
        end_ids=tuple(dict.fromkeys(ends)),
        logprobs=params.logprobs,
        prompt_logprobs=params.prompt_logprobs,
        grammar=grammar,
    )


def bad_word_ids(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Token sequences that spell each word, at the beginning of a text and after a space.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for a word without tokens, or that is no text, and for too many.
    """
    if len(words) > MAX_BAD_WORDS:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"there are {len(words)} bad words; at most {MAX_BAD_WORDS} may be given",
            "sampling.bad_words",
        )
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        check_text(word, "sampling.bad_words")
        spelled = [tokenizer.encode(text, add_special_tokens=False) for text in (word, " " + word.lstrip())]
        if not spelled[0]:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST, f"bad word {word!r} has no tokens in this vocabulary", "sampling.bad_words"
            )
        found.update((tuple(ids), None) for ids in spelled if ids)
    return tuple(found)


def choice_seeds(seed: int, n: int) -> list[int]:
    """64 bits for each of ``n`` choices: the request's own seed first, then digests of it and the choice's index."""
    first = seed & _MASK
    derived = (hashlib.sha256(struct.pack("<QI", first, index)).digest() for index in range(1, n))
    return [first, *(int.from_bytes(digest[:8], "little") for digest in derived)]
