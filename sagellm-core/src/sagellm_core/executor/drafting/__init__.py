"""Speculative decoding where the model is: who drafts tokens, and how the model verifies them.

A way of drafting is a sibling of ``base.py`` and an entry of the table here. Nothing here knows whether drafting pays:
how many tokens may be drafted comes with each step's plan.
"""

from __future__ import annotations

from typing import Any

from sagellm_core import models
from sagellm_core.loading.base import Checkpoint
from sagellm_core.models.base import Model
from sagellm_core.models.encoder import Encoder
from sagellm_protocol.backend import Backend
from sagellm_protocol.devices import DType
from sagellm_protocol.engine import Speculation
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .base import DraftStage
from .model import ModelStage
from .ngram import NgramStage


def drafting_stage(
    asked: Speculation | None,
    model: Model | Encoder,
    ops: Backend[Any],
    draft: Checkpoint | None,
    dtype: DType,
    quantization: str | None,
) -> DraftStage | None:
    """What drafts tokens, as far as it is there before the cache is made; ``None`` where nothing does.

    Args:
        asked: How tokens are to be drafted.
        model: That verifies them.
        ops: The backend.
        draft: Configuration and weights of the model that drafts, where one does.
        dtype: Type to compute in.
        quantization: A format of the backend's to quantise projections to at load.

    Raises:
        SageLLMError: ``UNSUPPORTED`` where the model continues no prompts, or the one that drafts does not.
    """
    if asked is None:
        return None
    if isinstance(model, Encoder):
        raise SageLLMError(
            ErrorCode.UNSUPPORTED,
            "this model continues no prompts, so nothing can be drafted; drop speculative",
            _PARAM,
        )
    if asked.method == "ngram":
        return NgramStage(asked.min_match)
    assert draft is not None, "whoever starts an executor opens what drafts"
    drafting = models.load(draft, ops, dtype, quantization)
    draft.release()
    if isinstance(drafting, Encoder) or draft.config.headless:
        raise SageLLMError(
            ErrorCode.UNSUPPORTED, f"model {asked.model!r} continues no prompts; draft with one that does", _PARAM
        )
    return ModelStage(drafting, draft.config.max_position_embeddings, ops)


_PARAM = "speculative"
