"""Pieces that chat and legacy answers share: usage, log-probabilities, the fingerprint.

Knows nothing of either answer as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sagellm_protocol import PositionLogprobs, TokenLogprob, Usage

LOWEST_LOGPROB = -9999.0
"""Stands for what JSON cannot write (minus infinity), as OpenAI's API has it."""


def usage_shape(usage: Usage) -> dict[str, Any]:
    """OpenAI's ``usage``."""
    shape: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    if usage.reasoning_tokens is not None:
        shape["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return shape


def total(usages: Iterable[Usage]) -> Usage:
    """The sum over several requests."""
    usages = list(usages)
    reasoning = [usage.reasoning_tokens for usage in usages if usage.reasoning_tokens is not None]
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        reasoning_tokens=sum(reasoning) if reasoning else None,
    )


def chat_logprobs(positions: Sequence[PositionLogprobs], as_ids: bool) -> dict[str, Any]:
    """Log-probabilities as chat answers carry them."""
    return {
        "content": [
            {**_token(position, as_ids), "top_logprobs": [_token(top, as_ids) for top in position.top]}
            for position in positions
        ],
        "refusal": None,
    }


def legacy_logprobs(
    positions: Sequence[PositionLogprobs], offset: int, as_ids: bool, first: tuple[int, str] | None = None
) -> dict[str, Any]:
    """Log-probabilities as legacy completions carry them.

    Args:
        positions: Those of the tokens.
        offset: Characters of the choice's text before the first of them.
        as_ids: Name tokens by id.
        first: Id and text of a token before them all that has none: the prompt's first.
    """
    names: list[str] = []
    texts: list[str] = []
    none: list[None] = []
    if first is not None:
        names.append(f"token_id:{first[0]}" if as_ids else first[1])
        texts.append(first[1])
        none.append(None)
    offsets = []
    for text in [*texts, *(position.token for position in positions)]:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": [*names, *(_name(position, as_ids) for position in positions)],
        "token_logprobs": [*none, *(finite(position.logprob) for position in positions)],
        # Of tokens of one name (bytes that are no text) the likeliest counts, unless the one in question has it.
        "top_logprobs": [
            *none,
            *(
                {_name(token, as_ids): finite(token.logprob) for token in (*reversed(position.top), position)}
                for position in positions
            ),
        ],
        "text_offset": offsets,
    }


def echoed_logprobs(
    prompt: Sequence[PositionLogprobs | None], first: tuple[int, str], output: Sequence[PositionLogprobs], as_ids: bool
) -> dict[str, Any]:
    """Those of prompt and output in one list, for a text that begins with the prompt.

    Args:
        prompt: Those of the prompt; nothing for its first token.
        first: Id and text of that.
        output: Those of the tokens produced.
        as_ids: Name tokens by id.
    """
    return legacy_logprobs([*(one for one in prompt if one is not None), *output], 0, as_ids, first)


def prompt_logprobs(positions: Sequence[PositionLogprobs | None]) -> list[dict[str, Any] | None]:
    """Log-probabilities of the prompt, in vLLM's form: by token id, and nothing for the first token."""
    return [
        None
        if position is None
        else {
            str(token.token_id): {
                "logprob": finite(token.logprob),
                "rank": token.rank,
                "decoded_token": token.token,
            }
            for token in (position, *position.top)
        }
        for position in positions
    ]


def finite(logprob: float) -> float:
    """A log-probability that JSON can write."""
    return max(LOWEST_LOGPROB, logprob)


def _token(token: TokenLogprob, as_ids: bool) -> dict[str, Any]:
    raw = token.bytes if token.bytes is not None else token.token.encode("utf-8", "replace")
    return {"token": _name(token, as_ids), "logprob": finite(token.logprob), "bytes": list(raw)}


def _name(token: TokenLogprob, as_ids: bool) -> str:
    return f"token_id:{token.token_id}" if as_ids else token.token
