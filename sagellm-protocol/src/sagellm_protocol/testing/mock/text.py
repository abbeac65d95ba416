"""The mock's language: one token a byte, a chat template of one line a message, answers that say they are made up.

Knows nothing of time or blocks.
"""

from __future__ import annotations

from sagellm_protocol.blocks import block_hashes, root_hash
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.interfaces import RenderedPrompt
from sagellm_protocol.requests import Message, Request

END_OF_TEXT = 256
"""The one special token; ids below it are bytes."""
VOCAB_SIZE = 257
_EXCERPT = 40


def encode(text: str) -> tuple[int, ...]:
    """Token ids of a text: its UTF-8 bytes."""
    return tuple(text.encode("utf-8", "surrogatepass"))


def decode(token_ids: tuple[int, ...]) -> str:
    """Text of token ids; what is not UTF-8 becomes the replacement character."""
    return bytes(token for token in token_ids if token < END_OF_TEXT).decode("utf-8", "replace")


def answer(prompt: tuple[int, ...]) -> str:
    """What the mock says when it was not told what to say."""
    end = " ".join(decode(prompt[-4 * _EXCERPT :]).split())[-_EXCERPT:]
    return f"mock answer to {len(prompt)} tokens ending in: {end}"


class MockRenderer:
    """Turns requests into bytes.

    Args:
        model_key: Identity that block hashes start from.
        block_size: Tokens of a block.
        max_model_len: Most tokens of prompt and output together.
    """

    def __init__(self, model_key: str, block_size: int, max_model_len: int) -> None:
        self._model_key = model_key
        self._block_size = block_size
        self._max_model_len = max_model_len

    async def render(self, request: Request) -> RenderedPrompt:
        """Apply the template, encode, truncate and hash.

        Raises:
            SageLLMError: ``CONTEXT_LENGTH_EXCEEDED`` naming both lengths; ``INVALID_REQUEST`` for an empty prompt or a
                token outside the vocabulary; ``UNSUPPORTED`` for arguments to the template, which takes none.
        """
        if request.chat_template_kwargs:
            raise SageLLMError(
                ErrorCode.UNSUPPORTED,
                f"the mock's chat template takes no arguments (got {', '.join(request.chat_template_kwargs)})",
                "chat_template_kwargs",
            )
        text, token_ids = self._tokens(request)
        keep = request.sampling.truncate_prompt_tokens
        if keep is not None and keep < len(token_ids):
            token_ids, text = token_ids[-keep:], None
        self._check_length(request, len(token_ids))
        root = root_hash(self._model_key, request.adapter, request.cache_salt)
        return RenderedPrompt(
            token_ids=token_ids,
            text=text,
            block_size=self._block_size,
            block_hashes=block_hashes(root, token_ids, self._block_size),
        )

    def _tokens(self, request: Request) -> tuple[str | None, tuple[int, ...]]:
        if request.prompt_token_ids is not None:
            largest = max(request.prompt_token_ids)
            if largest >= VOCAB_SIZE:
                raise SageLLMError(
                    ErrorCode.INVALID_REQUEST,
                    f"token {largest} is outside the vocabulary of {VOCAB_SIZE} tokens",
                    "prompt_token_ids",
                )
            return None, request.prompt_token_ids
        if request.messages is not None:
            text = "".join(_line(message) for message in request.messages)
            if request.add_generation_prompt:
                text += "assistant: "
            elif request.continue_final_message:
                text = text.removesuffix("\n")
        else:
            text = request.prompt or ""
        if not text:
            raise SageLLMError(ErrorCode.INVALID_REQUEST, "the prompt is empty; give at least one token", "prompt")
        return text, encode(text)

    def _check_length(self, request: Request, prompt: int) -> None:
        wanted = request.sampling.max_tokens
        if prompt + (wanted or 1) > self._max_model_len:
            output = "one token of output" if wanted is None else f"max_tokens={wanted}"
            raise SageLLMError(
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                f"the prompt has {prompt} tokens, which with {output} is more than the model's context of"
                f" {self._max_model_len}; shorten the prompt or lower max_tokens",
                "sampling.max_tokens" if prompt < self._max_model_len else None,
            )


def _line(message: Message) -> str:
    calls = "".join(f" {call.name}({call.arguments})" for call in message.tool_calls)
    return f"{message.role}: {message.text}{calls}\n"
