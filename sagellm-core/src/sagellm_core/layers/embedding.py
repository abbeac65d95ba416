"""What enters the first layer: a token's row of the table, scaled, with its position's row where positions are learned.

Knows nothing of rotary embedding, which acts in attention.
"""

from __future__ import annotations

from dataclasses import dataclass

from .linear import Embedding, Tensor


@dataclass(frozen=True)
class InputEmbedding:
    """Token and position embedding.

    Attributes:
        tokens: The table of tokens, V rows.
        scale: Multiplies its rows.
        positions: A table of learned positions, if any.
    """

    tokens: Embedding
    scale: float = 1.0
    positions: Embedding | None = None

    @property
    def plain(self) -> bool:
        """Whether rows of the table enter as they are."""
        return self.scale == 1.0 and self.positions is None

    def __call__(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Embed ``ids`` ``[T]`` at ``positions`` ``[T]``: ``[T, E]``."""
        x = self.tokens(ids)
        if self.scale != 1.0:
            x = x * self.scale
        if self.positions is not None:
            x = x + self.positions(positions)
        return x
