"""What a request's output must follow, as a grammar: the form it asks for, calls that it forces, reasoning before both.

Knows the model's form of output, and nothing of how a grammar is followed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.requests import NamedTool, Request, StructuredOutput, ToolDefinition

from .grammar import GrammarWriter, alternatives, regex
from .text import check_text

_AFTER_REASONING = r"/[ \n\r\t]{1,8}/"
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Constraint:
    """A grammar, and who asked for it.

    Attributes:
        grammar: Its text.
        param: Field of the request that is at fault if the grammar is none.
    """

    grammar: str
    param: str


@dataclass(frozen=True)
class Reasoning:
    """Reasoning that may stand before what is constrained.

    Attributes:
        opens, closes: Its tags.
        opened: The prompt has opened it, so there is some; else there may be.
    """

    opens: str
    closes: str
    opened: bool

    def before(self, answer: str, writer: GrammarWriter) -> str:
        """Free text up to the closing tag, then ``answer``."""
        thought = f"{writer.up_to(self.closes)} {writer.rule(_AFTER_REASONING)}?"
        if self.opened:
            return f"{thought} {answer}"
        return f"({writer.literal(self.opens)} {thought})? {answer}"


def forces_call(request: Request) -> bool:
    """Whether some tool must be called."""
    return request.tool_choice == "required" or isinstance(request.tool_choice, NamedTool)


def may_call(request: Request) -> bool:
    """Whether a tool may be called."""
    return bool(request.tools) and request.tool_choice != "none"


def chosen_tools(request: Request) -> Sequence[ToolDefinition]:
    """The tools that may be called."""
    if isinstance(request.tool_choice, NamedTool):
        return [tool for tool in request.tools if tool.name == request.tool_choice.name]
    return request.tools


def arguments_of(tool: ToolDefinition) -> Mapping[str, Any]:
    """The schema of a call's arguments. A tool without one takes none, as with OpenAI's API."""
    # A call's arguments are an object even where the schema does not say so.
    return _NO_ARGUMENTS if tool.parameters is None else {"type": "object", **tool.parameters}


def form_of(form: StructuredOutput, writer: GrammarWriter) -> str:
    """The form that a request asks for.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for a grammar in BNF that cannot be read.
    """
    if form.json_schema is not None:
        return writer.schema(form.json_schema)
    if form.json_object:
        return writer.schema({"type": "object"})
    if form.regex is not None:
        return writer.lark(f"start: {regex(form.regex)}")
    if form.choice is not None:
        plain = GrammarWriter()  # a choice is text, whatever it spells
        return alternatives([plain.literal(choice) or '""' for choice in form.choice])
    assert form.grammar is not None
    return writer.lark(_as_lark(form.grammar))


def finished(start: str, writer: GrammarWriter, param: str) -> Constraint:
    """The whole.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for text that no encoding carries.
    """
    grammar = writer.text(start)
    check_text(grammar, param)
    return Constraint(grammar, param)


def need_grammars() -> None:
    """Refuse grammars where nothing can compile them: a platform may have no build of the library.

    Raises:
        SageLLMError: ``NOT_INSTALLED``.
    """
    if find_spec("llguidance") is None:
        raise SageLLMError(
            ErrorCode.NOT_INSTALLED,
            "structured output and forced calls need llguidance, which is not installed here: pip install llguidance",
            "structured",
        )


def _as_lark(grammar: str) -> str:
    if "::=" not in grammar:
        return grammar
    need_grammars()
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return any_to_lark(grammar)
    except Exception as error:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"the grammar, read as GBNF, is none: {error}", "structured.grammar"
        ) from error
