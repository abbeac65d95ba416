"""As much of an unfamiliar ``config.json`` as everything around a model needs: sizes, context, special tokens.

How such a model computes is its class's business, which reads the file by itself. Knows nothing of families.
"""

from __future__ import annotations

from collections.abc import Mapping

from .config import ModelConfig
from .fields import Fields

_ALSO_CALLED: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("d_model", "n_embd", "n_embed"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers", "decoder_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads", "decoder_attention_heads", "attention_heads"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "n_ctx", "seq_length"),
}


def read_outline(fields: Fields, architecture: str, model_type: str, unread: str) -> ModelConfig:
    """Read what can be read of any file.

    Args:
        fields: The file.
        architecture: Class that loads it.
        model_type: Family name.
        unread: Why its layers are not described.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` naming what is missing of even that.
    """
    hidden, layers = (fields.integer(_called(fields, key)) for key in ("hidden_size", "num_hidden_layers"))
    heads = fields.integer(_called(fields, "num_attention_heads"), 1)  # models that keep a state have none
    return ModelConfig(
        architecture=architecture,
        model_type=model_type,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=max(1, hidden // heads),
        intermediate_size=4 * hidden,
        hidden_act="",
        norm_eps=0.0,
        rope=None,
        tie_word_embeddings=False,
        windows=(None,) * layers,
        max_position_embeddings=fields.integer(_called(fields, "max_position_embeddings"), 2048),
        bos_token_id=fields.integer("bos_token_id", None, minimum=0),
        eos_token_ids=fields.integers("eos_token_id"),
        pad_token_id=fields.integer("pad_token_id", None, minimum=-1),
        dtype=fields.text("dtype", None) or fields.text("torch_dtype", None),
        unread=unread,
    )


def _called(fields: Fields, key: str) -> str:
    """What the file calls it."""
    return next((name for name in (key, *_ALSO_CALLED[key]) if fields.values.get(name) is not None), key)
