"""What the core asks of whatever runs the model: load, size the cache, run plans, stop.

Knows nothing of how many processes or devices stand behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from typing_extensions import Buffer

from sagellm_core.core.plan import StepPlan, StepResult
from sagellm_core.loading.pooling import PoolingKind
from sagellm_protocol.backend import KVSpec, MemoryInfo
from sagellm_protocol.devices import DeviceInfo, DType


@dataclass(frozen=True)
class ModelInfo:
    """What an executor loaded, as far as the core needs to know.

    Attributes:
        architecture: Class name of the reference implementation.
        model_key: Identity of the weights, as block hashes use it.
        vocab_size: Token ids are below this.
        max_position_embeddings: Longest sequence the model is made for.
        kv_specs: What each layer keeps of a token.
        kv_dtype: Type it is kept in.
        dtype: Type that is computed in.
        quantization: How weights were quantised at load, if they were.
        eos_token_ids: Tokens that end an answer.
        weight_bytes: Bytes that the weights occupy on the device, those of a model that drafts included.
        backend: Name of the backend.
        device: The device.
        generates: It continues prompts.
        pooling: Which hidden states become a vector, if it makes any.
        embedding_size: Dimensions of such a vector; ``None`` where it is a score.
        scores: A head makes one number of each input.
        draft_kv_specs: What each layer of a model that drafts keeps of a token, beside ``kv_specs``.
    """

    architecture: str
    model_key: str
    vocab_size: int
    max_position_embeddings: int
    kv_specs: tuple[KVSpec, ...]
    kv_dtype: DType
    dtype: DType
    quantization: str | None
    eos_token_ids: tuple[int, ...]
    weight_bytes: int
    backend: str
    device: DeviceInfo
    generates: bool = True
    pooling: PoolingKind | None = None
    embedding_size: int | None = None
    scores: bool = False
    draft_kv_specs: tuple[KVSpec, ...] = ()


@dataclass(frozen=True)
class CacheLayout:
    """How large the executor's persistent state is.

    Attributes:
        num_blocks: Blocks of the pool in each layer.
        block_size: Tokens of a block.
        max_num_seqs: Slots.
        max_model_len: Most tokens of a sequence.
    """

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_model_len: int


class Pending(Protocol):
    """A step under way."""

    def result(self) -> StepResult:
        """Wait for it, and return what it produced or raise what went wrong."""
        ...


class Executor(Protocol):
    """Runs plans, one at a time and in order."""

    @property
    def info(self) -> ModelInfo:
        """What is loaded."""
        ...

    def memory(self) -> MemoryInfo:
        """Device memory that is there for the cache, weights being loaded."""
        ...

    def allocate(self, layout: CacheLayout) -> int:
        """Make the cache and the slots, once, before the first plan.

        Returns:
            Bytes of the cache, whether touched yet or not.
        """
        ...

    @property
    def kv_layout(self) -> str:
        """Name and version of how an exported block's bytes lie; blocks of equal layouts may be imported."""
        ...

    def export_blocks(self, blocks: list[int]) -> bytes:
        """Contents of blocks in every layer. Between steps."""
        ...

    def import_blocks(self, blocks: list[int], data: Buffer) -> None:
        """Write into blocks what :meth:`export_blocks` made of the same layout. Between steps."""
        ...

    def run(self, plan: StepPlan) -> Pending:
        """Start a step."""
        ...

    def sleep(self, level: int) -> None:
        """Give up the cache, and at level 2 the weights. Nothing may be run until :meth:`wake`."""
        ...

    def wake(self) -> None:
        """Have both again, the cache empty and of the same layout.

        Raises:
            SageLLMError: Weights cannot be loaded; it still sleeps.
        """
        ...

    def reload(self, path: Path) -> None:
        """Take the weights of another model of the same shape; the cache is empty then, and it does not sleep.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` naming what differs; why they cannot be loaded. It has those from before,
                and does not sleep.
        """
        ...

    def stop(self) -> None:
        """Give up devices and processes; nothing may be run after."""
        ...
