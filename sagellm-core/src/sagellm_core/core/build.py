"""From an engine's spec and a local model to a core that is ready to run: weights, backend, executor, limits.

The one place in the core that knows all of them; imported only where the core runs.
"""

from __future__ import annotations

from pathlib import Path

from sagellm_core.executor.backends import open_backend
from sagellm_core.executor.inline import InlineExecutor
from sagellm_core.grammar.store import GrammarStore
from sagellm_core.loading import open_checkpoint
from sagellm_protocol.engine import EngineSpec

from .loop import EngineCore
from .sizing import decide_limits


def build_core(spec: EngineSpec, path: Path) -> EngineCore:
    """Load a model and make everything it needs.

    Args:
        spec: What the operator asked for.
        path: Where the model is, already fetched.

    Raises:
        SageLLMError: With the root cause and its fix.
    """
    checkpoint = open_checkpoint(path, spec.load_format, seed=spec.seed or 0, context=spec.max_model_len)
    backend = open_backend(spec.device, dtype=spec.dtype, threads=spec.threads)
    grammars = GrammarStore(checkpoint.config.vocab_size, checkpoint.config.eos_token_ids)
    executor = InlineExecutor(
        checkpoint,
        backend,
        dtype=spec.dtype,
        quantization=spec.quantization,
        kv_cache_dtype=spec.kv_cache_dtype,
        grammars=grammars,
    )
    checkpoint.release()
    info = executor.info
    limits = decide_limits(
        spec,
        kv_specs=info.kv_specs,
        kv_dtype=info.kv_dtype,
        max_position_embeddings=info.max_position_embeddings,
        device_kind=info.device.kind,
        free_bytes=executor.memory().free_bytes,
    )
    return EngineCore(executor, limits, prefix_caching=spec.prefix_caching, grammars=grammars)
