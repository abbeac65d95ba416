"""Streaming detokenisation: one choice's ids to text as they come, whole characters only.

Knows nothing of stop strings or events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sagellm_core.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers.decoders import DecodeStream

PRIMING = 6
"""Tokens of the prompt's end that are worth giving: a character is at most four bytes, each possibly a token."""
_LONGEST_WAIT = 12
"""Tokens without text after which what came is no character in the making, but bytes that are no text."""


class Detokenizer:
    """Turns the ids of one choice into text, piece by piece.

    The pieces join up to the text of all ids after the prompt: a character whose bytes are spread over several tokens
    comes with the last of them, and the space that a SentencePiece vocabulary writes before a word is kept.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        shown: frozenset[int] = frozenset(),
        prompt: Sequence[int] = (),
    ) -> None:
        """Begin after ``prompt``.

        Args:
            tokenizer: The model's.
            skip_special_tokens: Leave special tokens out of the text.
            shown: Special tokens that are text all the same.
            prompt: The ids that came before, or the last :data:`PRIMING` of them.
        """
        self._tokenizer = tokenizer
        # Where only some are left out, they are kept from the tokenizer, which knows all or none.
        self._skip = skip_special_tokens and not shown
        self._hidden = tokenizer.special_ids - shown if skip_special_tokens and shown else frozenset()
        self._context: list[int] = []
        self._waiting: list[int] = []
        self._stream = self._begin(prompt)

    def push(self, ids: Sequence[int]) -> str:
        """Take in the next ids; returns the text they complete, which may be empty."""
        return "".join([self._push(token_id) for token_id in ids])

    def flush(self) -> str:
        """Text of what was waiting for the rest of its character, once no more will come."""
        return self._give_up() if self._waiting else ""

    def _push(self, token_id: int) -> str:
        if token_id in self._hidden:
            return ""
        self._waiting.append(token_id)
        piece = _step(self._stream, self._tokenizer, token_id)
        if piece:
            self._context = [*self._context, *self._waiting][-PRIMING:]
            self._waiting.clear()
            return piece
        return self._give_up() if piece is None or len(self._waiting) > _LONGEST_WAIT else ""

    def _give_up(self) -> str:
        """Text of the waiting tokens as they are, and a new beginning after them."""
        before = self._tokenizer.decode(self._context, skip_special_tokens=self._skip)
        both = self._tokenizer.decode([*self._context, *self._waiting], skip_special_tokens=self._skip)
        if both.startswith(before):
            text = both[len(before) :]
        else:
            text = self._tokenizer.decode(self._waiting, skip_special_tokens=self._skip)
        self._stream = self._begin([*self._context, *self._waiting])
        return text

    def _begin(self, before: Sequence[int]) -> DecodeStream:
        from tokenizers.decoders import DecodeStream

        self._context = [token_id for token_id in before[-PRIMING:] if token_id not in self._hidden]
        self._waiting.clear()
        stream = DecodeStream(skip_special_tokens=self._skip)
        for token_id in self._context:
            if _step(stream, self._tokenizer, token_id) is None:
                # What came before is no text, so it cannot change how what follows reads.
                self._context.clear()
                return DecodeStream(skip_special_tokens=self._skip)
        return stream


def _step(stream: DecodeStream, tokenizer: Tokenizer, token_id: int) -> str | None:
    """The text that one more id completes; ``None`` when the stream cannot go on.

    That is the case where bytes that are no UTF-8 read differently beside new ones than they did before them.
    """
    try:
        return stream.step(tokenizer.backend, token_id) or ""
    except Exception:  # noqa: BLE001 -- the library raises bare Exception
        return None
