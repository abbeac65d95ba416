"""The model that drafts tokens for another: opened, and held against it, for it must speak of the same tokens.

Knows nothing of how either is run.
"""

from __future__ import annotations

from pathlib import Path

from sagellm_core.tokenizer import Tokenizer, load_tokenizer
from sagellm_protocol.engine import EngineSpec
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .base import Checkpoint
from .checkpoint import open_checkpoint
from .config import ModelConfig


def open_draft(spec: EngineSpec, path: Path, config: ModelConfig) -> Checkpoint | None:
    """Open the model that drafts; ``None`` where none does.

    Args:
        spec: Says where it is; already fetched.
        path: Where the model is that it drafts for.
        config: Of that model.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` where their vocabularies differ; whatever is wrong with its files.
    """
    asked = spec.speculative
    if asked is None or asked.model is None:
        return None
    place = Path(asked.model)
    draft = open_checkpoint(place, spec.load_format if spec.load_format == "dummy" else "auto", seed=spec.seed or 0)
    theirs, ours = draft.config.vocab_size, config.vocab_size
    if theirs != ours:
        raise _unlike(asked.model, f"its vocabulary has {theirs} tokens and this model's {ours}")
    tokenizers = _tokenizer(place), _tokenizer(Path(spec.tokenizer) if spec.tokenizer else path)
    if None not in tokenizers:
        draws, reads = (tokenizer.backend.get_vocab() for tokenizer in tokenizers if tokenizer is not None)
        if draws != reads:
            token = min(draws.items() ^ reads.items(), key=lambda item: item[1])[1]
            raise _unlike(asked.model, f"token {token}, for one, does not mean the same to both")
    return draft


def _tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer there, if there is one: a model may be asked in token ids alone."""
    try:
        return load_tokenizer(path)
    except SageLLMError as error:
        if error.code is ErrorCode.MODEL_NOT_FOUND:
            return None
        raise


def _unlike(model: str, how: str) -> SageLLMError:
    return SageLLMError(
        ErrorCode.INVALID_REQUEST,
        f"model {model!r} cannot draft for this one: {how}; name a smaller model of the same family and tokenizer",
        "speculative.model",
    )
