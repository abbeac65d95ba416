"""From an engine's spec and a local model to a core that is ready to run: weights, backend, executor, limits.

The one place in the core that knows all of them; imported only where the core runs.
"""

from __future__ import annotations

from pathlib import Path

from sagellm_core.executor.backends import open_backend
from sagellm_core.executor.inline import InlineExecutor
from sagellm_core.grammar.store import GrammarStore
from sagellm_core.loading import open_checkpoint
from sagellm_core.loading.base import Checkpoint
from sagellm_core.loading.draft import open_draft
from sagellm_core.loading.pooling import PoolingConfig, read_pooling, settle_pooling
from sagellm_core.offload.open import shelf_opener
from sagellm_core.options import deterministic_option, pooling_option, step_log_option
from sagellm_protocol.engine import EngineSpec

from .adapter_places import AdapterPlaces
from .loop import EngineCore
from .sizing import decide_encoder_limits, decide_limits
from .speculation import DraftPolicy
from .step_log import StepLog


def build_core(spec: EngineSpec, path: Path) -> EngineCore:
    """Load a model and make everything it needs.

    Args:
        spec: What the operator asked for.
        path: Where the model is, already fetched.

    Raises:
        SageLLMError: With the root cause and its fix.
    """
    checkpoint, pooling = _open(spec, path)
    backend = open_backend(spec.device, dtype=spec.dtype, threads=spec.threads)
    grammars = GrammarStore(checkpoint.config.vocab_size, checkpoint.config.eos_token_ids)
    config = checkpoint.config
    draft = open_draft(spec, path, config)
    executor = InlineExecutor(
        checkpoint,
        backend,
        dtype=spec.dtype,
        quantization=spec.quantization,
        kv_cache_dtype=spec.kv_cache_dtype,
        grammars=grammars,
        pooling=None if pooling is None else pooling.kind,
        speculative=spec.speculative,
        draft=draft,
        reopen_draft=None if draft is None else lambda: open_draft(spec, path, config),
        path=path,
        reopen=lambda place: _open(spec, place)[0],
        deterministic=deterministic_option(spec),
    )
    checkpoint.release()
    info = executor.info
    open_shelf = shelf_opener(spec, info.kv_specs)
    positions = info.max_position_embeddings
    if spec.max_model_len is None and pooling is not None:
        positions = min(positions, pooling.max_length or positions)  # beyond it the model was not trained
    free_bytes, adapters = executor.memory().free_bytes, None
    if spec.adapters or spec.adapter_root is not None:
        store = executor.adapters(spec.max_adapter_rank)
        adapters = AdapterPlaces(store, spec.max_adapters)
        free_bytes = max(0, free_bytes - spec.max_adapters * store.largest_bytes)
    if info.kv_specs:
        limits = decide_limits(
            spec,
            kv_specs=(*info.kv_specs, *info.draft_kv_specs),  # a pool each, of as many blocks
            kv_dtype=info.kv_dtype,
            max_position_embeddings=positions,
            device_kind=info.device.kind,
            free_bytes=free_bytes,
        )
    else:
        limits = decide_encoder_limits(spec, max_position_embeddings=positions, device_kind=info.device.kind)
    asked = spec.speculative
    where = step_log_option(spec)
    return EngineCore(
        executor,
        limits,
        prefix_caching=spec.prefix_caching,
        grammars=grammars,
        open_shelf=open_shelf,
        drafting=None if asked is None else DraftPolicy(asked.tokens, adaptive=asked.adaptive),
        step_log=None if where is None else StepLog(where),
        adapters=adapters,
    )


def _open(spec: EngineSpec, path: Path) -> tuple[Checkpoint, PoolingConfig | None]:
    """The checkpoint at ``path``, and how its model pools."""
    checkpoint = open_checkpoint(path, spec.load_format, seed=spec.seed or 0, context=spec.max_model_len)
    settled = settle_pooling(checkpoint.config, read_pooling(path), pooling_option(spec))
    checkpoint.config = settled.config
    return checkpoint, settled.pooling
