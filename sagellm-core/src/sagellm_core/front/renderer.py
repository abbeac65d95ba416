"""From a request to the tokens its model will read: chat template, tokens, truncation, length and hashes of blocks.

Knows nothing of engines: it needs neither torch nor a running core, and one serves any number of requests at once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sagellm_core.tokenizer import ChatTemplates, Tokenizer
from sagellm_protocol.blocks import block_hashes, root_hash
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.interfaces import RenderedPrompt
from sagellm_protocol.requests import Message, Request, ToolDefinition

from .text import check_text

OFFLOAD_CHARACTERS = 4096
"""Prompts from this size on are rendered in a thread: shorter ones take less time than handing them over."""
_EFFORT = "reasoning_effort"


def _as_named(request: Request) -> str | None:
    return request.adapter


@dataclass(frozen=True)
class PromptRenderer:
    """Renders requests for one model; implements :class:`sagellm_protocol.interfaces.Renderer`.

    Attributes:
        tokenizer: The model's.
        model_key: Identity of the weights, as block hashes use it.
        vocab_size: Rows of the model's embedding table; ids beyond it cannot be read.
        max_model_len: Most tokens of prompt and output together.
        block_size: Tokens of a block.
        trust_request_chat_template: Run templates that requests bring.
        adapter_key: Identity of the adapter a request asks for, as block hashes use it.
    """

    tokenizer: Tokenizer
    model_key: str
    vocab_size: int
    max_model_len: int
    block_size: int
    trust_request_chat_template: bool = False
    adapter_key: Callable[[Request], str | None] = _as_named

    async def render(self, request: Request) -> RenderedPrompt:
        """Apply the chat template, tokenise, truncate and hash.

        Raises:
            SageLLMError: As :meth:`render_now`.
        """
        if _size(request) < OFFLOAD_CHARACTERS:
            return self.render_now(request)
        # The tokenizer lets go of the interpreter while it works, so the event loop goes on.
        return await asyncio.to_thread(self.render_now, request)

    def render_now(self, request: Request) -> RenderedPrompt:
        """:meth:`render` for callers without an event loop.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` for what the template or vocabulary refuses; ``UNSUPPORTED`` for messages
                or tools that the model has no template for; ``CONTEXT_LENGTH_EXCEEDED``, naming both lengths.
        """
        self._check_asked(request)
        text, ids = self._prompt(request)
        limit = request.sampling.truncate_prompt_tokens
        if limit is not None and len(ids) > limit:
            ids = ids[-limit:]
            # What the model reads is no longer the text that was given.
            text = None if text is None else self.tokenizer.decode(ids, skip_special_tokens=False)
        self._check_length(request, len(ids))
        root = root_hash(self.model_key, self.adapter_key(request), request.cache_salt)
        return RenderedPrompt(
            token_ids=tuple(ids),
            text=text,
            block_size=self.block_size,
            block_hashes=block_hashes(root, ids, self.block_size),
        )

    def check(self, request: Request, token_ids: Sequence[int]) -> None:
        """Refuse a prompt rendered elsewhere for what :meth:`render_now` would have refused.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` for ids beyond the vocabulary; ``CONTEXT_LENGTH_EXCEEDED``.
        """
        self._check_asked(request)
        self._check_ids(token_ids, "prompt_token_ids")
        self._check_length(request, len(token_ids))

    def _prompt(self, request: Request) -> tuple[str | None, list[int]]:
        if request.prompt_token_ids is not None:
            ids = list(request.prompt_token_ids)
            self._check_ids(ids, "prompt_token_ids")
            return None, ids
        if request.messages is not None:
            # The template writes the special tokens that belong there; the tokenizer must not add its own.
            text, special = self._chat_text(request, request.messages), False
        else:
            text, special = request.prompt or "", request.add_special_tokens
        param = "prompt" if request.messages is None else "messages"
        check_text(text, param)
        ids = self.tokenizer.encode(text, add_special_tokens=special)
        if not ids:
            raise SageLLMError(ErrorCode.INVALID_REQUEST, "the prompt is empty: it makes no tokens", param)
        self._check_ids(ids, param)
        return text, ids

    def _chat_text(self, request: Request, messages: Sequence[Message]) -> str:
        chat = self._templates(request)
        tools = [] if request.tool_choice == "none" else [_plain_tool(tool) for tool in request.tools]
        # Newer models' word for the system role; templates that do not know it would drop or refuse the message.
        system = "developer" if chat.mentions("developer") else "system"
        as_text = any(message.tool_calls for message in messages) and chat.takes_arguments_as_text(
            tools=bool(tools), special_tokens=self.tokenizer.special_tokens
        )
        return chat.render(
            [_plain_message(message, system, as_text=as_text) for message in messages],
            tools=tools,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            special_tokens=self.tokenizer.special_tokens,
            arguments=self._arguments(request, chat),
        )

    def _templates(self, request: Request) -> ChatTemplates:
        if request.chat_template is None:
            return self.tokenizer.chat
        if not self.trust_request_chat_template:
            raise SageLLMError(
                ErrorCode.UNSUPPORTED,
                "templates are programs, and this engine runs none that comes with a request; leave it out, or start"
                " the engine with trust_request_chat_template",
                "chat_template",
            )
        check_text(request.chat_template, "chat_template")
        return ChatTemplates({"default": request.chat_template})

    def _arguments(self, request: Request, chat: ChatTemplates) -> Mapping[str, Any]:
        given, effort = request.chat_template_kwargs, request.reasoning_effort
        if effort is None:
            return given
        if not chat.reads(_EFFORT):
            raise SageLLMError(
                ErrorCode.UNSUPPORTED,
                f"this model's chat template does not read {_EFFORT}; leave it out",
                _EFFORT,
            )
        if given.get(_EFFORT, effort) != effort:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"{_EFFORT} is {effort!r}, and chat_template_kwargs say {given[_EFFORT]!r}; give one of them",
                _EFFORT,
            )
        return {**given, _EFFORT: effort}

    def _check_ids(self, ids: Iterable[int], param: str) -> None:
        largest = max(ids, default=0)
        if largest >= self.vocab_size:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"token id {largest} is beyond this model's vocabulary of {self.vocab_size}",
                param,
            )

    def _check_asked(self, request: Request) -> None:
        sampling = request.sampling
        for field in ("tools", "chat_template_kwargs"):
            if request.messages is None and getattr(request, field):
                raise SageLLMError(
                    ErrorCode.INVALID_REQUEST,
                    f"{field} are for the chat template, and a prompt goes through none; give messages instead",
                    field,
                )
        if request.cache_salt is not None:
            check_text(request.cache_salt, "cache_salt")
        self._check_ids(sampling.logit_bias or (), "sampling.logit_bias")
        self._check_ids(sampling.allowed_token_ids or (), "sampling.allowed_token_ids")
        self._check_ids(sampling.stop_token_ids, "sampling.stop_token_ids")

    def _check_length(self, request: Request, length: int) -> None:
        wanted = request.sampling.max_tokens or request.sampling.min_tokens
        room = self.max_model_len - length
        if room < max(1, wanted):
            output = f"; with {wanted} tokens of output that makes {length + wanted}" if wanted and room > 0 else ""
            raise SageLLMError(
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                f"the prompt has {length} tokens{output}, but this model's context holds {self.max_model_len}, of which"
                f" at least one must be left for output; shorten the prompt, lower"
                f" {'min_tokens' if request.sampling.max_tokens is None and wanted else 'max_tokens'} or set"
                " truncate_prompt_tokens",
                "messages" if request.messages is not None else "prompt",
            )


def _size(request: Request) -> int:
    """Roughly how many characters there are to work on."""
    if request.prompt is not None:
        return len(request.prompt)
    if request.prompt_token_ids is not None:
        return len(request.prompt_token_ids)
    return sum(len(part.text) for message in request.messages or () for part in message.content) + 512 * len(
        request.tools
    )


def _plain_message(message: Message, system: str, *, as_text: bool) -> dict[str, Any]:
    """A message as templates know it: OpenAI's form, with a call's arguments as a value where they may be one."""
    plain: dict[str, Any] = {
        "role": system if message.role == "developer" else message.role,
        "content": message.text,
    }
    if message.reasoning is not None:
        # Templates read it under either name.
        plain["reasoning_content"] = plain["thinking"] = message.reasoning
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments if as_text else _value(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return plain


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text  # what a model once wrote; a conversation must not end over it
    return value if isinstance(value, dict) else text


def _plain_tool(tool: ToolDefinition) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = (
        dict(tool.parameters) if tool.parameters is not None else {"type": "object", "properties": {}}
    )
    return {"type": "function", "function": function}
