"""Reasoning of Granite 3.2 and 3.3: two headings, or two pairs of tags.

Source: the chat templates of IBM's Granite 3.2 and 3.3, which ask the model for these words.
"""

from __future__ import annotations

from sagellm_core.front.parsing.source import Markers, Reading

from .base import ReasoningParser


class Granite(ReasoningParser):
    """Between headings."""

    opens, closes = "Here is my thought process:", "Here is my response:"


class ThinkResponse(ReasoningParser):
    """Between tags named ``think``; the answer may stand between tags named ``response``."""

    opens, closes = "<think>", "</think>"

    @classmethod
    def markers(cls) -> tuple[str, ...]:
        """Strings of the form that vocabularies may have as special tokens."""
        return (*super().markers(), "<response>", "</response>")

    def _answer(self) -> Reading[None]:
        if (yield from self._source.accept("<response>")):
            yield from self._source.until(Markers("</response>"), self._tell)
        yield from super()._answer()
