"""What Aegaeon's two algorithms are asked in SAGE's words: groups of prompts and batches of answers, one model each."""

from __future__ import annotations

from dataclasses import dataclass, field

from sagellm_control_plane.pooling import MOST_IN_GROUP
from sagellm_control_plane.types import RequestMetadata

STEP_S = 0.025


@dataclass
class PrefillGroup:
    """Requests for one model whose prompts are computed in a row."""

    model_name: str
    requests: list[RequestMetadata] = field(default_factory=list)
    max_size: int = MOST_IN_GROUP

    @property
    def size(self) -> int:
        """Requests in it."""
        return len(self.requests)

    @property
    def is_full(self) -> bool:
        """Whether it takes no more."""
        return self.size >= self.max_size

    def can_add(self, request: RequestMetadata) -> bool:
        """Whether it takes this one: of its model, and with room."""
        return not self.is_full and request.effective_model_name == self.model_name


@dataclass
class DecodingBatch:
    """Answers of one model that an instance decodes together. Times are seconds."""

    model_name: str
    requests: list[RequestMetadata] = field(default_factory=list)
    time_quota: float = 0.0
    remaining_quota: float = 0.0
    decoding_step_time: float = STEP_S
    tokens_executed: int = 0
    last_execution_time: float = 0.0

    @property
    def token_slo_s(self) -> float:
        """The strictest promised time a token; two steps' where none is promised."""
        promised = [request.tbt_slo_ms / 1000 for request in self.requests if request.tbt_slo_ms is not None]
        return min(promised, default=2 * self.decoding_step_time)

    @property
    def n_value(self) -> float:
        """Tokens' worth of promised time that one step gains."""
        return self.token_slo_s / self.decoding_step_time

    def consume_quota(self, time_spent: float) -> float:
        """Take time off what is left of its turn; returns what is left."""
        self.remaining_quota = max(0.0, self.remaining_quota - time_spent)
        return self.remaining_quota

    def reset_quota(self) -> None:
        """Give it a whole turn."""
        self.remaining_quota = self.time_quota
