"""A tiny random model that speaks printable ASCII, one token a character, as a folder to be loaded."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from fake_model import VOCAB, write_tokenizer


def write_tiny(folder: Path, *special: str, context: int = 512, hidden_size: int = 32, seed: int = 5) -> Path:
    """Save it there, with some special tokens beside."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB + len(special),
        hidden_size=hidden_size,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return write_tokenizer(folder, *special)
