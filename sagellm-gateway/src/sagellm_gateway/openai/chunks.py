"""Server-sent events of a streamed answer, made at little cost: what never changes is encoded once a stream.

Knows nothing of when events come or where they go.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from functools import cached_property
from json.encoder import encode_basestring as quoted

from sagellm_protocol import ChoiceEnd, DeltaEvent, EndEvent, StartEvent, StreamEvent, ToolCallDelta, Usage

from .head import Head
from .look import Look
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
        look: What the caller wants to see.
    """

    kind: str
    """OpenAI's ``object``."""

    def __init__(self, head: Head, choices: int, *, first: int = 0, include_usage: bool, look: Look) -> None:
        self._first = first
        self._choices = choices
        self._as_ids = look.as_ids
        self._look = look
        self._start: StartEvent | None = None
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
            self._start = event if isinstance(event, StartEvent) else None
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

    def _produced(self, delta: DeltaEvent) -> str:
        """The ids of a delta's tokens as a field, for callers that want them."""
        return f',"token_ids":{dumps(delta.token_ids)}' if self._look.token_ids else ""

    def _read(self) -> str:
        """The ids of the prompt's tokens as a field, for callers that want them."""
        if not self._look.token_ids or self._start is None:
            return ""
        return f',"prompt_token_ids":{dumps(self._start.prompt_token_ids)}'

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
        closing = f"}}]{self._read()}{self._closing[2:]}"
        return "".join(
            f'{self._opening}{index},"delta":{{"role":"assistant","content":""}},'
            f'"logprobs":null,"finish_reason":null{closing}'
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
        produced = self._produced(delta)
        if not fields and not (produced and delta.token_ids):
            return ""
        logprobs = dumps(chat_logprobs(delta.logprobs, self._as_ids)) if delta.logprobs else "null"
        return (
            f'{self._opening}{delta.index},"delta":{{{",".join(fields)}}},'
            f'"logprobs":{logprobs},"finish_reason":null{produced}{self._closing}'
        )

    def _finish(self, end: ChoiceEnd) -> str:
        return (
            f'{self._opening}{end.index},"delta":{{}},"logprobs":null,'
            f'"finish_reason":"{end.finish_reason.value}","stop_reason":{dumps(end.stop_reason)}{self._closing}'
        )


class CompletionChunks(Chunks):
    """Chunks of ``/v1/completions``."""

    kind = "text_completion"

    def __init__(self, head: Head, choices: int, *, first: int = 0, include_usage: bool, look: Look) -> None:
        super().__init__(head, choices, first=first, include_usage=include_usage, look=look)
        self._offsets = [0] * choices
        self._begun: set[int] = set()  # choices of which something was told

    def _open(self) -> str:
        return ""

    def _delta(self, delta: DeltaEvent) -> str:
        produced = self._produced(delta)
        begins = delta.index not in self._begun
        says = delta.text or delta.logprobs or (produced and delta.token_ids)
        if not says and not (begins and self._look.tells_prompt):
            return ""
        self._begun.add(delta.index)
        if begins:
            produced += self._read()
        return (
            f'{self._opening}{self._first + delta.index},"text":{quoted(delta.text)},'
            f'"logprobs":{self._logprobs(delta, begins)},"finish_reason":null{produced}{self._closing}'
        )

    def _logprobs(self, delta: DeltaEvent, begins: bool) -> str:
        start, offset = self._start, self._offsets[delta.index]
        if (
            begins
            and self._look.tells_prompt
            and start is not None
            and start.prompt_logprobs
            and start.prompt_token_ids
        ):
            first = start.prompt_token_ids[0], start.first_token or ""
            positions = [one for one in start.prompt_logprobs if one is not None]
            positions.extend(delta.logprobs or ())
            self._offsets[delta.index] = len(first[1]) + sum(len(position.token) for position in positions)
            return dumps(legacy_logprobs(positions, 0, self._as_ids, first))
        if not delta.logprobs:
            return "null"
        self._offsets[delta.index] = offset + sum(len(position.token) for position in delta.logprobs)
        return dumps(legacy_logprobs(delta.logprobs, offset, self._as_ids))

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
