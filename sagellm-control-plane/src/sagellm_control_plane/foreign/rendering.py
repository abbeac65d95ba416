"""Prompts for servers whose tokeniser is not here: as many tokens as a rule of thumb says, equal where texts are equal.

Pieces of four characters stand for tokens, so that routers find common prefixes and count what is queued. They are sent
nowhere.
"""

from __future__ import annotations

import zlib

from sagellm_protocol import RenderedPrompt, Request, block_hashes, root_hash

CHARACTERS = 4
BLOCK = 16


class Estimator:
    """Implements :class:`sagellm_protocol.Renderer`.

    Args:
        model_key: What the hashes of blocks begin with.
    """

    def __init__(self, model_key: str) -> None:
        self._model_key = model_key

    async def render(self, request: Request) -> RenderedPrompt:
        """Estimate."""
        text = request.prompt
        if request.messages is not None:
            text = "".join(f"{message.role}\n{message.text}\n" for message in request.messages)
        ids = request.prompt_token_ids or _pieces(text or "")
        root = root_hash(f"{self._model_key}:{request.model}", request.adapter, request.cache_salt)
        return RenderedPrompt(token_ids=ids, text=text, block_size=BLOCK, block_hashes=block_hashes(root, ids, BLOCK))


def _pieces(text: str) -> tuple[int, ...]:
    pieces = (text[start : start + CHARACTERS] for start in range(0, max(1, len(text)), CHARACTERS))
    return tuple(zlib.crc32(piece.encode(errors="replace")) for piece in pieces)
