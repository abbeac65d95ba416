"""Chat templates: a conversation to the text a model was trained on, through the Jinja template its authors ship.

Templates come with checkpoints, so they run in Jinja's immutable sandbox, see plain values only, and have bounds on
what they may produce. Names and behaviour that templates rely on are those ``transformers`` gives them.

Knows nothing of tokens.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sagellm_protocol.errors import ErrorCode, SageLLMError

if TYPE_CHECKING:
    from jinja2 import Template

MAX_RENDERED = 64 << 20
"""Most characters a template may produce."""
RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "tokenize"})
"""Names that a caller's own template arguments may not take."""
# The space at its end goes where a template trims messages, which shows that the message's own spaces would have gone.
_TAG = "\x02continue here\x03 "


def _with_call(arguments: Any) -> list[dict[str, Any]]:
    function = {"name": "f", "arguments": arguments}
    # Mistral's templates want an id of nine characters.
    call = {"id": "probe0000", "type": "function", "function": function}
    return [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "x", "tool_call_id": "probe0000", "name": "f"},
    ]


_CALL = _with_call({"probe": "x"})
_CALL_AS_TEXT = _with_call('{"probe": "x"}')


@dataclass(frozen=True)
class ChatTemplates:
    """The templates of one model, by name; ``default`` unless the checkpoint names several.

    Attributes:
        sources: Template texts.
    """

    sources: Mapping[str, str] = field(default_factory=dict)
    _compiled: dict[str, tuple[Template, frozenset[str]]] = field(default_factory=dict, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        special_tokens: Mapping[str, str] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Text of a conversation.

        Args:
            messages: Turns, each with ``role`` and ``content``, as plain values.
            tools: Function definitions in OpenAI's form.
            add_generation_prompt: Open the assistant's turn at the end.
            continue_final_message: End within the last message, so that the model goes on writing it.
            special_tokens: What the template may call by name (``bos_token``, …).
            arguments: Further values for the template; one it does not read is refused.

        Raises:
            SageLLMError: ``UNSUPPORTED`` for a model without a template, or tools that its template does not know;
                ``INVALID_REQUEST`` with the template's own words when it refuses the conversation.
        """
        template, names = self._template(tools=bool(tools))
        arguments = arguments or {}
        _check_arguments(arguments, names)
        if tools and "tools" not in names:
            raise SageLLMError(
                ErrorCode.UNSUPPORTED, "this model's chat template does not know tools; leave them out", "tools"
            )
        turns = [dict(message) for message in messages]
        if continue_final_message:
            turns[-1]["content"] = turns[-1].get("content", "") + _TAG
        values: dict[str, Any] = {
            **(special_tokens or {}),
            **arguments,
            "messages": turns,
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        text = _run(template, values)
        return _cut(text) if continue_final_message else text

    def mentions(self, word: str) -> bool:
        """Whether any template spells ``word`` out."""
        return any(word in source for source in self.sources.values())

    def reads(self, name: str) -> bool:
        """Whether any template reads a value of that name from its caller; one that is not sound reads nothing."""
        return any(name in names for names in map(self._names, self.sources))

    def takes_arguments_as_text(self, *, tools: bool, special_tokens: Mapping[str, str] | None = None) -> bool:
        """Whether the template wants a call's arguments as JSON text, where most want the value itself.

        Found out by showing it a call: one that wants text fails over a value, or writes it as Python would.
        """
        template, _ = self._template(tools=tools)
        values = {**(special_tokens or {}), "messages": _CALL, "tools": None, "documents": None}
        try:
            text = _run(template, {**values, "add_generation_prompt": False})
        except SageLLMError:
            text = None
        if text is not None:
            return "'probe'" in text and '"probe"' not in text
        try:
            _run(template, {**values, "messages": _CALL_AS_TEXT, "add_generation_prompt": False})
        except SageLLMError:
            return False  # it is something else that it does not like
        return True

    def _names(self, template: str) -> frozenset[str]:
        try:
            return self._compiled_template(template)[1]
        except SageLLMError:
            return frozenset()  # each request that needs it hears what is wrong

    def _template(self, *, tools: bool) -> tuple[Template, frozenset[str]]:
        if not self.sources:
            raise SageLLMError(
                ErrorCode.UNSUPPORTED,
                "this model has no chat template, so it takes a prompt rather than messages; a template can be given"
                " when the engine is started",
                "messages",
            )
        name = "tool_use" if tools and "tool_use" in self.sources else "default"
        if name not in self.sources:
            raise SageLLMError(
                ErrorCode.UNSUPPORTED,
                f"none of this model's chat templates is {name!r}: {', '.join(self.sources)}",
                "messages",
            )
        return self._compiled_template(name)

    def _compiled_template(self, name: str) -> tuple[Template, frozenset[str]]:
        with self._lock:
            if name not in self._compiled:
                self._compiled[name] = _compile(self.sources[name])
            return self._compiled[name]


def _check_arguments(arguments: Mapping[str, Any], names: frozenset[str]) -> None:
    for name in arguments:
        if name in RESERVED:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"{name!r} has a field of its own in a request; it cannot be a template argument",
                "chat_template_kwargs",
            )
        if name not in names:
            known = ", ".join(sorted(names - RESERVED)) or "none"
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"this model's chat template does not read {name!r}; the names it reads are: {known}",
                "chat_template_kwargs",
            )


def _run(template: Template, values: Mapping[str, Any]) -> str:
    from jinja2 import TemplateError

    pieces: list[str] = []
    size = 0
    try:
        for piece in template.generate(values):
            size += len(piece)
            if size > MAX_RENDERED:
                raise SageLLMError(
                    ErrorCode.INVALID_REQUEST,
                    f"the chat template produced more than {MAX_RENDERED} characters",
                    "messages",
                )
            pieces.append(piece)
    except TemplateError as error:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"the chat template refuses: {error.message}", "messages"
        ) from error
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # What an expression in the template raised: the conversation has a shape its authors did not think of.
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"the chat template cannot render these messages: {error}", "messages"
        ) from error
    return "".join(pieces)


def _cut(text: str) -> str:
    """``text`` up to the mark that the last message ends with."""
    mark = _TAG.rstrip()
    at = text.rfind(mark)
    if at < 0:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            "the last message cannot be continued: this model's chat template leaves it out or rewrites it",
            "continue_final_message",
        )
    kept = text[:at]
    return kept if text.startswith(_TAG, at) else kept.rstrip()


def _compile(source: str) -> tuple[Template, frozenset[str]]:
    """The runnable template, and the names it reads from its caller."""
    from jinja2 import TemplateError, meta

    environment = _environment()
    try:
        tree = environment.parse(source)
        return environment.from_string(source), frozenset(
            meta.find_undeclared_variables(tree).difference(environment.globals)
        )
    except TemplateError as error:
        raise SageLLMError(
            ErrorCode.UNSUPPORTED, f"this model's chat template is not sound: {error.message}", "messages"
        ) from error


def _environment() -> Any:
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks the assistant's part for training; here its body is simply rendered."""

        tags = {"generation"}  # noqa: RUF012 -- Jinja's own protocol

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Environment(ImmutableSandboxedEnvironment):
        # A multiplied string or a power is the one way to fill memory between two pieces of output.
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" and (abs(left) > MAX_RENDERED or abs(right) > 64):
                raise SecurityError(f"{left} ** {right} is beyond what a template may compute")
            if operator == "*":
                for sequence, times in ((left, right), (right, left)):
                    if hasattr(sequence, "__len__") and isinstance(times, int) and len(sequence) * times > MAX_RENDERED:
                        raise SecurityError(f"a sequence repeated {times} times is beyond what a template may make")
            return super().call_binop(context, operator, left, right)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(form: str) -> str:
        return dt.datetime.now().strftime(form)  # noqa: DTZ005 -- the date where the user is

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own filter escapes for HTML, which models never saw.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


_NAMED = re.compile(r"[\w-]+", re.ASCII)


def is_template_name(name: object) -> bool:
    """Whether a checkpoint may call a template so."""
    return isinstance(name, str) and _NAMED.fullmatch(name) is not None
