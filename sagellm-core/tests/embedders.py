"""Tiny random models that make vectors or scores, saved as their own libraries would, each with a tokenizer.

Every parameter is random, as in :mod:`tiny`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

import tiny
from fake_model import CHARACTERS, write_tokenizer

LETTERS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, **{c: i for i, c in enumerate(CHARACTERS, start=4)}}
POSITIONS = 40
_SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "initializer_range": 0.15,
    "pad_token_id": 0,
}
# Rows of the table of positions up to that of padding stand for no position.
_ROBERTA = {**_SIZES, "pad_token_id": 1, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1}
ENCODERS = {
    "BertModel": ("BertConfig", _SIZES),
    "RobertaModel": ("RobertaConfig", _ROBERTA),
    "XLMRobertaModel": ("XLMRobertaConfig", _ROBERTA),
}
CROSS_ENCODERS = {
    "BertForSequenceClassification": ("BertConfig", {**_SIZES, "num_labels": 1}),
    "RobertaForSequenceClassification": ("RobertaConfig", {**_ROBERTA, "num_labels": 1}),
    "XLMRobertaForSequenceClassification": ("XLMRobertaConfig", {**_ROBERTA, "num_labels": 1}),
}


def make(architecture: str) -> PreTrainedModel:
    """A tiny encoder, in float32."""
    config, sizes = {**ENCODERS, **CROSS_ENCODERS}[architecture]
    torch.manual_seed(0)
    model: PreTrainedModel = getattr(transformers, architecture)(getattr(transformers, config)(**sizes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("LayerNorm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3)
    return model


def save(model: PreTrainedModel, folder: Path, pooling: str | None = None, **more: Any) -> Path:
    """Save a model with a tokenizer of one token a character, and what sentence-transformers writes beside it.

    Args:
        model: The model.
        folder: Where.
        pooling: Name of the one pooling mode, if any (``mean_tokens``, ``cls_token``, ``lasttoken``).
        more: Contents of further files by their stems.
    """
    tiny.save(model, folder)
    if "bert" in model.config.model_type:
        _write_pair_tokenizer(folder, types=model.config.type_vocab_size)
    else:
        write_tokenizer(folder)
    if pooling is not None:
        modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        listed = [{"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in modules]
        (folder / "modules.json").write_text(json.dumps(listed))
        (folder / "1_Pooling").mkdir()
        modes = dict.fromkeys(("mean_tokens", "cls_token", "lasttoken", "max_tokens"), False) | {pooling: True}
        (folder / "1_Pooling" / "config.json").write_text(
            json.dumps({f"pooling_mode_{mode}": value for mode, value in modes.items()})
        )
    write(folder, **more)
    return folder


def write(folder: Path, **files: Any) -> None:
    """Write JSON files by their names without ending."""
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))


def _write_pair_tokenizer(folder: Path, types: int) -> None:
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel(LETTERS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in list(LETTERS)[:4]])
    second = 1 if types > 1 else 0
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] $B:{second} [SEP]:{second}",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def letters(text: str) -> list[int]:
    """Tokens of a text, with those around it."""
    return [LETTERS["[CLS]"], *(LETTERS[character] for character in text), LETTERS["[SEP]"]]
