"""The form of GPT-OSS: messages with a header, each on a channel and perhaps to a recipient.

``analysis`` is reasoning, ``final`` the answer, ``commentary`` what is said beside calls; a message to ``functions.f``
calls ``f``, whatever its channel. Source: OpenAI's description of the harmony response format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sagellm_core.front.grammar import GrammarWriter, alternatives
from sagellm_core.front.parsing.json_text import read_value
from sagellm_core.front.parsing.pieces import Thought
from sagellm_core.front.parsing.source import MalformedError, Markers, Reading, Tell

from .base import ToolParser
from .schemas import Schema
from .written import check_name

_START, _CHANNEL, _MESSAGE, _CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_ROLE = "assistant"
_HEADER = Markers(_MESSAGE, *_ENDS)
_BODY = Markers(*_ENDS, _START, _CHANNEL)
_FUNCTION = re.compile(r"[^\s<]{1,512}")
_RECIPIENT = re.compile(rf"\bto=functions\.({_FUNCTION.pattern})")
_ADDRESSED = re.compile(r"\bto=[^\s<]")
_CUT_OFF = re.compile(r"(<\|\w+\|>|[\w.=\s-]){1,256}(<\|?\w*\|?)?")
_ON_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


class Harmony(ToolParser):
    """Takes messages apart by their headers.

    Args:
        schemas: As any parser's.
        calls: Tell messages to functions as calls; else as content.
        reasoning: Tell the analysis channel as reasoning; else as content.
    """

    markers = (_START, _CHANNEL, _MESSAGE, _CONSTRAIN, *_ENDS)

    def __init__(
        self, schemas: Mapping[str, Schema] | None = None, *, calls: bool = True, reasoning: bool = False
    ) -> None:
        super().__init__(schemas)
        self._calls = calls
        self._reasoning = reasoning

    @classmethod
    def forced(cls, tools: Mapping[str, Schema], writer: GrammarWriter, *, several: bool) -> str:
        """Messages to functions. The mark that ends one ends the turn too, where it is a token that ends texts."""
        for name in tools:
            check_name(name, _FUNCTION, "function")
        calls = [
            f"{writer.literal(_CHANNEL, f'commentary to=functions.{name} ', _CONSTRAIN, 'json', _MESSAGE)}"
            f" {writer.schema(schema)}"
            for name, schema in tools.items()
        ]
        call = writer.rule(alternatives(calls))
        return f"{call} ({writer.literal('<|call|>', _START, _ROLE)} {call})*" if several else call

    @staticmethod
    def answered(form: str, writer: GrammarWriter) -> str:
        """An expression for a form on the final channel."""
        typed = f"({writer.literal(' ', _CONSTRAIN, 'json')})?"  # as it is trained to say of JSON
        return f"{writer.literal(_CHANNEL, 'final')} {typed} {writer.literal(_MESSAGE)} {form}"

    @staticmethod
    def turn(messages: str, writer: GrammarWriter, prompt: str, *, reasons: bool, within: bool) -> str:
        """An expression for a turn that ends in some messages.

        Args:
            messages: An expression for them, as :meth:`forced` and :meth:`answered` write it.
            writer: Takes further rules.
            prompt: The end of what the model reads.
            reasons: It may think before.
            within: The prompt ends within a message, which they follow.
        """
        opening = writer.literal(_START, _ROLE)
        if within:
            head = f"{writer.literal('<|end|>')} {opening}"
        else:
            head = "" if prompt.rstrip().endswith(_START + _ROLE) else f"({opening})?"
        if reasons:
            thought = f"{writer.literal(_CHANNEL, 'analysis', _MESSAGE)} {writer.up_to('<|end|>')} {opening}"
            head += f" ({thought})*"
        return f"{head} {messages}"

    def _read_all(self) -> Reading[None]:
        source = self._source
        # The prompt ends within a header, where a recipient may stand; what follows without a header is the answer.
        yield from source.space()
        if (yield from source.comes("to=")):
            yield from self._message("")
        while True:
            marker = yield from source.until(_BODY, self._tell)
            self.thinking = False
            if marker is None:
                return
            if marker not in _ENDS:
                yield from self._message(marker)

    def _message(self, marker: str) -> Reading[None]:
        source = self._source
        parts = [marker]
        ends_in = yield from source.until(_HEADER, parts.append)
        header = "".join(parts)
        if ends_in != _MESSAGE:
            if not _CUT_OFF.fullmatch(header):
                self._tell(header)  # no header, after all
            return
        function = _RECIPIENT.search(header)
        if function is not None and self._calls:
            yield from self._call_of(function[1])
        elif self._reasoning and _is_reasoning(header):
            self.thinking = True
            yield from self._body(self._think)
        else:
            yield from self._body(self._tell)

    def _call_of(self, function: str) -> Reading[None]:
        source = self._source
        yield from source.space()
        self._begin(function)
        if (yield from source.comes("{")):
            try:
                yield from read_value(source, self._argue)
            except MalformedError:
                if not (yield from source.peek()):
                    return
        else:
            parts: list[str] = []
            yield from self._body(parts.append)
            self._argue("".join(parts).strip() or "{}")
        self._finish()

    def _body(self, tell: Tell) -> Reading[None]:
        """Read to where the message ends; what ends it is left for who comes next."""
        marker = yield from self._source.until(_BODY, tell)
        if marker is not None:
            self._source.unread(marker)

    def _think(self, text: str) -> None:
        self._say(Thought(text))


def _is_reasoning(header: str) -> bool:
    """Whether a message is analysis, or to a tool of the model's own: what nobody here runs is part of its thinking."""
    channel = _ON_CHANNEL.search(header)
    if channel is not None and channel[1] == "analysis":
        return True
    return _ADDRESSED.search(header) is not None and _RECIPIENT.search(header) is None
