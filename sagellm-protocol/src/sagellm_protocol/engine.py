"""How an engine is asked for, and what it says of itself.

Knows nothing of how engines are started or reached.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

from pydantic import Field, JsonValue, model_validator
from typing_extensions import Self

from ._wire import Ask, Report
from .devices import DeviceInfo
from .requests import Name


class Speculation(Ask):
    """Speculative decoding: tokens are drafted cheaply, and the model verifies several in one step.

    It changes no answer, greedy or sampled: every token is the one that the model itself draws at its position.
    """

    method: Literal["ngram", "draft"] = "ngram"
    """``ngram`` continues what the text ends in as it went on before (prompt look-up); ``draft`` asks a smaller model
    of the same vocabulary."""
    model: Name | None = None
    """The smaller model: local path, catalogue name or hub name."""
    revision: str | None = None
    tokens: int = Field(default=6, ge=1, le=32)
    """Most tokens drafted for a sequence in one step."""
    min_match: int = Field(default=3, ge=1, le=16)
    """``ngram``: tokens that must have come before for what followed them to be a draft."""
    adaptive: bool = True
    """Draft only where measured costs and acceptance say that it pays; otherwise wherever there is room."""

    @model_validator(mode="after")
    def _has_its_model(self) -> Self:
        if (self.method == "draft") != (self.model is not None):
            raise ValueError(
                "method 'draft' needs model, the smaller model's path or name"
                if self.model is None
                else f"model {self.model!r} drafts by method 'draft'; method {self.method!r} takes none"
            )
        return self


class EngineSpec(Ask):
    """An engine that is asked for: what an operator writes down.

    What is left out, the engine decides and reports in :class:`EngineInfo`. ``options`` are the engine's own; one it
    does not know is refused by name.
    """

    engine: Name = "sagellm"
    """Entry point of the group ``sagellm.engines``."""
    model: Name
    """Local path, catalogue name or hub name."""
    revision: str | None = None
    served_names: tuple[Name, ...] = ()
    """Names requests may use; the model's own name when empty."""
    device: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    load_format: Literal["auto", "safetensors", "gguf", "dummy"] = "auto"
    tokenizer: str | None = None
    """Where the tokeniser is, if not beside the weights."""
    chat_template: str | None = None
    """A template, or the path of one, in place of the checkpoint's own."""
    trust_request_chat_template: bool = False
    """Let requests bring a template of their own. Templates are programs."""
    tool_parser: str | None = None
    """How the model writes calls; ``none`` switches tools off. Absent, the engine decides by the model."""
    reasoning_parser: str | None = None
    """How the model writes its reasoning; ``none`` leaves it in the text. Absent, the engine decides by the model."""
    tensor_parallel: int = Field(default=1, ge=1)
    pipeline_parallel: int = Field(default=1, ge=1)
    data_parallel: int = Field(default=1, ge=1)
    max_model_len: int | None = Field(default=None, ge=1)
    max_num_seqs: int | None = Field(default=None, ge=1)
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    """Token budget of one step."""
    kv_cache_memory_bytes: int | None = Field(default=None, ge=1)
    kv_cache_dtype: str = "auto"
    block_size: int | None = Field(default=None, ge=1)
    prefix_caching: bool = True
    kv_offload_memory_bytes: int | None = Field(default=None, ge=1)
    """Host memory for blocks that the cache may have to give up; none when absent."""
    kv_offload_dir: str | None = None
    """Folder for blocks that are to outlive the engine; several may share it."""
    kv_offload_disk_bytes: int | None = Field(default=None, ge=1)
    """Most bytes of blocks in that folder."""
    speculative: Speculation | None = None
    """Draft tokens and verify several in one step; absent, each step makes one token a sequence."""
    core: Literal["process", "inline"] = "process"
    """Whether the engine's core runs in a process of its own or in the caller's."""
    adapters: dict[Name, str] = Field(default={})
    """LoRA adapters by the names that requests use for them, each with the folder it is read from."""
    adapter_root: str | None = None
    """Let adapters be loaded while the engine runs, from within this folder alone; absent, none may be."""
    max_adapters: int = Field(default=4, ge=1)
    """Adapters held in memory at once, which is also how many different ones a step may use. Those beyond are read
    again when they are used."""
    max_adapter_rank: int = Field(default=64, ge=1)
    """Largest rank of an adapter; with ``max_adapters`` it bounds their memory."""
    seed: int | None = None
    """Makes requests without a seed of their own reproducible in order of arrival (tests)."""
    threads: int | None = Field(default=None, ge=1)
    options: dict[str, JsonValue] = Field(default={})

    @property
    def names(self) -> tuple[str, ...]:
        """Names requests may use for this engine's model."""
        return self.served_names or (self.model,)


class AdapterSpec(Ask):
    """A LoRA adapter that is to be served while its engine runs."""

    name: Name
    """What requests call it; a model's name to them."""
    path: str = Field(min_length=1)
    """Its folder, on the engine's host."""
    base: Name | None = None
    """Served name of the model it was trained on, where several are served."""
    replace: bool = False
    """Take the place of an adapter of the same name; otherwise that is a conflict."""


class AdapterInfo(Report):
    """A LoRA adapter that an engine serves."""

    name: str
    key: str
    """Identity of its weights, as block hashes use it."""


class EngineState(str, Enum):
    """Where an engine is in its life."""

    STARTING = "STARTING"
    READY = "READY"
    DRAINING = "DRAINING"
    """Finishes what it has and takes nothing new."""
    SLEEPING = "SLEEPING"
    """Has given up its cache, and its weights if it was told to; takes nothing until it is woken."""
    STOPPED = "STOPPED"
    ERROR = "ERROR"
    """Dead or unreachable; ``EngineInfo.error`` says why."""


class EngineCapabilities(Report):
    """What an engine offers with the model it has loaded."""

    features: frozenset[str] = frozenset()
    """Names of :mod:`sagellm_protocol.features`."""
    max_model_len: int | None = None
    """Most tokens of prompt and output together."""
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    vocab_size: int | None = None
    block_size: int | None = None
    total_blocks: int | None = None
    dtype: str | None = None
    quantization: str | None = None
    embedding_dimensions: int | None = None
    kv_connectors: tuple[str, ...] = ()


class EngineInfo(Report):
    """What an engine says of itself; changes seldom."""

    engine_id: str
    engine: str
    """Entry point it was made by."""
    version: str | None = None
    model: str
    model_key: str | None = None
    """Identity of the weights, as block hashes use it."""
    served_names: tuple[str, ...]
    state: EngineState
    error: str | None = None
    """Root cause, when ``state`` is ``ERROR``."""
    mock: bool = False
    """Its answers are made up."""
    capabilities: EngineCapabilities = EngineCapabilities.model_construct()
    device: DeviceInfo | None = None
    adapters: tuple[AdapterInfo, ...] | None = None
    """LoRA adapters that requests may name in place of a served name; absent where it takes none."""

    @property
    def names(self) -> tuple[str, ...]:
        """All that requests may name: the model's served names, then its adapters."""
        return (*self.served_names, *(adapter.name for adapter in self.adapters or ()))


class EngineStats(Report):
    """An engine's load at one moment, and its counters since it started."""

    state: EngineState
    heartbeat_age_s: float | None = None
    """Seconds since the core last proved that it is alive."""
    running: int = 0
    """Sequences that hold blocks."""
    waiting: int = 0
    queued_prompt_tokens: int | None = None
    """Prompt tokens accepted but not yet computed."""
    total_blocks: int | None = None
    free_blocks: int | None = None
    cached_blocks: int | None = None
    """Held by nobody, kept for their content."""
    used_blocks: int | None = None
    leased_blocks: int | None = None
    kv_bytes: int | None = None
    peak_mem_mb: float | None = None
    steps: int | None = None
    prompt_tokens: int | None = None
    generation_tokens: int | None = None
    prefix_queried_tokens: int | None = None
    prefix_hit_tokens: int | None = None
    host_hit_tokens: int | None = None
    """Those of them that had been brought back from host memory."""
    disk_hit_tokens: int | None = None
    """Those of them that had been brought back from disk."""
    host_kv_bytes: int | None = None
    """Blocks kept in host memory, beside the cache."""
    disk_kv_bytes: int | None = None
    offloaded_blocks: int | None = None
    """Blocks written to host memory or disk, ever."""
    loaded_blocks: int | None = None
    """Blocks brought back from there, ever."""
    preemptions: int | None = None
    evicted_blocks: int | None = None
    drafted_tokens: int | None = None
    """Draft tokens verified; ``None`` where none are drafted."""
    accepted_tokens: int | None = None
    """Those of them that were accepted."""
    adapters: int | None = None
    """LoRA adapters it serves."""
    adapters_in_memory: int | None = None
    """Those of them whose weights are in memory."""
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    refused: int = 0

    @property
    def kv_usage(self) -> float | None:
        """Share of the blocks that sequences hold."""
        if not self.total_blocks or self.used_blocks is None:
            return None
        return self.used_blocks / self.total_blocks
