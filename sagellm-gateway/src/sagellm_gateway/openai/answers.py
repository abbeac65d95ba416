"""Whole answers, as OpenAI's JSON.

Knows nothing of streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sagellm_protocol import Output, Response

from .head import Head
from .shapes import chat_logprobs, legacy_logprobs, prompt_logprobs, total, usage_shape


def chat_answer(head: Head, response: Response, as_ids: bool) -> dict[str, Any]:
    """An answer of ``/v1/chat/completions``.

    Args:
        head: Of the answer.
        response: What the engine answered.
        as_ids: Name tokens in logprobs by id.
    """
    answer = {
        **head.fields("chat.completion"),
        "choices": [
            {
                "index": output.index,
                "message": _message(output),
                "logprobs": None if output.logprobs is None else chat_logprobs(output.logprobs, as_ids),
                "finish_reason": output.finish_reason.value,
                "stop_reason": output.stop_reason,
            }
            for output in response.outputs
        ],
        "usage": usage_shape(response.usage),
    }
    if response.prompt_logprobs is not None:
        answer["prompt_logprobs"] = prompt_logprobs(response.prompt_logprobs)
    return answer


def completion_answer(head: Head, responses: Sequence[Response], as_ids: bool) -> dict[str, Any]:
    """An answer of ``/v1/completions``: the choices of each prompt in turn, numbered throughout."""
    choices: list[dict[str, Any]] = []
    for response in responses:
        first = len(choices)
        for output in response.outputs:
            choice = {
                "index": first + output.index,
                "text": output.text,
                "logprobs": None if output.logprobs is None else legacy_logprobs(output.logprobs, 0, as_ids),
                "finish_reason": output.finish_reason.value,
                "stop_reason": output.stop_reason,
            }
            if response.prompt_logprobs is not None:
                choice["prompt_logprobs"] = prompt_logprobs(response.prompt_logprobs)
            choices.append(choice)
    usage = total(response.usage for response in responses)
    return {**head.fields("text_completion"), "choices": choices, "usage": usage_shape(usage)}


def _message(output: Output) -> dict[str, Any]:
    # OpenAI leaves content null where the answer is calls alone.
    content = output.text if output.text or not output.tool_calls else None
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if output.reasoning is not None:
        message["reasoning_content"] = output.reasoning
    if output.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in output.tool_calls
        ]
    return message
