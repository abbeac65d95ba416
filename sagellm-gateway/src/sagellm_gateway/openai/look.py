"""How an answer shall look, as far as that is the caller's choice.

Knows nothing of how it is made.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """What a caller wants to see.

    Attributes:
        as_ids: Tokens in log-probabilities are named by id.
        token_ids: The ids of all tokens are told.
        logprobs: For completions: the log-probabilities of what was produced are told.
        tells_prompt: Those of the prompt's tokens stand before them, as its text before the text.
        prompt_logprobs: Those of the prompt's tokens are told apart from them, in vLLM's form.
        best: Only so many of the choices are told, the likeliest by token.
    """

    as_ids: bool = False
    token_ids: bool = False
    logprobs: bool = True
    tells_prompt: bool = False
    prompt_logprobs: bool = True
    best: int | None = None
