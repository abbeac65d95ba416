"""Whole answers, as OpenAI's JSON.

Knows nothing of streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sagellm_protocol import Output, Response

from .head import Head
from .look import Look
from .shapes import chat_logprobs, echoed_logprobs, legacy_logprobs, prompt_logprobs, total, usage_shape


def chat_answer(head: Head, response: Response, look: Look) -> dict[str, Any]:
    """An answer of ``/v1/chat/completions``.

    Args:
        head: Of the answer.
        response: What the engine answered.
        look: What the caller wants to see.
    """
    answer = {
        **head.fields("chat.completion"),
        "choices": [
            {
                "index": output.index,
                "message": _message(output),
                "logprobs": None if output.logprobs is None else chat_logprobs(output.logprobs, look.as_ids),
                "finish_reason": output.finish_reason.value,
                "stop_reason": output.stop_reason,
                **({"token_ids": output.token_ids} if look.token_ids else {}),
            }
            for output in response.outputs
        ],
        "usage": usage_shape(response.usage),
    }
    if response.prompt_logprobs is not None:
        answer["prompt_logprobs"] = prompt_logprobs(response.prompt_logprobs)
    if look.token_ids:
        answer["prompt_token_ids"] = response.prompt_token_ids
    return answer


def completion_answer(head: Head, responses: Sequence[Response], look: Look) -> dict[str, Any]:
    """An answer of ``/v1/completions``: the choices of each prompt in turn, numbered throughout."""
    choices: list[dict[str, Any]] = []
    for response in responses:
        outputs = response.outputs if look.best is None else sorted(response.outputs, key=_by_token)[: look.best]
        for output in outputs:
            choice: dict[str, Any] = {
                "index": len(choices),
                "text": output.text,
                "logprobs": _logprobs(response, output, look) if look.logprobs else None,
                "finish_reason": output.finish_reason.value,
                "stop_reason": output.stop_reason,
            }
            if look.prompt_logprobs and response.prompt_logprobs is not None:
                choice["prompt_logprobs"] = prompt_logprobs(response.prompt_logprobs)
            if look.token_ids:
                choice["token_ids"] = output.token_ids
                choice["prompt_token_ids"] = response.prompt_token_ids
            choices.append(choice)
    usage = total(response.usage for response in responses)
    return {**head.fields("text_completion"), "choices": choices, "usage": usage_shape(usage)}


def _logprobs(response: Response, output: Output, look: Look) -> dict[str, Any] | None:
    produced = output.logprobs or ()
    if look.tells_prompt and response.prompt_logprobs is not None and response.prompt_token_ids:
        first = response.prompt_token_ids[0], response.first_token or ""
        return echoed_logprobs(response.prompt_logprobs, first, produced, look.as_ids)
    return None if output.logprobs is None else legacy_logprobs(produced, 0, look.as_ids)


def _by_token(output: Output) -> float:
    """A key that puts the likeliest by token first, as OpenAI's ``best_of`` has it."""
    positions = output.logprobs or ()
    return -sum(position.logprob for position in positions) / max(1, len(positions))


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
