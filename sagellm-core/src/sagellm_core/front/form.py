"""The form a model writes its calls and its reasoning in: which parsers read it, by its template and vocabulary.

Knows the signs of each family, and nothing of how its text is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from sagellm_core.tokenizer import Tokenizer
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.interfaces import RenderedPrompt
from sagellm_protocol.requests import NamedTool, Request

from .constraint import Constraint, Reasoning, arguments_of, chosen_tools, finished, forces_call, form_of, may_call
from .grammar import GrammarWriter
from .output import OutputParser
from .parsing.stage import Stage
from .reasoning import REASONING_PARSERS, ReasoningParser
from .tools import TOOL_PARSERS, Harmony, ToolParser

NONE = "none"
"""Stands for no parser."""
TOOL_SIGNS: Sequence[tuple[tuple[str, ...], str | None]] = (
    (("<|channel|>",), "harmony"),
    (("<minimax:tool_call>",), "minimax"),
    (("<seed:tool_call>",), "seed_oss"),
    (("<function=", "<parameter="), "qwen3_coder"),
    # Tags around JSON, or what is no form of those here.
    (("<function=",), None),
    (("<arg_key>",), "glm"),
    (("<tool_call>",), "hermes"),
    (("[TOOL_CALLS]",), "mistral"),
    (("<|tool_calls_section_begin|>",), "kimi"),
    (("<｜tool▁calls▁begin｜>", "```json"), "deepseek"),
    (("<｜tool▁calls▁begin｜>",), "deepseek_v31"),
    (("<|tool_call|>",), "granite"),
    (("func_name1(",), "pythonic"),
    (("<|python_start|>",), "pythonic"),
    (("<|python_tag|>",), "llama3_json"),
    (("<|start_header_id|>",), "llama3_json"),
)
"""What a template that knows tools says of their form: the first signs that are all there; without any it is JSON."""
REASONING_SIGNS: Sequence[tuple[tuple[str, ...], str | None]] = (
    (("<|channel|>",), "harmony"),
    (("[THINK]",), "mistral"),
    (("<seed:think>",), "seed_oss"),
    (("Here is my thought process:",), "granite"),
    (("<think>", "<response>"), "think_response"),
    (("<think>",), "think"),
)
"""What a template or a vocabulary says of how the model reasons; without any of it, it does not."""
_TAIL = 16
"""Tokens at a prompt's end that show whether it opens reasoning."""


@dataclass(frozen=True)
class Parsing:
    """How the text of one request's choices is taken apart.

    Attributes:
        shown: Special tokens that are part of the form, and must be text therefore.
        stages: Makes a choice's parsers.
        new_id: Makes a call's id.
        parallel: Whether there may be more than one call.
        reasons: Whether reasoning is told apart.
    """

    shown: frozenset[int]
    stages: Callable[[], Sequence[Stage]]
    new_id: Callable[[], str]
    parallel: bool
    reasons: bool

    def parser(self) -> OutputParser:
        """The parser of one choice."""
        return OutputParser(self.stages(), self.new_id, parallel=self.parallel)


@dataclass(frozen=True)
class OutputForm:
    """The form of one model.

    Attributes:
        tokenizer: The model's.
        tools: Reads its calls, where it knows tools.
        reasoning: Reads its reasoning, where it reasons.
    """

    tokenizer: Tokenizer
    tools: type[ToolParser] | None = None
    reasoning: type[ReasoningParser] | type[Harmony] | None = None

    def parsing(self, request: Request, prompt: RenderedPrompt) -> Parsing | None:
        """How a request's output is taken apart; not at all where nothing can be found in it.

        Args:
            request: As asked. Only conversations are answered with calls and reasoning.
            prompt: As the model reads it: it may have opened the reasoning.
        """
        if request.messages is None:
            return None
        calls = may_call(request) and self.tools is not None
        makers: list[Callable[[], Stage]] = []
        markers: tuple[str, ...] = ()
        if self.reasoning is Harmony or self.tools is Harmony:
            reasons = self.reasoning is Harmony
            called = calls and self.tools is Harmony
            makers.append(partial(Harmony, calls=called, reasoning=reasons))
            markers += Harmony.markers
        if self.reasoning is not None and issubclass(self.reasoning, ReasoningParser):
            makers.append(partial(self.reasoning, opened=self._opened(self.reasoning, request, prompt)))
            markers += self.reasoning.markers()
        if calls and self.tools is not None and self.tools is not Harmony:
            makers.append(partial(self.tools, {tool.name: arguments_of(tool) for tool in request.tools}))
            markers += self.tools.markers
        if not makers:
            return None
        return Parsing(
            shown=self._special(markers),
            stages=lambda: [make() for make in makers],
            new_id=(self.tools or ToolParser).new_id,
            parallel=request.parallel_tool_calls,
            reasons=self.reasoning is not None,
        )

    def constraint(self, request: Request, prompt: RenderedPrompt) -> Constraint | None:
        """What a request's output must follow; ``None`` where nothing is asked of it.

        A form is asked of the answer, so calls that are forced leave nothing to it, and those that may be made stand in
        its place.

        Raises:
            SageLLMError: ``UNSUPPORTED`` for what the model's own form leaves no room for; ``INVALID_REQUEST``.
        """
        writer = GrammarWriter(self._special_id)
        talks = request.messages is not None
        calls = form = None
        if talks and may_call(request) and (forces_call(request) or request.structured is not None):
            calls = self._forced_calls(request, writer)
        if request.structured is not None and not (talks and forces_call(request)):
            form = form_of(request.structured, writer)
        if calls is None and form is None:
            return None
        if talks and Harmony in (self.reasoning, self.tools):
            start = self._in_channels(calls, form, request, prompt, writer)
        else:
            start = _either(calls, form, writer)
        if talks and self.reasoning is not None and issubclass(self.reasoning, ReasoningParser):
            reasoning = self.reasoning
            opened = self._opened(reasoning, request, prompt)
            start = Reasoning(reasoning.opens, reasoning.closes, opened).before(start, writer)
        return finished(start, writer, "tools" if forces_call(request) else "structured")

    def _forced_calls(self, request: Request, writer: GrammarWriter) -> str:
        if self.tools is None:
            raise SageLLMError(
                ErrorCode.UNSUPPORTED,
                "this model's calls cannot be read, so none can be forced and none can stand beside a form; leave the"
                " tools out, or make tool_choice none",
                "tool_choice" if forces_call(request) else "structured",
            )
        several = request.parallel_tool_calls and not isinstance(request.tool_choice, NamedTool)
        return self.tools.forced(
            {tool.name: arguments_of(tool) for tool in chosen_tools(request)}, writer, several=several
        )

    def _in_channels(
        self, calls: str | None, form: str | None, request: Request, prompt: RenderedPrompt, writer: GrammarWriter
    ) -> str:
        """What is asked for, in messages on channels, with free reasoning before it."""
        turn = partial(Harmony.turn, writer=writer, prompt=self._tail(prompt), reasons=self.reasoning is Harmony)
        if request.continue_final_message:
            # Calls end the message that is continued, and a form is of what continues it.
            return _either(None if calls is None else turn(calls, within=True), form, writer)
        answer = None if form is None else Harmony.answered(form, writer)
        return turn(_either(calls, answer, writer), within=False)

    def _special_id(self, marker: str) -> int | None:
        token = self.tokenizer.backend.token_to_id(marker)
        return token if token in self.tokenizer.special_ids else None

    def _opened(self, reasoning: type[ReasoningParser], request: Request, prompt: RenderedPrompt) -> bool:
        if request.continue_final_message and request.messages and reasoning.within(request.messages[-1].text):
            return True
        return self._tail(prompt).rstrip().endswith(reasoning.opens)

    def _tail(self, prompt: RenderedPrompt) -> str:
        return self.tokenizer.decode(prompt.token_ids[-_TAIL:], skip_special_tokens=False)

    def _special(self, markers: Sequence[str]) -> frozenset[int]:
        found = (self.tokenizer.backend.token_to_id(marker) for marker in markers)
        return self.tokenizer.special_ids.intersection(token for token in found if token is not None)


def choose_form(
    tokenizer: Tokenizer, *, tool_parser: str | None = None, reasoning_parser: str | None = None
) -> OutputForm:
    """The form of a model.

    Args:
        tokenizer: The model's, with its chat templates.
        tool_parser: Name of a parser, or ``none``; chosen by the model's own signs when absent.
        reasoning_parser: Likewise.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for a name that is none, listing those that are.
    """
    check_names(tool_parser, reasoning_parser)
    knows_tools = tokenizer.chat.reads("tools")
    if tool_parser is None:
        tool_parser = _sign(tokenizer, TOOL_SIGNS, "json") if knows_tools else NONE
    if reasoning_parser is None:
        reasoning_parser = _sign(tokenizer, REASONING_SIGNS, None)
    return OutputForm(
        tokenizer,
        TOOL_PARSERS.get(tool_parser or NONE) if knows_tools else None,
        REASONING_PARSERS.get(reasoning_parser or NONE),
    )


def check_names(tool_parser: str | None, reasoning_parser: str | None) -> None:
    """Refuse a parser that there is not.

    Raises:
        SageLLMError: ``INVALID_REQUEST``, listing those that there are.
    """
    _check("tool_parser", tool_parser, TOOL_PARSERS)
    _check("reasoning_parser", reasoning_parser, REASONING_PARSERS)


def _check(param: str, name: str | None, table: Mapping[str, object]) -> None:
    if name is not None and name != NONE and name not in table:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"there is no {param} {name!r}; there are {', '.join(table)}, and {NONE}; left out, the model's template"
            " and vocabulary decide",
            param,
        )


def _sign(
    tokenizer: Tokenizer, signs: Sequence[tuple[tuple[str, ...], str | None]], otherwise: str | None
) -> str | None:
    for words, name in signs:
        if all(map(tokenizer.chat.mentions, words)):
            return name
    for words, name in signs:
        if all(tokenizer.backend.token_to_id(word) is not None for word in words):
            return name
    return otherwise


def _either(calls: str | None, form: str | None, writer: GrammarWriter) -> str:
    """Calls or an answer of a form, of which at least one is asked for."""
    if calls is None or form is None:
        one = form if calls is None else calls
        assert one is not None
        return one
    return writer.rule(f"{calls} | {form}")
