"""A request of a trace: plain values, as policies and routers see it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from sagellm_control_plane.board import Role


class SimRequest:
    """Satisfies :class:`~sagellm_control_plane.observing.Subject`. Slots, because there are millions of them.

    Args:
        number: Order of arrival.
        arrived: Virtual seconds.
        prompt_tokens: Of the prompt.
        output_tokens: Of the answer, at least one; known to the engine model alone.
        block_hashes: Of the prompt's full blocks.
        block_size: Tokens in each.
    """

    __slots__ = (
        "adapter",
        "arrived",
        "block_hashes",
        "block_size",
        "cached",
        "deadline",
        "embeds",
        "first_at",
        "model",
        "number",
        "output_tokens",
        "placed_at",
        "priority",
        "produced",
        "prompt_tokens",
        "session_id",
        "told",
        "tpot_slo_s",
        "ttft_slo_s",
        "user",
    )
    cost_budget: float | None = None
    role = Role.BOTH
    source: str | None = None

    def __init__(
        self,
        number: int,
        arrived: float,
        prompt_tokens: int,
        output_tokens: int,
        block_hashes: Sequence[Hashable] = (),
        block_size: int = 512,
        *,
        model: str = "m",
        user: str | None = None,
        session_id: str | None = None,
        adapter: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
        embeds: bool = False,
    ) -> None:
        self.number, self.arrived = number, arrived
        self.prompt_tokens, self.output_tokens = max(1, prompt_tokens), max(1, output_tokens)
        self.block_hashes, self.block_size = block_hashes, block_size
        self.model, self.user, self.session_id, self.adapter = model, user, session_id, adapter
        self.priority, self.deadline, self.embeds = priority, deadline, embeds
        self.ttft_slo_s: float | None = None
        self.tpot_slo_s: float | None = None
        self.placed_at = 0.0
        self.first_at: float | None = None
        """When its first token came."""
        self.cached = 0
        """Prompt tokens that its engine had."""
        self.produced = 0
        """Output tokens before it was last put off."""
        self.told = 0
        """Output tokens that observers were told of."""
