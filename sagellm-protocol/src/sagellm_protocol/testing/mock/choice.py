"""One choice of a request: which token comes next, what text that makes, and when it ends.

Knows nothing of blocks, time or other choices.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field

from sagellm_protocol.blocks import BlockHash
from sagellm_protocol.events import ChoiceEnd, FinishReason
from sagellm_protocol.sampling import SamplingParams

from .text import END_OF_TEXT, encode

_END_OF_TEXT_STRING = "</s>"


@dataclass
class Choice:
    """State of one choice.

    Attributes:
        index: Its number.
        sampling: The request's parameters; the mock's distribution has one token, so temperature and the like change
            nothing.
        script: What it says, over and over until it ends.
        natural_end: Tokens after which it ends by itself.
        limit: Most tokens it may produce.
        tokens: What it has produced.
        blocks: Blocks it holds of its own, behind the prompt's full ones.
        hashes: Hashes of the first of those, which are full.
        end: How it ended, once it has.
    """

    index: int
    sampling: SamplingParams
    script: str
    natural_end: int
    limit: int
    tokens: list[int] = field(default_factory=list)
    blocks: int = 0
    hashes: list[BlockHash] = field(default_factory=list)
    end: ChoiceEnd | None = None

    def __post_init__(self) -> None:
        self._script = encode(self.script)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def produce(self) -> str:
        """Produce one token, or none where none is wanted; returns the text that may now be shown."""
        if not self.limit:
            return self.cut()
        sampling, token = self.sampling, self._next()
        may_stop = len(self.tokens) >= sampling.min_tokens
        self.tokens.append(token)
        if may_stop and token in sampling.stop_token_ids:
            shown = self._flush() + (self._spell(token) if sampling.include_stop_str_in_output else "")
            return self._finish(FinishReason.STOP, shown, token)
        if token == END_OF_TEXT and not sampling.ignore_eos:
            return self._finish(FinishReason.STOP, self._flush() + self._spell(token))
        shown = self._show(self._spell(token), look=may_stop)
        if self.end is None and len(self.tokens) >= self.limit:
            return self._finish(FinishReason.LENGTH, shown + self._flush())
        return shown

    def cut(self) -> str:
        """End it for want of room; returns the text that was held back."""
        return self._finish(FinishReason.LENGTH, self._flush())

    def _next(self) -> int:
        count, sampling = len(self.tokens), self.sampling
        may_stop = count >= sampling.min_tokens
        if count >= self.natural_end and may_stop and not sampling.ignore_eos:
            return END_OF_TEXT
        banned = () if may_stop else sampling.stop_token_ids
        ahead = (self._script[(count + step) % len(self._script)] for step in range(len(self._script)))
        # A script made of nothing but banned tokens leaves a space to say.
        return next((token for token in ahead if token not in banned), ord(" "))

    def _spell(self, token: int) -> str:
        if token == END_OF_TEXT:
            return "" if self.sampling.skip_special_tokens else _END_OF_TEXT_STRING
        return self._decoder.decode(bytes((token,)))

    def _show(self, piece: str, *, look: bool) -> str:
        stops = self.sampling.stop
        if not look or not stops:
            return piece
        text = self._held + piece
        found = [(text.find(stop), stop) for stop in stops if stop in text]
        if found:
            at, stop = min(found)
            return self._finish(
                FinishReason.STOP,
                text[: at + len(stop) if self.sampling.include_stop_str_in_output else at],
                stop,
            )
        hold = _could_become(text, stops)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def _flush(self) -> str:
        text, self._held = self._held + self._decoder.decode(b"", final=True), ""
        return text

    def _finish(self, reason: FinishReason, shown: str, stop_reason: str | int | None = None) -> str:
        self.end = ChoiceEnd(index=self.index, finish_reason=reason, stop_reason=stop_reason)
        return shown


def _could_become(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of ``text`` with which a stop string begins."""
    longest = max(len(stop) for stop in stops) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
