"""How the next token is chosen, and when to stop: the sampling parameters of one request.

Names and meanings are those vLLM and OpenAI's API made common. Knows nothing of logits or tensors.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from typing_extensions import Self

from ._wire import Ask

MAX_CHOICES = 128
"""Largest ``n``; a bound on what one request may make an engine hold."""
MAX_LOGPROBS = 100
"""Most alternatives a token's log-probabilities may list."""
MAX_STOP_STRINGS = 64
MAX_BEAMS = 64
"""Widest beam search; each beam takes a place in every step."""


_NOT_SEARCHED = (
    *("top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
    *("allowed_token_ids", "bad_words", "stop", "prompt_logprobs"),
)
"""What beam search does not go by. ``top_k`` of 0 or -1 keeps all and so asks for nothing."""


def _as_tuple(stops: Any) -> Any:
    return (stops,) if isinstance(stops, str) else stops


def _not_blank(stops: tuple[str, ...]) -> tuple[str, ...]:
    if any(stop == "" for stop in stops):
        raise ValueError("a stop string cannot be empty")
    return stops


TokenId = Annotated[int, Field(ge=0)]


class SamplingParams(Ask):
    """Sampling parameters of one request.

    Defaults follow OpenAI's API: temperature 1, the whole vocabulary, no penalties. ``temperature=0`` is greedy.
    Penalties and biases apply to raw logits, before temperature; then ``top_k``, ``top_p`` and ``min_p`` in that
    order, each on the renormalised remainder.
    """

    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    """Independent continuations of the same prompt."""
    temperature: float = Field(default=1.0, ge=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Keep the smallest set of tokens whose probability reaches this."""
    top_k: int = Field(default=0, ge=-1)
    """Keep this many of the likeliest tokens; 0 or -1 keeps all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Drop tokens less likely than this share of the likeliest one."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)
    """Makes the request reproducible whatever runs beside it; absent, a random one is drawn."""
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Subtracted once from the logit of every token already produced."""
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Subtracted from a token's logit for each time it was produced."""
    repetition_penalty: float = Field(default=1.0, gt=0, le=100)
    """Divides positive and multiplies negative logits of tokens seen in prompt or output (CTRL, Keskar et al. 2019)."""
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = None
    """Added to the logits of these token ids."""
    allowed_token_ids: tuple[TokenId, ...] | None = Field(default=None, min_length=1)
    """Only these may be produced."""
    bad_words: tuple[str, ...] = ()
    """Strings whose token sequences may not be completed."""
    stop: Annotated[tuple[str, ...], BeforeValidator(_as_tuple), AfterValidator(_not_blank)] = Field(
        default=(), max_length=MAX_STOP_STRINGS
    )
    """Strings that end a choice and, unless asked for, are left out of its text. One string may stand for itself."""
    stop_token_ids: tuple[TokenId, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    """Go on past the model's end-of-text tokens (benchmarks)."""
    max_tokens: int | None = Field(default=None, ge=0)
    """Most tokens to produce for a choice; absent, as many as the context allows. 0 reads the prompt and produces
    nothing, for its log-probabilities."""
    min_tokens: int = Field(default=0, ge=0)
    """No end-of-text or stop token before this many; stop strings are not looked for before it either."""
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    """Report each produced token's log-probability and this many of the likeliest alternatives."""
    prompt_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    truncate_prompt_tokens: int | None = Field(default=None, ge=1)
    """Keep only this many of the prompt's last tokens."""
    beam_width: int | None = Field(default=None, ge=1, le=MAX_BEAMS)
    """Search with this many beams instead of sampling; the ``n`` best sequences are the choices, the best first."""
    length_penalty: float = Field(default=1.0, ge=-10, le=10)
    """A sequence's score is its log-probability over its length to this power; above 0 favours long ones."""
    early_stopping: bool | Literal["never"] = False
    """When a search with ``beam_width`` finished sequences ends: at once, when no better one is likely, or, with
    ``never``, when none is possible."""

    @model_validator(mode="after")
    def _bounds_agree(self) -> Self:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) is larger than max_tokens ({self.max_tokens})")
        if self.beam_width is None:
            for name in ("length_penalty", "early_stopping"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} ({getattr(self, name)!r}) applies to beam search: set beam_width too")
        else:
            self._check_search(self.beam_width)
        return self

    def _check_search(self, width: int) -> None:
        if self.n > width:
            raise ValueError(f"n ({self.n}) is larger than beam_width ({width})")
        if self.max_tokens == 0:
            raise ValueError("beam search needs max_tokens of at least 1 (got 0)")
        if self.temperature not in {0.0, 1.0}:
            raise ValueError(f"beam search draws nothing: temperature must be 0 or 1 (got {self.temperature:g})")
        if self.top_k > 0:
            raise ValueError(f"top_k ({self.top_k}) cannot be combined with beam search")
        for name in _NOT_SEARCHED:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} ({getattr(self, name)!r:.80}) cannot be combined with beam search")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0
