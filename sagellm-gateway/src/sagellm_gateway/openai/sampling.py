"""The sampling parameters that chat and legacy completions share, vLLM's additions included.

Knows nothing of prompts, messages, or how answers look.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ValidationError

from sagellm_protocol import SageLLMError, SamplingParams

from .body import Body, Refused, invalid
from .look import Look


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stops = Annotated[list[str], BeforeValidator(_listed)]

COPIED = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "allowed_token_ids",
    "bad_words",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "prompt_logprobs",
    "skip_special_tokens",
    "truncate_prompt_tokens",
)
"""Fields that mean the same in both; their bounds and defaults are those of ``SamplingParams``."""

_PENALTIES = {"length_penalty": 1.0, "early_stopping": False}
"""Defaults, which ask for nothing where there is no beam search."""

_NOT_STORED = "nothing is stored here"

REFUSED: Mapping[str, Refused] = {
    "metadata": Refused(({},), f"labels stored answers, and {_NOT_STORED}"),
    "store": Refused((False,), _NOT_STORED),
    "service_tier": Refused(("auto", "default"), "there is one service tier"),
    "session_id": Refused((), "the history of sessions is not kept here; send the whole conversation"),
    "spaces_between_special_tokens": Refused((True,), "special tokens are written as the tokeniser writes them"),
    "logits_processors": Refused(([],), "code of callers is not run here"),
    "mm_processor_kwargs": Refused(({},), "models here read text alone"),
    "kv_transfer_params": Refused(({},), "transfers of KV blocks are arranged by the control plane"),
    "vllm_xargs": Refused(({},), "no engine here takes extra arguments"),
    "guided_decoding_backend": Refused(("auto",), "there is one structured-output backend"),
    "guided_whitespace_pattern": Refused((), "give a regex or a grammar that says it"),
    "request_id": Refused((), "send it in the header x-request-id"),
    "prompt_cache_retention": Refused(("in_memory", "in-memory"), "the prefix cache lives in memory"),
    "prompt_cache_options": Refused(({},), "the prefix cache is automatic"),
}
"""What neither API offers here."""


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: bool = False
    """End with a chunk of no choices that counts the tokens."""

    refused: ClassVar[Mapping[str, Refused]] = {
        "include_obfuscation": Refused((False,), "chunks are not padded"),
        "continuous_usage_stats": Refused((False,), "usage comes once, at the end (include_usage)"),
    }


class SamplingFields(Body):
    """Sampling parameters as they stand in a body."""

    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    stop: Stops | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    use_beam_search: bool = False
    """Search for the ``n`` likeliest answers instead of drawing some."""
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None

    stream: bool = False
    stream_options: StreamOptions | None = None
    return_tokens_as_token_ids: bool = False
    """Name tokens in logprobs ``token_id:N`` in place of their text."""
    return_token_ids: bool = False
    """Report the ids of the prompt's tokens and of those produced."""

    priority: int = 0
    user: str | None = None
    safety_identifier: str | None = None
    """OpenAI's newer name of ``user``."""
    prompt_cache_key: str | None = None
    """Requests that share it prefer one engine; the prefix cache itself needs no key."""
    cache_salt: str | None = None

    def sampling(self, **resolved: Any) -> SamplingParams:
        """The sampling parameters of the contract.

        Args:
            resolved: Those whose meaning depends on the API (``max_tokens``, ``logprobs``).

        Raises:
            SageLLMError: ``INVALID_REQUEST`` naming the field.
        """
        given = {name: getattr(self, name) for name in COPIED if name in self.model_fields_set}
        if self.use_beam_search:
            given.update(beam_width=self.width, **self._penalties())
        elif penalties := self._penalties():
            raise invalid(next(iter(penalties)), "applies to beam search; set use_beam_search=true, or leave it out")
        given.update((name, value) for name, value in resolved.items() if value is not None)
        if self.logit_bias:
            given["logit_bias"] = _token_keys(self.logit_bias)
        if given.get("allowed_token_ids") == []:
            raise invalid("allowed_token_ids", "must not be empty")
        try:
            return SamplingParams.model_validate(given)
        except ValidationError as error:
            raise SageLLMError.from_validation(error) from None

    @property
    def width(self) -> int:
        """Sequences that a beam search follows."""
        return self.n or 1

    def _penalties(self) -> dict[str, Any]:
        """What is said of a beam search, as far as it says anything but the default."""
        said = {"length_penalty": self.length_penalty, "early_stopping": self.early_stopping}
        return {name: value for name, value in said.items() if value is not None and value != _PENALTIES[name]}

    def check_stream(self) -> None:
        """Refuse options of a stream that was not asked for, and what has no place in one."""
        if self.stream and self.use_beam_search:
            raise invalid("stream", "beam search knows its answers at the end; needs stream=false")
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "needs stream=true")
        if self.stream and self.prompt_logprobs is not None:
            raise invalid("prompt_logprobs", "come with whole answers; needs stream=false")

    @property
    def look(self) -> Look:
        """How the answer shall look."""
        return Look(as_ids=self.return_tokens_as_token_ids, token_ids=self.return_token_ids)

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def routing(self) -> dict[str, Any]:
        """Fields of the contract's request that say who asks and how urgently."""
        if self.user is not None and self.safety_identifier not in {None, self.user}:
            raise invalid("safety_identifier", "is the newer name of user; give one of them, or the same value in both")
        return {
            "priority": self.priority,
            "user": self.user if self.user is not None else self.safety_identifier,
            "session_id": self.prompt_cache_key,
            "cache_salt": self.cache_salt,
        }


def _token_keys(bias: dict[str, float]) -> dict[int, float]:
    for key in bias:
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise invalid("logit_bias", f"keys are token ids (got {key[:40]!r})")
    return {int(key): value for key, value in bias.items()}
