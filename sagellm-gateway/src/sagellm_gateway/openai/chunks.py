"""Server-sent events of a streamed answer, made at little cost: what never changes is encoded once a stream.

Knows nothing of when events come or where they go.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from functools import cached_property
from json.encoder import encode_basestring as quoted

from sagellm_protocol import ChoiceEnd, DeltaEvent, EndEvent, StreamEvent, ToolCallDelta, Usage

from .head import Head
from .shapes import chat_logprobs, legacy_logprobs, usage_shape

DONE = b"data: [DONE]\n\n"


def dumps(value: object) -> str:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class Chunks(ABC):
    """Writes the events of one request as chunks.

    Args:
        head: Of the whole answer.
        choices: How many the request has.
        first: Index of its first choice in the answer.
        include_usage: Whether the stream ends with its usage; all other chunks then say ``"usage":null``.
        as_ids: Name tokens in logprobs by id.
    """

    kind: str
    """OpenAI's ``object``."""

    def __init__(self, head: Head, choices: int, *, first: int = 0, include_usage: bool, as_ids: bool) -> None:
        self._first = first
        self._choices = choices
        self._as_ids = as_ids
        self._head = head
        self._closing = '}],"usage":null}\n\n' if include_usage else "}]}\n\n"
        self._opened = False

    @cached_property
    def _shared(self) -> str:
        return f"data: {dumps(self._head.fields(self.kind))[:-1]}"

    @cached_property
    def _opening(self) -> str:
        return f'{self._shared},"choices":[{{"index":'

    def _prepare(self) -> None:
        """Encode what never changes; done while the engine works rather than before it does, or once it has."""
        self._opening  # noqa: B018 - kept from here on

    def of(self, event: StreamEvent) -> bytes:
        """The chunks that an event becomes; none for one that says nothing new."""
        if isinstance(event, DeltaEvent):
            text = self._delta(event)
        elif isinstance(event, EndEvent):
            text = "".join(self._finish(choice) for choice in event.choices)
        else:
            self._prepare()
            return b""
        if text and not self._opened:
            self._opened = True
            text = self._open() + text
        # Text of an engine may hold half a surrogate pair, which UTF-8 cannot write.
        return text.encode("utf-8", "replace")

    def usage(self, usage: Usage) -> bytes:
        """The chunk that counts the tokens."""
        return f'{self._shared},"choices":[],"usage":{dumps(usage_shape(usage))}}}\n\n'.encode()

    @abstractmethod
    def _open(self) -> str: ...

    @abstractmethod
    def _delta(self, delta: DeltaEvent) -> str: ...

    @abstractmethod
    def _finish(self, end: ChoiceEnd) -> str: ...


class ChatChunks(Chunks):
    """Chunks of ``/v1/chat/completions``."""

    kind = "chat.completion.chunk"

    def _open(self) -> str:
        return "".join(
            f'{self._opening}{index},"delta":{{"role":"assistant","content":""}},'
            f'"logprobs":null,"finish_reason":null{self._closing}'
            for index in range(self._choices)
        )

    def _delta(self, delta: DeltaEvent) -> str:
        fields = []
        if delta.reasoning:
            fields.append(f'"reasoning_content":{quoted(delta.reasoning)}')
        if delta.text or delta.logprobs:
            fields.append(f'"content":{quoted(delta.text)}')
        if delta.tool_calls:
            fields.append(f'"tool_calls":{dumps([_call(piece) for piece in delta.tool_calls])}')
        if not fields:
            return ""
        logprobs = dumps(chat_logprobs(delta.logprobs, self._as_ids)) if delta.logprobs else "null"
        return (
            f'{self._opening}{delta.index},"delta":{{{",".join(fields)}}},'
            f'"logprobs":{logprobs},"finish_reason":null{self._closing}'
        )

    def _finish(self, end: ChoiceEnd) -> str:
        return (
            f'{self._opening}{end.index},"delta":{{}},"logprobs":null,'
            f'"finish_reason":"{end.finish_reason.value}","stop_reason":{dumps(end.stop_reason)}{self._closing}'
        )


class CompletionChunks(Chunks):
    """Chunks of ``/v1/completions``."""

    kind = "text_completion"

    def __init__(self, head: Head, choices: int, *, first: int = 0, include_usage: bool, as_ids: bool) -> None:
        super().__init__(head, choices, first=first, include_usage=include_usage, as_ids=as_ids)
        self._offsets = [0] * choices

    def _open(self) -> str:
        return ""

    def _delta(self, delta: DeltaEvent) -> str:
        if not delta.text and not delta.logprobs:
            return ""
        logprobs = "null"
        if delta.logprobs:
            offset = self._offsets[delta.index]
            self._offsets[delta.index] = offset + sum(len(position.token) for position in delta.logprobs)
            logprobs = dumps(legacy_logprobs(delta.logprobs, offset, self._as_ids))
        return (
            f'{self._opening}{self._first + delta.index},"text":{quoted(delta.text)},'
            f'"logprobs":{logprobs},"finish_reason":null{self._closing}'
        )

    def _finish(self, end: ChoiceEnd) -> str:
        return (
            f'{self._opening}{self._first + end.index},"text":"","logprobs":null,'
            f'"finish_reason":"{end.finish_reason.value}","stop_reason":{dumps(end.stop_reason)}{self._closing}'
        )


def _call(piece: ToolCallDelta) -> dict[str, object]:
    function: dict[str, object] = {"arguments": piece.arguments}
    if piece.name is not None:
        function = {"name": piece.name, **function}
    opening = {} if piece.id is None else {"id": piece.id, "type": "function"}
    return {"index": piece.index, **opening, "function": function}
