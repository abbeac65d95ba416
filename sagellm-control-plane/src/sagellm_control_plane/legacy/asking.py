"""A request of the replaced control plane as policies and routers see one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Sequence
from datetime import datetime

from sagellm_control_plane.board import Role
from sagellm_control_plane.types import RequestMetadata, RequestPriority

BLOCK_TOKENS = 64
CHARACTERS = 4
"""Of a token, by the rule of thumb: what is asked for here are texts, and no tokeniser is at hand."""
TYPICAL_OUTPUT = 128
"""Output tokens reckoned for a request that states no limit."""


class Asked:
    """Implements :class:`~sagellm_control_plane.observing.Subject`; times are Unix seconds.

    Args:
        metadata: The request.
        number: Its place in the order of arrival.
    """

    __slots__ = ("_blocks", "metadata", "number", "prompt_tokens")

    def __init__(self, metadata: RequestMetadata, number: int) -> None:
        self.metadata = metadata
        self.number = number
        self.prompt_tokens = tokens_of(metadata)
        self._blocks: tuple[bytes, ...] | None = None

    @property
    def model(self) -> str:
        """What it asks for; empty when any model will do."""
        return self.metadata.effective_model_name or ""

    @property
    def arrived(self) -> float:
        """When it came."""
        return self.metadata.arrival_time.timestamp()

    @property
    def deadline(self) -> float | None:
        """When its answer has to be complete."""
        allowed = self.metadata.slo_deadline_ms
        return None if allowed is None else self.arrived + allowed / 1000

    @property
    def ttft_slo_s(self) -> float | None:
        """Never stated."""
        return None

    @property
    def tpot_slo_s(self) -> float | None:
        """Hoped-for time between tokens."""
        return None if self.metadata.tbt_slo_ms is None else self.metadata.tbt_slo_ms / 1000

    @property
    def priority(self) -> int:
        """0 is NORMAL."""
        return self.metadata.priority.value - RequestPriority.NORMAL.value

    @property
    def output_tokens(self) -> int:
        """Of its answer at most, or the usual number."""
        if self.embeds:
            return 0
        return TYPICAL_OUTPUT if self.metadata.max_tokens is None else self.metadata.max_tokens

    @property
    def block_hashes(self) -> Sequence[Hashable]:
        """Of the prompt's text, in pieces of a block's usual length; computed when they are first read."""
        if self._blocks is None:
            self._blocks = tuple(_chain(self.model, self.metadata.prompt or ""))
        return self._blocks

    @property
    def block_size(self) -> int:
        """Tokens in each."""
        return BLOCK_TOKENS

    @property
    def cost_budget(self) -> float | None:
        """As stated."""
        return self.metadata.cost_budget

    @property
    def user(self) -> str | None:
        """Whose it is."""
        return self.metadata.user_id

    @property
    def session_id(self) -> str | None:
        """The conversation: ``tags["session_id"]``, or all that this user asks."""
        named = self.metadata.tags.get("session_id")
        return str(named) if named is not None else self.metadata.user_id

    @property
    def adapter(self) -> str | None:
        """``tags["adapter"]``."""
        named = self.metadata.tags.get("adapter")
        return str(named) if named is not None else None

    @property
    def embeds(self) -> bool:
        """Whether vectors are asked for."""
        return self.metadata.is_embedding_request

    @property
    def role(self) -> Role:
        """The whole of the work, unless its prompt was computed already."""
        return Role.DECODE if self.metadata.prefill_completed else Role.BOTH

    @property
    def source(self) -> str | None:
        """``tags["prefill_instance_id"]``: where its prompt was computed."""
        named = self.metadata.tags.get("prefill_instance_id")
        return str(named) if named is not None else None


def tokens_of(metadata: RequestMetadata) -> int:
    """Prompt tokens, by four characters each."""
    texts = metadata.embedding_texts or () if metadata.is_embedding_request else (metadata.prompt or "",)
    return sum(math.ceil(len(text) / CHARACTERS) for text in texts) or 1


def by_arrival(requests: Sequence[RequestMetadata]) -> list[Asked]:
    """Requests in the order in which they came; of those that came at once, as they are listed."""

    def came(request: RequestMetadata) -> datetime:
        return request.arrival_time

    return [Asked(request, number) for number, request in enumerate(sorted(requests, key=came))]


def _chain(model: str, text: str) -> list[bytes]:
    size, parent, chain = BLOCK_TOKENS * CHARACTERS, model.encode(), []
    for start in range(0, len(text) - size + 1, size):
        parent = hashlib.sha256(parent + b"\0" + text[start : start + size].encode(errors="surrogatepass")).digest()
        chain.append(parent)
    return chain
