"""A renderer from a model's files: configuration, identity and tokenizer, and none of the weights.

Knows nothing of engines; opens each file once.
"""

from __future__ import annotations

from pathlib import Path

from sagellm_core.loading import open_checkpoint
from sagellm_core.loading.gguf_checkpoint import GGUFCheckpoint
from sagellm_core.tokenizer import load_tokenizer

from .renderer import PromptRenderer


def load_renderer(
    path: Path,
    *,
    block_size: int,
    max_model_len: int | None = None,
    load_format: str = "auto",
    seed: int = 0,
    tokenizer: Path | None = None,
    chat_template: str | None = None,
) -> PromptRenderer:
    """The renderer of a local model.

    Args:
        path: File or folder of the model.
        block_size: Tokens of a block of the engine's cache.
        max_model_len: Most tokens of prompt and output; the model's own context unless given.
        load_format: As :func:`sagellm_core.loading.open_checkpoint` has it.
        seed: Of dummy weights, which it identifies.
        tokenizer: Where the tokenizer is, if not beside the weights.
        chat_template: A template, or the path of one, in place of the checkpoint's own.

    Raises:
        SageLLMError: As :func:`open_checkpoint` and :func:`load_tokenizer`.
    """
    checkpoint = open_checkpoint(path, load_format, seed=seed, context=max_model_len)
    file = checkpoint.file if isinstance(checkpoint, GGUFCheckpoint) and tokenizer is None else None
    return PromptRenderer(
        tokenizer=load_tokenizer(tokenizer or path, chat_template=chat_template, file=file),
        model_key=checkpoint.key,
        vocab_size=checkpoint.config.vocab_size,
        max_model_len=max_model_len or checkpoint.config.max_position_embeddings,
        block_size=block_size,
    )
