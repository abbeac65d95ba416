"""Whether bringing a block back takes less time than computing it: by what both were measured to take here.

Means that forget (weight 0.2 for the newest). Nothing is assumed: what was never measured is tried, and of what does
not pay one in sixteen is tried all the same, lest a bad moment be remembered for ever.
"""

from __future__ import annotations

from collections.abc import Iterable

_WEIGHT = 0.2
_TRY_EVERY = 16


class Economy:
    """What was measured so far."""

    def __init__(self) -> None:
        self._token_s: float | None = None
        self._block_s: dict[str, float] = {}
        self._declined = 0

    def computed(self, tokens: int, seconds: float) -> None:
        """A step of prompts took so long."""
        self._token_s = _mixed(self._token_s, seconds / tokens)

    def loaded(self, medium: str, blocks: int, seconds: float) -> None:
        """Blocks were brought back from a medium, reading and copying together."""
        self._block_s[medium] = _mixed(self._block_s.get(medium), seconds / blocks)

    def pays(self, media: Iterable[str], block_size: int) -> bool:
        """Whether to load blocks rather than to compute their tokens.

        Args:
            media: Where each of them is.
            block_size: Tokens of a block.
        """
        load_s = compute_s = 0.0
        for medium in media:
            if self._token_s is None or medium not in self._block_s:
                return True
            load_s += self._block_s[medium]
            compute_s += self._token_s * block_size
        if load_s < compute_s:
            return True
        self._declined += 1
        return self._declined % _TRY_EVERY == 0


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)
