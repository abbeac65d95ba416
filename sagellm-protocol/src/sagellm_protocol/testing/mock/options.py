"""What a mock engine can be told: its speed, its capacity, its answers and its failures.

Knows nothing of how the engine acts on them.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, ValidationError, model_validator
from typing_extensions import Self

from sagellm_protocol._wire import Ask
from sagellm_protocol.engine import EngineSpec
from sagellm_protocol.errors import ErrorCode, SageLLMError

_HONOURED = frozenset(
    {
        *("engine", "model", "served_names", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size"),
        *("prefix_caching", "options", "adapters", "adapter_root"),
        # The answer is the same whatever the seed, and the mock always works in its caller's process.
        *("seed", "core"),
    }
)
_ALSO_NEUTRAL = {"device": "cpu", "load_format": "dummy"}


class MockOptions(Ask):
    """``EngineSpec.options`` of the mock engine. By default it is infinitely fast and never fails."""

    prefill_tokens_per_s: float | None = Field(default=None, gt=0)
    """Prompt tokens computed a second; absent, infinitely many."""
    decode_tokens_per_s: float | None = Field(default=None, gt=0)
    """Tokens a second of one sequence alone; another way of giving ``itl_ms``."""
    itl_ms: float = Field(default=0.0, ge=0)
    """Inter-token latency: duration of a step that decodes, whatever its batch."""
    itl_ms_per_sequence: float = Field(default=0.0, ge=0)
    """Added to it for each sequence that decodes in the step."""
    start_delay_s: float = Field(default=0.0, ge=0)
    total_blocks: int = Field(default=8192, ge=1)
    """KV capacity."""
    max_waiting: int | None = Field(default=None, ge=0)
    """Requests that may wait; one more is refused as ``QUEUE_FULL``. Absent, any number."""
    text: str | None = Field(default=None, min_length=1)
    """What every answer says; absent, it says that it is a mock and repeats the end of the prompt."""
    output_tokens: int | None = Field(default=None, ge=0)
    """Tokens after which an answer ends by itself, its text repeated as needed; absent, when the text has been said."""
    embedding_dimensions: int = Field(default=16, ge=1, le=4096)
    features: tuple[str, ...] | None = None
    """Offer only these of the features it has."""
    refuse: ErrorCode | None = None
    """Refuse every request with this code."""
    retry_after_s: float | None = Field(default=None, ge=0)
    """Goes with every refusal that ``refuse`` makes."""
    fail_start: str | None = None
    """Fail to start, for this reason."""
    fail_after_tokens: int | None = Field(default=None, ge=0)
    """Fail each request after this many of its tokens."""
    hang_after_tokens: int | None = Field(default=None, ge=0)
    """Stop stepping after this many tokens over all requests; what is in flight hears nothing more."""
    die_after_tokens: int | None = Field(default=None, ge=0)
    """Die after this many tokens over all requests; what is in flight fails."""

    @model_validator(mode="after")
    def _one_decode_speed(self) -> Self:
        if self.decode_tokens_per_s is not None and self.itl_ms:
            raise ValueError("give decode_tokens_per_s or itl_ms, not both")
        return self

    def step_s(self, prefill_tokens: int, decoding: int) -> float:
        """Duration of a step that computes some prompt tokens and one token for each of ``decoding`` sequences."""
        prefill = prefill_tokens / self.prefill_tokens_per_s if self.prefill_tokens_per_s is not None else 0.0
        alone = 1000 / self.decode_tokens_per_s if self.decode_tokens_per_s is not None else self.itl_ms
        decode = (alone + self.itl_ms_per_sequence * decoding) / 1000 if decoding else 0.0
        return prefill + decode


@dataclass(frozen=True)
class Limits:
    """The limits of a spec, with the mock's own where it gives none."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    prefix_caching: bool


def read(spec: EngineSpec) -> tuple[MockOptions, Limits]:
    """Options and limits of a spec.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for a field of the spec that a mock cannot honour; ``INVALID_REQUEST`` for an
            option that it does not know, listing those it does.
    """
    for name, field in EngineSpec.model_fields.items():
        value = getattr(spec, name)
        if name not in _HONOURED and value != field.default and value != _ALSO_NEUTRAL.get(name):
            raise SageLLMError(
                ErrorCode.UNSUPPORTED, f"the mock engine has no {name} (got {value!r}); leave it out", name
            )
    known = MockOptions.model_fields
    for name in spec.options:
        if name not in known:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"the mock engine has no option {name!r}; it has {', '.join(known)}",
                f"options.{name}",
            )
    try:
        options = MockOptions.model_validate(spec.options)
    except ValidationError as error:
        raise SageLLMError.from_validation(error, "options") from error
    budget = spec.max_num_batched_tokens or 8192
    if spec.max_num_seqs is not None and spec.max_num_seqs > budget:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"max_num_seqs={spec.max_num_seqs} sequences need a step of at least as many tokens;"
            f" raise max_num_batched_tokens (now {budget})",
            "max_num_batched_tokens",
        )
    limits = Limits(
        max_model_len=spec.max_model_len or 32768,
        max_num_seqs=spec.max_num_seqs or min(256, budget),
        max_num_batched_tokens=budget,
        block_size=spec.block_size or 16,
        prefix_caching=spec.prefix_caching,
    )
    return options, limits
