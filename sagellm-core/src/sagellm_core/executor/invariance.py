"""Whether a request's numbers depend on what runs beside it, and the refusal where they may not and would.

Sums of floating point depend on their order, and a product of many rows is often cut otherwise than one of few. What
weights and pools say of themselves decides; nothing is tried out here.
"""

from __future__ import annotations

from sagellm_core.models.base import Model
from sagellm_core.models.encoder import Encoder
from sagellm_protocol.backend import KVCache
from sagellm_protocol.errors import ErrorCode, SageLLMError

_SHOWN = 3


def refuse_varying(model: Model | Encoder) -> None:
    """Refuse a model some of whose rows change, in their last bits, with the rows beside them.

    Raises:
        SageLLMError: ``UNSUPPORTED``, naming what varies.
    """
    if isinstance(model, Encoder):
        raise _refusal("an encoder computes its inputs side by side")
    if model.varying:
        more = len(model.varying) - _SHOWN
        named = ", ".join(model.varying[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
        raise _refusal(f"products with {named} depend, in their last bits, on how many rows there are")


def refuse_varying_cache(cache: KVCache) -> None:
    """As :func:`refuse_varying`, of the pool."""
    if not cache.batch_invariant:
        raise _refusal("attention over this pool depends, in its last bits, on how tokens are divided into steps")


def _refusal(why: str) -> SageLLMError:
    return SageLLMError(
        ErrorCode.UNSUPPORTED,
        f"deterministic cannot be kept: {why}; compute in bfloat16 on native kernels (sagellm doctor says whether"
        " they are there), or leave it out",
        "options.deterministic",
    )
