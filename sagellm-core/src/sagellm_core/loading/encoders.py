"""What the ``config.json`` of an encoder says that a decoder's does not.

Knows nothing of pooling, which stands in files of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .config import EncoderConfig
from .errors import unsupported
from .fields import Fields

if TYPE_CHECKING:
    from .config import ModelConfig

_CLASSIFIER = "ForSequenceClassification"
_ACTIVATIONS: Mapping[str, bool] = {"Sigmoid": True, "Identity": False}
"""Whether a cross-encoder's score goes through a sigmoid, by the last word of what its file names."""


def bert(fields: Fields, config: ModelConfig) -> dict[str, Any]:
    """BERT's: positions from 0, and two types of token."""
    return _encoder(fields, config, first_position=0)


def roberta(fields: Fields, config: ModelConfig) -> dict[str, Any]:
    """RoBERTa's: the rows up to that of padding are no positions of a token."""
    first = (1 if config.pad_token_id is None else config.pad_token_id) + 1
    return {
        **_encoder(fields, config, first_position=first),
        "max_position_embeddings": config.max_position_embeddings - first,
    }


def _encoder(fields: Fields, config: ModelConfig, first_position: int) -> dict[str, Any]:
    position = fields.text("position_embedding_type", "absolute")
    if position != "absolute":
        raise unsupported(fields.source, f"position_embedding_type {position!r} is not offered; absolute is")
    for key in ("is_decoder", "add_cross_attention"):
        if fields.flag(key, False):
            raise unsupported(
                fields.source, f"{key} is not offered for {config.model_type}, which is read as an encoder"
            )
    scored = config.architecture.endswith(_CLASSIFIER)
    if scored and (labels := _labels(fields)) != 1:
        raise unsupported(
            fields.source, f"a classifier of {labels} labels is not offered; one label, which is a score, is"
        )
    return {
        **dict.fromkeys(("qkv_bias", "attention_out_bias", "mlp_bias"), True),
        "encoder": EncoderConfig(
            token_types=fields.integer("type_vocab_size", 2),
            first_position=first_position,
            scores=scored,
            sigmoid=_sigmoid(fields),
        ),
    }


def _labels(fields: Fields) -> int:
    named = fields.table("id2label")
    if named is not None:
        return len(named.values)
    return fields.integer("num_labels", 2)


def _sigmoid(fields: Fields) -> bool:
    table = fields.table("sentence_transformers")
    named = table.text("activation_fn", None) if table is not None else None
    if named is None:
        named = fields.text("sbert_ce_default_activation_function", "Sigmoid")
    found = _ACTIVATIONS.get(named.rpartition(".")[2])
    if found is None:
        raise unsupported(fields.source, f"activation {named!r} is not offered; known are {', '.join(_ACTIVATIONS)}")
    return found
