"""What modelling code of ``transformers`` calls in place of its own attention, by two names of its registry.

While a model is examined, its own attention goes on, and what each layer is called with is written down. Afterwards
attention is the backend's over the paged cache. Both find out what step they are in from what the model's modules were
given to hold. Knows nothing of how a model is loaded or examined.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from sagellm_protocol.backend import AttentionPlan, Backend, KVCache

RECORDED, PAGED = "sagellm_recorded", "sagellm_paged"
"""Names of the two implementations. The second is given no masks: the plan has what they would say."""
_HELD = "_sagellm_told"
_UNDERSTOOD = frozenset({"scaling", "softcap", "s_aux"})
"""Arguments of attention that change what it computes, and are honoured."""
_INDIFFERENT = frozenset(
    {
        "cache_position",
        "dropout",
        "is_causal",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "sliding_window",
        "use_cache",
    }
)
"""Those that change nothing here, or nothing that the mask does not say."""


@dataclass(frozen=True)
class Mask:
    """A mask as the modelling code makes it, with the rule it was made by.

    Attributes:
        rule: From batch, head, query and key numbers to whether the key is visible.
        dense: Added to scores, ``[1, 1, Q, K]``.
    """

    rule: Callable[..., torch.Tensor]
    dense: torch.Tensor


@dataclass(frozen=True)
class Call:
    """What a layer's attention was called with.

    Attributes:
        kv_heads, key_dim, value_dim: Sizes of its keys and values.
        scale: Multiplies the scores.
        softcap: Bounds them, if given.
        sinks: It has a score a head that takes its share and gives nothing.
        rule: Who sees whom; ``None`` where there was no mask.
        unknown: Arguments that are not known here.
    """

    kv_heads: int
    key_dim: int
    value_dim: int
    scale: float
    softcap: float | None
    sinks: bool
    rule: Callable[..., torch.Tensor] | None
    unknown: tuple[str, ...]


@dataclass
class Record:
    """What layers were called with in one pass.

    Attributes:
        calls: By number of the layer, each call of its attention.
    """

    calls: dict[int, list[Call]] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One step over the paged cache.

    Attributes:
        ops: The backend.
        cache: The pool.
        plan: Of this step.
        places: Of each of the model's layers, which of the cache is its own.
    """

    ops: Backend[Any]
    cache: KVCache
    plan: AttentionPlan
    places: Mapping[int, int]


@dataclass
class Told:
    """What the attention of one model is to know of the pass under way.

    Attributes:
        now: The record to write to, or the step; ``None`` between passes.
    """

    now: Record | Step | None = None


def tell(model: torch.nn.Module) -> Told:
    """Give every module of a model one object to find out from: modelling code need not pass anything on."""
    told = Told()
    for module in model.modules():
        setattr(module, _HELD, told)
    return told


def register() -> None:
    """Make both known to ``transformers``; as often as one likes."""
    AttentionInterface.register(RECORDED, _recorded)
    AttentionMaskInterface.register(RECORDED, _mask)
    AttentionInterface.register(PAGED, _paged)


def _mask(*, mask_function: Callable[..., torch.Tensor], **how: Any) -> Mask:
    return Mask(mask_function, eager_mask(mask_function=mask_function, **how))


def _now(module: torch.nn.Module) -> Record | Step | None:
    told: Told = getattr(module, _HELD)
    return told.now


def _scale(q: torch.Tensor, scaling: float | None) -> float:
    return float(q.shape[-1] ** -0.5 if scaling is None else scaling)


def _recorded(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Mask | None,
    **how: Any,
) -> tuple[torch.Tensor, Any]:
    """Write down what there is to know of a layer, and attend as the modelling code itself does."""
    record = _now(module)
    assert isinstance(record, Record)
    unknown = (name for name in how if how[name] is not None and name not in _UNDERSTOOD | _INDIFFERENT)
    call = Call(
        kv_heads=key.shape[1],
        key_dim=key.shape[3],
        value_dim=value.shape[3],
        scale=_scale(query, how.get("scaling")),
        softcap=how.get("softcap"),
        sinks=how.get("s_aux") is not None,
        rule=None if attention_mask is None else attention_mask.rule,
        unknown=tuple(sorted(unknown)),
    )
    record.calls.setdefault(getattr(module, "layer_idx", -1), []).append(call)
    own: Any = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    dense = None if attention_mask is None else attention_mask.dense
    attended: tuple[torch.Tensor, Any] = own(module, query, key, value, dense, **how)
    return attended


def _paged(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **how: Any,
) -> tuple[torch.Tensor, None]:
    """Attend over the cache: ``[1, H, T, D]`` each, all sequences one after another, to ``[1, T, Hq, Dv]``."""
    step, number = _now(module), int(vars(module)["layer_idx"])
    assert isinstance(step, Step)
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))  # [T, H, D]
    attended: torch.Tensor = step.ops.attention(
        q,
        k,
        v,
        step.cache,
        step.places[number],
        step.plan,
        scale=_scale(q, scaling),
        softcap=softcap,
        sinks=s_aux,
    )
    return attended[None], None
