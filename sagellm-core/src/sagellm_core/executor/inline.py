"""The executor of world size 1: the model runs in the caller's thread.

Knows nothing of processes or ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from typing_extensions import Buffer

from sagellm_core import models
from sagellm_core.adapters.store import AdapterStore
from sagellm_core.core.plan import StepPlan, StepResult
from sagellm_core.grammar.base import Grammars
from sagellm_core.layers.adapted import Adapting
from sagellm_core.loading.base import Checkpoint
from sagellm_core.loading.config import ModelConfig
from sagellm_core.loading.pooling import PoolingKind
from sagellm_core.models.base import AdaptableModel, Model
from sagellm_core.models.encoder import Encoder
from sagellm_protocol.backend import Backend, KVCache, MemoryInfo
from sagellm_protocol.devices import BackendCapabilities, DType
from sagellm_protocol.engine import Speculation
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .backends import AUTO, cache_dtype, check_quantization, compute_dtype
from .base import CacheLayout, ModelInfo
from .drafting import drafting_stage
from .encoding import EncoderRunner
from .invariance import refuse_varying, refuse_varying_cache
from .pooling import Pooler
from .released import refuse_other_shape, release_memory
from .runner import Runner
from .slots import Slots


@dataclass(frozen=True)
class Done:
    """A step that is over."""

    outcome: StepResult

    def result(self) -> StepResult:
        """What it produced."""
        return self.outcome


class InlineExecutor:
    """Loads a model on a backend and runs plans there.

    Args:
        checkpoint: Configuration and weights.
        ops: The backend.
        dtype: Type to compute in, or ``auto``.
        quantization: A format of the backend's to quantise projections to at load.
        kv_cache_dtype: Type to keep keys and values in, or ``auto``.
        pooling: Which hidden states become a vector; ``None`` where none is wanted.
        grammars: Those that sequences follow, compiled before a plan names them.
        speculative: How tokens are drafted, if plans have some verified.
        draft: Configuration and weights of the model that drafts, where one does.
        reopen_draft: Opens those again, once they were given up; without it they are not.
        path: Where the checkpoint is.
        reopen: Opens the one at a path; without it weights are not given up.
        deterministic: Refuse what would let a request's numbers depend on what runs beside it.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for a type, quantisation or architecture that is not offered, or not
            deterministic; ``INVALID_REQUEST`` for weights that do not fit their configuration.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        ops: Backend[Any],
        *,
        dtype: str = AUTO,
        quantization: str | None = None,
        kv_cache_dtype: str = AUTO,
        pooling: PoolingKind | None = None,
        grammars: Grammars | None = None,
        speculative: Speculation | None = None,
        draft: Checkpoint | None = None,
        reopen_draft: Callable[[], Checkpoint | None] | None = None,
        path: Path | None = None,
        reopen: Callable[[Path], Checkpoint] | None = None,
        deterministic: bool = False,
    ) -> None:
        capabilities = ops.capabilities()
        computed_in = compute_dtype(capabilities, _wanted(checkpoint.config, capabilities, dtype))
        kept_in = cache_dtype(capabilities, kv_cache_dtype, computed_in)
        check_quantization(capabilities, quantization, checkpoint.config.quantization)
        config = checkpoint.config
        self._ops = ops
        self._path, self._reopen = path, reopen
        self._config = config
        self._layout: CacheLayout | None = None
        self._deterministic = deterministic
        self._model: Model | Encoder | None = self._checked(models.load(checkpoint, ops, computed_in, quantization))
        self._grammars = grammars
        self._reopen_draft = reopen_draft
        self._stage = partial(drafting_stage, speculative, ops=ops, dtype=computed_in, quantization=quantization)
        self._drafting = self._stage(self._model, draft=draft)
        self._runner: Runner | EncoderRunner | None = None
        encodes = isinstance(self._model, Encoder)
        scores = isinstance(self._model, Encoder) and self._model.scores
        self._sigmoid = config.encoder is not None and config.encoder.sigmoid
        self._info = ModelInfo(
            architecture=config.architecture,
            model_key=checkpoint.key,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_position_embeddings,
            kv_specs=self._model.kv_specs if not isinstance(self._model, Encoder) else (),
            kv_dtype=kept_in,
            dtype=computed_in,
            quantization=quantization,
            eos_token_ids=config.eos_token_ids,
            weight_bytes=self._model.weight_bytes + (0 if self._drafting is None else self._drafting.weight_bytes),
            backend=ops.name,
            device=ops.device,
            generates=not encodes and not config.headless,
            pooling=pooling,
            embedding_size=None if pooling is None or scores else config.hidden_size,
            scores=scores,
            draft_kv_specs=() if self._drafting is None else self._drafting.kv_specs,
        )

    @property
    def info(self) -> ModelInfo:
        """What is loaded."""
        return self._info

    def memory(self) -> MemoryInfo:
        """Device memory that is there for the cache."""
        return self._ops.memory()

    def adapters(self, largest_rank: int) -> AdapterStore:
        """What holds the weights of adapters of its model.

        Raises:
            SageLLMError: ``UNSUPPORTED`` for a model whose projections cannot be adapted, and where that is not
                deterministic and has to be.
        """
        if self._deterministic:
            raise SageLLMError(
                ErrorCode.UNSUPPORTED,
                "deterministic cannot be kept with adapters, whose products round by how many rows they have; leave one"
                " of the two out",
                "options.deterministic",
            )
        return AdapterStore(self._adapting, self._ops, self._info.dtype, largest_rank)

    def _adapting(self) -> Adapting:
        """The projections of the model that is loaded now."""
        model = self._model
        if model is None:
            raise SageLLMError(ErrorCode.UNAVAILABLE, "the engine sleeps")
        if not isinstance(model, AdaptableModel) or not model.adapting.projections:
            raise SageLLMError(
                ErrorCode.UNSUPPORTED,
                f"{self._info.architecture} takes no LoRA adapters here; leave adapters and adapter_root out",
                "adapters",
            )
        return model.adapting

    def allocate(self, layout: CacheLayout) -> int:
        """Make the cache and the slots."""
        assert self._runner is None, "the cache is made once"
        assert self._model is not None, "there are no weights"
        self._layout = layout
        model, ops, pooling = self._model, self._ops, self._info.pooling
        if isinstance(model, Encoder):
            assert pooling is not None, "an encoder's hidden states are pooled"
            slots = Slots(layout, groups=0)
            pooler = Pooler(ops, slots, pooling, model.score if model.scores else None, self._sigmoid)
            self._runner = EncoderRunner(model, ops, slots, pooler)
        else:
            kept_in = self._info.kv_dtype
            stage = self._drafting
            drafting = None if stage is None else partial(stage.drafter, layout, kept_in)
            self._runner = Runner(model, ops, layout, kept_in, pooling, self._grammars, drafting)
            if self._deterministic:
                refuse_varying_cache(self._runner.cache)
        return self._runner.cache_bytes

    @property
    def kv_layout(self) -> str:
        """How the pool's blocks lie."""
        return self._pool.layout

    def export_blocks(self, blocks: list[int]) -> bytes:
        """Contents of blocks in every layer."""
        return self._ops.export_blocks(self._pool, blocks)

    def import_blocks(self, blocks: list[int], data: Buffer) -> None:
        """Write into blocks what :meth:`export_blocks` made."""
        self._ops.import_blocks(self._pool, blocks, data)

    @property
    def _pool(self) -> KVCache:
        assert isinstance(self._runner, Runner), "nothing is kept between steps"
        return self._runner.cache

    def run(self, plan: StepPlan) -> Done:
        """Run a step; it is over when this returns."""
        if self._runner is None:
            raise SageLLMError(ErrorCode.INTERNAL, "a plan came before the cache was made")
        return Done(self._runner.run(plan))

    def sleep(self, level: int) -> None:
        """Give up the cache, and at level 2 the weights."""
        self._runner = None
        if level > 1 and self._reopen is not None:
            self._model = None
            if self._reopen_draft is not None:
                self._drafting = None
        release_memory()

    def wake(self) -> None:
        """Have both again."""
        loads = self._model is None or (self._drafting is None and self._reopen_draft is not None)
        if self._model is None:
            self._load(self._opened(self._path))
        assert self._model is not None, "it was just loaded"
        if self._drafting is None and self._reopen_draft is not None:
            draft = self._reopen_draft()
            self._drafting = self._stage(self._model, draft=draft)
            if draft is not None:
                draft.release()
        if loads:
            release_memory()  # what was read to be packed
        if self._runner is None:
            assert self._layout is not None, "the cache was never made"
            self.allocate(self._layout)

    def reload(self, path: Path) -> None:
        """Take the weights of another model of the same shape."""
        try:
            checkpoint = self._opened(path)
            refuse_other_shape(self._config, checkpoint.config)
            self._runner = None
            self._model = None  # first: there need not be room for both
            release_memory()
            self._load(checkpoint)
            self._path = path
        finally:
            self.wake()  # with those from before, where these cannot be loaded

    def _opened(self, path: Path | None) -> Checkpoint:
        assert path is not None
        assert self._reopen is not None, "weights were given up that cannot be had again"
        return self._reopen(path)

    def _load(self, checkpoint: Checkpoint) -> None:
        self._model = self._checked(models.load(checkpoint, self._ops, self._info.dtype, self._info.quantization))
        self._info = replace(self._info, model_key=checkpoint.key, eos_token_ids=checkpoint.config.eos_token_ids)
        self._config = checkpoint.config
        checkpoint.release()

    def _checked(self, model: Model | Encoder) -> Model | Encoder:
        if self._deterministic:
            refuse_varying(model)
        return model

    def stop(self) -> None:
        """Let go of the cache."""
        self._runner = None


def _wanted(config: ModelConfig, capabilities: BackendCapabilities, dtype: str) -> str:
    """The type that is asked for; left open, an encoder that was saved in float32 stays in it.

    Its vectors are compared with others that were stored, and it is small.
    """
    exact = config.encoder is not None and config.dtype in (None, "float32")
    if dtype == AUTO and exact and DType.FLOAT32 in capabilities.dtypes:
        return DType.FLOAT32.value
    return dtype
