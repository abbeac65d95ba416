"""How to spread a model over devices: tensor x pipeline x data parallel, reckoned from memory, heads and links.

Every split that the model's sizes allow is reckoned through in order of what it costs in communication: layers divided
within devices that NVLink joins, then stages, then layers divided over slower links; the smallest that fits is taken,
and what remains of the devices becomes further replicas. Why is said, also of those not taken. Pure; knows nothing of
how devices are found.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sagellm_protocol import ErrorCode, SageLLMError

from .inventory import Device, Link, LinkKind
from .shape import ModelShape, bytes_of

GIB = 2**30


@dataclass(frozen=True)
class Wish:
    """What the model is to do."""

    context: int = 8192
    """Tokens of prompt and answer that a sequence may have."""
    concurrency: int = 32
    """Sequences of that length at once, over all replicas."""
    quantization: str | None = None
    """Of the weights; ``None``: as the model's own type."""
    kv_dtype: str = "bfloat16"
    step_tokens: int = 8192
    """Tokens that one step computes at most."""
    usable: float = 0.9
    """Share of a device's memory that may be used."""
    runtime_bytes: int = 1 * GIB
    """Taken on each device by its driver, libraries and captured graphs."""

    def __post_init__(self) -> None:
        for name in ("context", "concurrency", "step_tokens"):
            if getattr(self, name) < 1:
                raise SageLLMError(ErrorCode.INVALID_REQUEST, f"{name} must be 1 or more", name)
        if not 0 < self.usable <= 1:
            raise SageLLMError(ErrorCode.INVALID_REQUEST, "usable must be more than 0 and at most 1", "usable")


@dataclass(frozen=True)
class Memory:
    """Bytes on the device that needs the most."""

    weights: int
    kv: int
    activations: int
    runtime: int
    available: int

    @property
    def total(self) -> int:
        """Needed."""
        return self.weights + self.kv + self.activations + self.runtime

    @property
    def short(self) -> int:
        """Needed beyond what is available."""
        return max(0, self.total - self.available)


@dataclass(frozen=True)
class Plan:
    """A split, and what led to it."""

    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int
    memory: Memory
    kv_tokens: int
    """Tokens that the cache of one replica can hold in what is left."""
    reasons: tuple[str, ...]

    @property
    def devices(self) -> int:
        """That it uses."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel


def memory_of(shape: ModelShape, wish: Wish, tp: int, pp: int, dp: int, available: int) -> Memory:
    """Memory of a split on its fullest device: of a stage with the most layers, and an embedding beside them.

    Keys and values of fewer heads than ``tp`` are held several times. Activations are those of one step at the widest
    point of a layer, and the logits of every sequence in float32.
    """
    weight, act = bytes_of(wish.quantization or shape.dtype), bytes_of(_computed(shape.dtype))
    layers, kv_heads = math.ceil(shape.layers / pp), max(1, shape.kv_heads // tp)
    kv_params = 2 * shape.hidden * kv_heads * shape.head_dim
    layer = (shape.attention_params + shape.mlp_params) / tp + kv_params
    # Embeddings, norms and routers stay in the model's own type when the rest is quantised.
    embeddings = (1 if shape.tied or pp > 1 else 2) * shape.vocab * shape.hidden / tp
    weights = layers * (layer * weight + shape.small_params * act) + (embeddings + shape.hidden) * act
    sequences = math.ceil(wish.concurrency / dp)
    inner = max(shape.intermediate, shape.expert_intermediate) / tp
    widest = 4 * shape.hidden + 3 * inner + (shape.heads / tp + 2 * kv_heads) * shape.head_dim
    logits = sequences * shape.vocab * 4
    return Memory(
        weights=math.ceil(weights),
        kv=sequences * wish.context * kv_bytes(shape, wish, tp, pp),
        activations=math.ceil(wish.step_tokens * widest * act) + logits,
        runtime=wish.runtime_bytes,
        available=available,
    )


def kv_bytes(shape: ModelShape, wish: Wish, tp: int = 1, pp: int = 1) -> int:
    """Bytes of keys and values of one token on the fullest device."""
    heads = max(1, shape.kv_heads // tp)
    return math.ceil(2 * math.ceil(shape.layers / pp) * heads * shape.head_dim * bytes_of(wish.kv_dtype))


def plan(shape: ModelShape, devices: Sequence[Device], links: Iterable[Link] = (), wish: Wish | None = None) -> Plan:
    """The split that serves a wish.

    Args:
        shape: The model.
        devices: Those that may be used, of one kind; the smallest sets the measure.
        links: How they are joined; without any, nothing is known of it.
        wish: What the model is to do.

    Raises:
        SageLLMError: ``UNAVAILABLE`` naming what is short and what would do instead.
    """
    wish, links = wish or Wish(), tuple(links)
    sizes = [device.info.memory_total_bytes for device in devices]
    known = [size for size in sizes if size is not None]
    if not known or len(known) < len(sizes):
        raise SageLLMError(ErrorCode.UNAVAILABLE, "no device is there, or one does not tell its memory", "devices")
    count, available = len(devices), int(min(known) * wish.usable)
    islands = _islands([device.info.index for device in devices], links)
    tried = [
        _Split(tp, pp, min(count // (tp * pp), wish.concurrency))
        for tp in range(1, count + 1)
        for pp in range(1, count // tp + 1)
        if pp <= shape.layers
    ]
    reasons = [f"{shape.params / 1e9:.2f} billion parameters, {kv_bytes(shape, wish):,} bytes of cache a token"]
    reasons += sorted({why for split in tried if (why := _uneven(shape, split.tp))})
    even = [split for split in tried if not _uneven(shape, split.tp)]
    even.sort(key=lambda split: (0, split.pp, split.tp) if split.near(islands) else (1, split.tp, split.pp))
    for split in even:
        memory = memory_of(shape, wish, split.tp, split.pp, split.dp, available)
        if memory.short:
            reasons.append(f"{split} does not fit: {_told(memory)}")
            continue
        reasons += [f"{split} fits: {_told(memory)}", _joined(shape, split, islands, links)]
        room = memory.available - memory.total + memory.kv
        tokens = room // kv_bytes(shape, wish, split.tp, split.pp)
        return Plan(split.tp, split.pp, split.dp, memory, tokens, tuple(reasons))
    raise _refusal(shape, wish, even, available, count)


@dataclass(frozen=True)
class _Split:
    tp: int
    pp: int
    dp: int

    @property
    def each(self) -> int:
        return self.tp * self.pp

    def near(self, islands: Sequence[int]) -> bool:
        """Whether every tensor-parallel group lies within devices that NVLink joins."""
        return self.tp == 1 or sum(size // self.tp for size in islands) >= self.pp * self.dp

    def __str__(self) -> str:
        return f"tensor {self.tp} x pipeline {self.pp} x data {self.dp}"


def _computed(dtype: str) -> str:
    return dtype if dtype in ("float32", "bfloat16", "float16") else "bfloat16"


def _uneven(shape: ModelShape, tp: int) -> str | None:
    """Why the model cannot be divided so."""
    if shape.heads % tp:
        return f"tensor {tp}: {shape.heads} heads are not divisible by it"
    if shape.kv_heads % tp and tp % shape.kv_heads:
        return f"tensor {tp}: {shape.kv_heads} key/value heads neither divide it nor are divisible by it"
    if shape.intermediate % tp or shape.expert_intermediate % tp or shape.shared_intermediate % tp:
        return f"tensor {tp}: the MLP's width is not divisible by it"
    return None


def _islands(indices: Sequence[int], links: Iterable[Link]) -> list[int]:
    """Sizes of the sets of devices that NVLink joins."""
    of = {index: {index} for index in indices}
    for link in links:
        if link.kind is LinkKind.NVLINK and link.a in of and link.b in of and of[link.a] is not of[link.b]:
            joined = of[link.a] | of[link.b]
            of.update(dict.fromkeys(joined, joined))
    return sorted(len(island) for island in {id(island): island for island in of.values()}.values())


def _joined(shape: ModelShape, split: _Split, islands: Sequence[int], links: Sequence[Link]) -> str:
    """What devices of a replica tell one another for each token."""
    act = bytes_of(_computed(shape.dtype))
    if split.each == 1:
        return "a replica is one device: nothing crosses between devices"
    tensor = 2 * shape.layers * 2 * (split.tp - 1) / split.tp * shape.hidden * act / 1024
    pipeline = (split.pp - 1) * shape.hidden * act / 1024
    crosses = f"{tensor + pipeline:,.0f} KiB cross between devices for each token"
    if not links:
        return f"{crosses}; how they are joined is not known"
    return f"{crosses}, {'over NVLink' if split.near(islands) else 'some over PCIe, which will be felt'}"


def _told(memory: Memory) -> str:
    parts = ("weights", "kv", "activations", "runtime", "total", "available")
    return ", ".join(f"{name} {getattr(memory, name) / GIB:.1f}" for name in parts) + " GiB a device"


def _refusal(shape: ModelShape, wish: Wish, splits: Sequence[_Split], available: int, count: int) -> SageLLMError:
    """What is short in the split that comes nearest, and what would fit there."""
    nearest = min(splits, key=lambda split: memory_of(shape, wish, split.tp, split.pp, split.dp, available).short)
    memory = memory_of(shape, wish, nearest.tp, nearest.pp, nearest.dp, available)
    told = f"{count} devices are too few: {nearest} lacks {memory.short / GIB:.1f} GiB a device ({_told(memory)})"
    room = memory.available - memory.total + memory.kv
    tokens = room // kv_bytes(shape, wish, nearest.tp, nearest.pp) * nearest.dp
    if tokens >= wish.context:
        advice = f"{tokens // wish.context} sequences of {wish.context} tokens would fit"
    elif tokens > 0:
        advice = f"one sequence of {tokens} tokens would fit"
    else:
        advice = "its weights alone do not fit: quantise them, or use more or larger devices"
    return SageLLMError(ErrorCode.UNAVAILABLE, f"{told}; {advice}", "devices")
