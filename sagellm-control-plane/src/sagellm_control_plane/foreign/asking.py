"""Requests in OpenAI's words, for a server of a kind. What it does not take is refused by name."""

from __future__ import annotations

from typing import Any

from sagellm_protocol import ErrorCode, Message, NamedTool, Request, SageLLMError, SamplingParams, ToolDefinition
from sagellm_protocol.features import refuse_unknown

from .kinds import Kind

_FEATURES = {"logit_bias", "logprobs", "prompt_logprobs", "allowed_token_ids", "bad_words", "beam_width"}
"""Sampling parameters that are features, and refused as such."""
_ONLY_DEFAULTS = ("add_special_tokens", "add_generation_prompt", "continue_final_message", "return_token_ids")


def body_of(request: Request, kind: Kind, offered: frozenset[str]) -> dict[str, Any]:
    """The body of ``/v1/chat/completions``, or of ``/v1/completions`` where there are no messages.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for what the server does not take.
    """
    refuse_unknown(request, offered)
    for name in _ONLY_DEFAULTS:
        # Of a prompt alone: a chat's template has the special tokens that it needs.
        if name == "add_special_tokens" and request.messages is not None:
            continue
        if getattr(request, name) != type(request).model_fields[name].default:
            raise _unsupported(kind, name, getattr(request, name))
    body: dict[str, Any] = {"model": request.model, "stream": True, "stream_options": {"include_usage": True}}
    body.update(_sampling(request.sampling, kind))
    if request.messages is not None:
        body["messages"] = [_message(message) for message in request.messages]
        _add_tools(body, request)
        if request.chat_template_kwargs:
            if not kind.template_kwargs:
                raise _unsupported(kind, "chat_template_kwargs", request.chat_template_kwargs)
            body["chat_template_kwargs"] = request.chat_template_kwargs
    elif request.prompt_token_ids is not None:
        if not kind.tokens:
            raise _unsupported(kind, "prompt_token_ids", "tokens")
        body["prompt"] = list(request.prompt_token_ids)
    else:
        body["prompt"] = request.prompt
    _add_form(body, request, kind)
    return body


def _sampling(sampling: SamplingParams, kind: Kind) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, info in type(sampling).model_fields.items():
        value = getattr(sampling, name)
        if value == info.default or name in _FEATURES - set(kind.sampling):
            continue
        if name not in kind.sampling:
            raise _unsupported(kind, f"sampling.{name}", value)
        told[kind.sampling[name]] = list(value) if isinstance(value, tuple) else value
    # Their default is not ours everywhere.
    told.setdefault("temperature", sampling.temperature)
    return told


def _message(message: Message) -> dict[str, Any]:
    told: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.name is not None:
        told["name"] = message.name
    if message.tool_call_id is not None:
        told["tool_call_id"] = message.tool_call_id
    if message.reasoning is not None:
        told["reasoning_content"] = message.reasoning
    if message.tool_calls:
        told["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return told


def _add_tools(body: dict[str, Any], request: Request) -> None:
    if not request.tools:
        return
    body["tools"] = [{"type": "function", "function": _function(tool)} for tool in request.tools]
    choice = request.tool_choice
    if isinstance(choice, NamedTool):
        body["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif choice != "auto":
        body["tool_choice"] = choice
    if not request.parallel_tool_calls:
        body["parallel_tool_calls"] = False


def _function(tool: ToolDefinition) -> dict[str, Any]:
    return {name: value for name, value in vars(tool).items() if value not in (None, False)}


def _add_form(body: dict[str, Any], request: Request, kind: Kind) -> None:
    form = request.structured
    if form is None:
        return
    if request.messages is None or not (form.json_object or form.json_schema is not None):
        raise _unsupported(kind, "structured", "a form other than JSON in a chat")
    body["response_format"] = (
        {"type": "json_object"}
        if form.json_object
        else {"type": "json_schema", "json_schema": {"name": "answer", "schema": form.json_schema, "strict": True}}
    )


def _unsupported(kind: Kind, name: str, value: object) -> SageLLMError:
    return SageLLMError(
        ErrorCode.UNSUPPORTED, f"a server of kind {kind.name} does not take {name} (got {value!r:.80})", name
    )
