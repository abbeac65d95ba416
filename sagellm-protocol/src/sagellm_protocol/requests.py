"""What may be asked of an engine: generation, embeddings, scores.

Knows nothing of API dialects (a gateway translates), nor of how a prompt becomes tokens.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from typing_extensions import Self

from ._wire import Ask
from .blocks import KVTransferTicket
from .sampling import SamplingParams, TokenId

Name = Annotated[str, Field(min_length=1, max_length=512)]
TRACEPARENT = r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
"""W3C Trace Context's ``traceparent``, version 00."""
RequestId = Annotated[str, Field(min_length=1, max_length=256)]


def _traceparent(value: str) -> str:
    # Not a pattern of pydantic's, whose expressions cannot look ahead.
    if re.fullmatch(TRACEPARENT, value) is None:
        raise ValueError(f"{value!r:.80} is no traceparent of W3C's version 00")
    return value


class TextPart(Ask):
    """A piece of a message's text."""

    type: Literal["text"] = "text"
    text: str

    @model_serializer(mode="wrap")
    def _say_the_type(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # It is a default, and those are left out of the wire; but readers choose between kinds of parts by it.
        return {"type": self.type, **serialize(self)}


ContentPart = TextPart
"""A typed part of a message; a part of any other ``type`` is refused by name."""


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class ToolCall(Ask):
    """A call that the assistant made."""

    id: str
    name: Name
    arguments: str
    """JSON text, as the model wrote it."""


class Message(Ask):
    """One turn of a conversation. ``content`` given as a string becomes one text part."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[tuple[ContentPart, ...], BeforeValidator(_as_parts)] = ()
    reasoning: str | None = None
    """The assistant's earlier reasoning, for templates that want it back."""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """All text parts, joined."""
        return "".join(part.text for part in self.content)


class ToolDefinition(Ask):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    """JSON Schema of the arguments."""
    strict: bool = False
    """A wish. Arguments follow the schema wherever a call is forced, and nowhere else."""


class NamedTool(Ask):
    """The one tool that must be called."""

    name: Name


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class StructuredOutput(Ask):
    """A form that the output must have; exactly one of the fields is set."""

    json_schema: dict[str, JsonValue] | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] | None = Field(default=None, min_length=1)
    grammar: str | None = None
    """A grammar in Lark, or in GBNF, which is known by its ``::=``."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in ("json_schema", "regex", "choice", "grammar") if getattr(self, name) is not None] + [
            "json_object"
        ] * self.json_object
        if len(given) != 1:
            raise ValueError(
                "give exactly one of json_schema, json_object, regex, choice, grammar"
                f" (got {', '.join(given) or 'none'})"
            )
        return self


class SLO(Ask):
    """What the caller hopes for, in milliseconds. A scheduler may use it; ``deadline_ms`` is enforced."""

    ttft_ms: float | None = Field(default=None, gt=0)
    tpot_ms: float | None = Field(default=None, gt=0)
    deadline_ms: float | None = Field(default=None, gt=0)
    """Time remaining when this message was made. Past it the request ends as expired."""


class KVTransfer(Ask):
    """Where a request's KV blocks come from, or where they shall go."""

    role: Literal["produce", "consume"]
    ticket: KVTransferTicket | None = None

    @model_validator(mode="after")
    def _consumer_has_a_ticket(self) -> Self:
        if (self.role == "consume") != (self.ticket is not None):
            raise ValueError("a consumer needs a ticket and a producer makes one")
        return self


class _Routed(Ask):
    """What every request carries, whatever it asks for."""

    request_id: RequestId
    """Unique among the requests in flight at whoever receives it; each hop mints its own for each attempt."""
    trace_id: str | None = None
    """Stays the same across hops and attempts."""
    traceparent: Annotated[str, AfterValidator(_traceparent)] | None = None
    """Span that this request is a part of, in W3C's form."""
    model: Name
    priority: int = Field(default=0, ge=-(2**31), lt=2**31)
    """Lower is served sooner."""
    slo: SLO | None = None
    user: str | None = None
    session_id: str | None = None
    adapter: str | None = None
    """A LoRA adapter of the model, by name; ``model`` may name it as well."""
    requires: tuple[str, ...] = ()
    """Features this request depends on; whoever does not know one refuses the request by that name."""


class Request(_Routed):
    """A request to generate text. Exactly one of ``prompt``, ``prompt_token_ids`` and ``messages`` is set."""

    prompt: str | None = None
    prompt_token_ids: tuple[TokenId, ...] | None = Field(default=None, min_length=1)
    messages: tuple[Message, ...] | None = Field(default=None, min_length=1)
    add_special_tokens: bool = True
    """Let the tokeniser add what it usually adds to a ``prompt`` (a beginning-of-text token)."""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    """Go on writing the last message instead of opening a new one."""
    chat_template: str | None = Field(default=None, min_length=1)
    """A template in place of the model's own; only for engines that trust their callers with it."""
    chat_template_kwargs: dict[str, JsonValue] = Field(default={})
    reasoning_effort: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """How much to reason before the answer (``low``, ``medium``, ``high``, …), for templates that read it."""
    tools: tuple[ToolDefinition, ...] = ()
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    structured: StructuredOutput | None = None
    # Made without validation, which would build validators while modules load.
    sampling: SamplingParams = SamplingParams.model_construct()
    echo: bool = False
    """Put the prompt's text before the output's."""
    return_token_ids: bool = False
    """Report the prompt's token ids; those of the output are reported anyway."""
    stream: bool = False
    cache_salt: str | None = None
    kv_transfer: KVTransfer | None = None

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        given = [name for name in ("prompt", "prompt_token_ids", "messages") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of prompt, prompt_token_ids, messages (got {', '.join(given) or 'none'})"
            )
        for name in ("chat_template", "reasoning_effort"):
            if getattr(self, name) is not None and self.messages is None:
                raise ValueError(f"{name} needs messages: a prompt goes through no template")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message needs add_generation_prompt=false")
        wanted = self.tool_choice.name if isinstance(self.tool_choice, NamedTool) else None
        if wanted is not None and wanted not in [tool.name for tool in self.tools]:
            known = ", ".join(tool.name for tool in self.tools) or "none"
            raise ValueError(f"tool_choice names {wanted!r}, which is not among the tools ({known})")
        if self.tool_choice == "required" and not self.tools:
            raise ValueError("tool_choice is required, and there are no tools")
        if self.sampling.beam_width is not None:
            self._check_search()
        return self

    def _check_search(self) -> None:
        if self.stream:
            raise ValueError("beam search knows its best sequences at the end: it needs stream=false")
        if self.structured is not None or self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool):
            raise ValueError("beam search follows no form: leave out structured, and tool_choice at 'auto' or 'none'")


class EmbedRequest(_Routed):
    """A request for one vector an input."""

    inputs: tuple[str | tuple[TokenId, ...], ...] = Field(min_length=1)
    dimensions: int | None = Field(default=None, ge=1)
    """Keep this many leading dimensions, for models trained so (Matryoshka), and normalise again."""
    normalize: bool = True
    truncate: bool = False
    """Cut inputs that are too long instead of refusing them."""


class ScoreRequest(_Routed):
    """A request for one relevance score a document."""

    query: str = Field(min_length=1)
    documents: tuple[str, ...] = Field(min_length=1)
    truncate: bool = False
