"""From a checkpoint to a module of ``transformers`` with its weights, or the reason why there can be none.

Weights are those of the checkpoint, each accounted for; code is that of the installed ``transformers`` alone, never a
checkpoint's own. Knows nothing of attention or caches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as their_logging

from sagellm_core.loading.base import Checkpoint
from sagellm_core.loading.errors import corrupt, unsupported
from sagellm_protocol.backend import Backend, RawWeight, WeightFormat
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import SageLLMError

_ATTENDING = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
FAILURES = (ArithmeticError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What modelling code may raise where it is given a configuration that it was not written for."""
_SHOWN = 5
_TYPES: Mapping[str, DType] = {
    WeightFormat.F32.value: DType.FLOAT32,
    WeightFormat.F16.value: DType.FLOAT16,
    WeightFormat.BF16.value: DType.BFLOAT16,
}


def build(checkpoint: Checkpoint, ops: Backend[torch.Tensor], like: torch.Tensor) -> PreTrainedModel:
    """A module in evaluation mode.

    Args:
        checkpoint: Configuration and weights.
        ops: The backend, which reads them.
        like: Of the type that is computed in, on the device.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for a model that cannot be run so, saying why; ``INVALID_REQUEST`` naming tensors
            that are missing, left over or of another shape, or for a configuration that no model can be built of.
    """
    kind, config = _described(checkpoint)
    weights = {raw.name: _tensor(checkpoint, ops, raw) for raw in checkpoint.weights()}
    try:
        with _quiet():
            loaded: Any = kind.from_pretrained(
                None,
                config=config,
                state_dict=weights,
                dtype=like.dtype,
                attn_implementation="eager",
                ignore_mismatched_sizes=True,  # they are refused here, by name
                output_loading_info=True,
            )
    except FAILURES as error:
        raise corrupt(
            checkpoint.path, f"transformers cannot build its configuration ({type(error).__name__}: {error})"
        ) from error
    model, found = loaded
    _account(checkpoint, found)
    built: PreTrainedModel = model.to(like.device).requires_grad_(False).eval()
    return built


def refusal(checkpoint: Checkpoint, why: str) -> SageLLMError:
    """What to raise for a model that cannot be run through its own code."""
    return unsupported(
        checkpoint.path,
        f"architecture {checkpoint.config.architecture!r} has no file here and cannot run through transformers"
        f" {transformers.__version__} either: {why}",
    )


def _described(checkpoint: Checkpoint) -> tuple[type[PreTrainedModel], PretrainedConfig]:
    """The class, and its configuration."""
    architecture, raw = checkpoint.config.architecture, dict(checkpoint.config.raw)
    model_type = str(raw.pop("model_type", ""))
    kind = getattr(transformers, architecture, None)
    if kind is None or architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        own = "auto_map" in raw
        raise refusal(
            checkpoint,
            "the checkpoint brings modelling code of its own, which is never run"
            if own
            else "it has no causal language model of that name",
        )
    if model_type not in CONFIG_MAPPING:
        raise refusal(checkpoint, f"it knows no model_type {model_type!r}")
    try:
        config = CONFIG_MAPPING[model_type].from_dict(raw)
    except Exception as error:  # its checks of values raise kinds of their own, which differ between versions
        raise corrupt(checkpoint.path, f"transformers cannot read its configuration: {error}") from error
    if not isinstance(config, kind.config_class):
        raise refusal(checkpoint, f"model_type {model_type!r} is not what it is described by")
    reasons = [why for holds, why in _reasons(kind, config) if holds]
    if reasons:
        raise refusal(checkpoint, "; ".join(reasons))
    return kind, config


def _reasons(kind: type[PreTrainedModel], config: PretrainedConfig) -> Iterator[tuple[bool, str]]:
    """Whether each reason not to run a model holds."""
    yield bool(config.is_encoder_decoder), "it is an encoder with a decoder"
    yield kind._is_stateful, "it keeps a state besides keys and values"
    yield (
        not kind._supports_attention_backend and not kind._is_stateful,
        "its modelling code has attention of its own, not that of the AttentionInterface",
    )
    yield (
        getattr(config, "quantization_config", None) is not None,
        "its weights are quantised, which only architectures with a file here take",
    )
    types = sorted(set(getattr(config, "layer_types", None) or ()) - _ATTENDING)
    yield bool(types), f"it has layers of type {', '.join(types)}"
    # Frequencies that follow from the longest sequence of a step would let one request change another's.
    yield "longrope" in _rope_types(config), "its frequencies depend on how long sequences are (rope type 'longrope')"


def _rope_types(config: PretrainedConfig) -> set[Any]:
    table = getattr(config, "rope_parameters", None) or {}
    return {part.get("rope_type") for part in (table, *table.values()) if isinstance(part, Mapping)}


def _tensor(checkpoint: Checkpoint, ops: Backend[torch.Tensor], raw: RawWeight) -> torch.Tensor:
    """In the type it is stored in: which ones stay in it is the modelling code's to say."""
    dtype = _TYPES.get(raw.format)
    if dtype is None:
        raise refusal(checkpoint, f"tensor {raw.name!r} is stored as {raw.format}; {', '.join(_TYPES)} can be read")
    return ops.tensor(raw, dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither bars of progress nor reports: what there is to say of weights is said here."""
    level, bars = their_logging.get_verbosity(), their_logging.is_progress_bar_enabled()
    their_logging.set_verbosity_error()
    their_logging.disable_progress_bar()
    try:
        yield
    finally:
        their_logging.set_verbosity(level)
        if bars:
            their_logging.enable_progress_bar()


def _account(checkpoint: Checkpoint, found: Mapping[str, Any]) -> None:
    """Refuse weights that do not fit.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` naming them.
    """
    architecture = checkpoint.config.architecture
    if found["mismatched_keys"]:
        name, stored, wanted = min(found["mismatched_keys"])
        raise corrupt(
            checkpoint.path,
            f"tensor {name!r} is {tuple(stored)}; the configuration makes it {tuple(wanted)}",
        )
    for keys, what in (("missing_keys", "has no tensor"), ("unexpected_keys", "holds tensors that are not known:")):
        names = sorted(found[keys])
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise corrupt(checkpoint.path, f"{what} {', '.join(names[:_SHOWN])}{more} ({architecture})")
    problems = {**found.get("conversion_errors", {}), **dict.fromkeys(found.get("error_msgs", ()), "")}
    if problems:
        raise corrupt(checkpoint.path, f"transformers cannot load its weights: {problems}")
