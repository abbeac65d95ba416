"""The turns of a conversation as bodies write them, read into the contract.

Knows nothing of templates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from sagellm_protocol import Message, TextPart, ToolCall

from .body import Body, Refused, invalid, known_types


def _parts(content: Any) -> Any:
    """A string is one part of text."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise ValueError("must be a string or a list of parts")
    return content


class Text(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


Part = Annotated[Text, known_types("text")]


class CalledFunction(Body):
    """What was called, and with what."""

    name: str = Field(min_length=1, max_length=512)
    arguments: str


class Call(Body):
    """A call that the assistant made earlier."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Turn(Body):
    """One message of a request. Fields that only some roles have are refused on the others."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[list[Part], BeforeValidator(_parts)] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """vLLM's newer name of ``reasoning_content``."""

    # What answers carry, so that one may be sent back as it came.
    refused: ClassVar[Mapping[str, Refused]] = {
        "refusal": Refused((), "no model here writes refusals apart from its content"),
        "annotations": Refused(([],), "annotations are not read"),
        "audio": Refused((), "models here read text alone"),
        "function_call": Refused((), "was replaced by tool_calls"),
    }

    def message(self, where: str) -> Message:
        """As the contract has it.

        Args:
            where: Path of this turn in the body.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` for a field that the role lacks or does not have.
        """
        assistant, tool = self.role == "assistant", self.role == "tool"
        for field, allowed in (
            ("tool_calls", assistant),
            ("reasoning_content", assistant),
            ("reasoning", assistant),
            ("tool_call_id", tool),
        ):
            if getattr(self, field) and not allowed:
                raise invalid(f"{where}.{field}", f"a message of role {self.role!r} has none")
        if tool and self.tool_call_id is None:
            raise invalid(f"{where}.tool_call_id", "required: which call this answers")
        if self.content is None and not (assistant and (self.tool_calls or self.reasoning or self.reasoning_content)):
            raise invalid(f"{where}.content", "required")
        if self.reasoning and self.reasoning_content not in {None, self.reasoning}:
            raise invalid(f"{where}.reasoning", "is another name of reasoning_content; give one of them")
        return Message(
            role=self.role,
            content=tuple(TextPart(text=part.text) for part in self.content or ()),
            name=self.name,
            reasoning=self.reasoning_content if self.reasoning_content is not None else self.reasoning,
            tool_calls=tuple(
                ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
                for call in self.tool_calls or ()
            ),
            tool_call_id=self.tool_call_id,
        )
