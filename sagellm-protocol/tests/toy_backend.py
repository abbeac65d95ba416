"""A backend of NumPy arrays in float64, as somebody who reads only the contract would write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sagellm_protocol import (
    AdaptedRows,
    AttentionBatch,
    BackendCapabilities,
    DeviceInfo,
    DType,
    ErrorCode,
    FusableUnit,
    GateSpec,
    KVSpec,
    MemoryInfo,
    RawWeight,
    RopeSpec,
    RoutingSpec,
    RowLogprobs,
    SageLLMError,
    Sampled,
    SamplingBatch,
    WeightFormat,
    WeightUse,
)
from sagellm_protocol.testing import truth

_INTS = {DType.INT64: np.int64, DType.INT32: np.int32}


@dataclass
class ToyWeight:
    values: np.ndarray
    bias: np.ndarray | None
    batch_invariant = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def nbytes(self) -> int:
        return self.values.nbytes


@dataclass
class ToyCache:
    specs: tuple[KVSpec, ...]
    num_blocks: int
    block_size: int
    layers: list[tuple[np.ndarray, np.ndarray]]
    layout: str = "toy-1"
    batch_invariant = False

    @property
    def nbytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)


@dataclass
class ToyGroup:
    rank: int
    size: int


def create(device: str | None = None, *, dtype: str = "auto", threads: int | None = None) -> ToyBackend:
    return ToyBackend()


class ToyBackend:
    name = "toy"
    device = DeviceInfo(kind="toy", name="a toy")

    def capabilities(self) -> BackendCapabilities:
        return BackendCapabilities(
            backend="toy",
            available=True,
            devices=(self.device,),
            dtypes=(DType.FLOAT32,),
            kv_dtypes=(DType.FLOAT32,),
            weight_formats=tuple(format.value for format in WeightFormat),
        )

    def tensor(self, raw: RawWeight, dtype: DType) -> np.ndarray:
        if raw.format not in self.capabilities().weight_formats:
            raise SageLLMError(ErrorCode.UNSUPPORTED, f"{raw.name} is in {raw.format!r}, which the toy cannot read")
        return truth.values(raw)

    def from_host(self, values: Any, dtype: DType) -> np.ndarray:
        return np.array(values, _INTS.get(dtype, np.float64))

    def to_host(self, tensor: np.ndarray) -> list[Any]:
        return tensor.tolist()

    def empty(self, shape: tuple[int, ...], dtype: DType) -> np.ndarray:
        return np.empty(shape, _INTS.get(dtype, np.float64))

    def concat(self, tensors: Sequence[np.ndarray], axis: int) -> np.ndarray:
        return np.concatenate(tensors, axis)

    def synchronize(self) -> None:
        """Nothing is ever under way."""

    def pack_weight(
        self,
        parts: Sequence[RawWeight],
        dtype: DType,
        *,
        use: WeightUse = WeightUse.LINEAR,
        bias: Sequence[RawWeight] = (),
        quantization: str | None = None,
    ) -> ToyWeight:
        if quantization is not None:
            raise SageLLMError(ErrorCode.UNSUPPORTED, f"the toy does not quantise to {quantization!r}")
        return ToyWeight(
            np.concatenate([self.tensor(part, dtype) for part in parts]),
            np.concatenate([self.tensor(part, dtype) for part in bias]) if bias else None,
        )

    def linear(
        self, x: np.ndarray, weight: ToyWeight, adapters: Sequence[AdaptedRows[Any]] | None = None
    ) -> np.ndarray:
        product = truth.linear(x, weight.values, weight.bias)
        for rows in adapters or ():
            low, first = x[rows.begin : rows.end] @ rows.low_rank.down.T, 0
            for up, begin in zip(rows.low_rank.up, rows.low_rank.begins, strict=True):
                part = low[:, first : first + up.shape[1]]
                product[rows.begin : rows.end, begin : begin + len(up)] += part @ up.T
                first += up.shape[1]
        return product

    def embedding(self, ids: np.ndarray, weight: ToyWeight, dtype: DType) -> np.ndarray:
        return truth.embedding(ids.tolist(), weight.values)

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        return truth.rms_norm(x, weight, eps)

    def add_rms_norm(
        self, x: np.ndarray, residual: np.ndarray, weight: np.ndarray, eps: float
    ) -> tuple[np.ndarray, np.ndarray]:
        return truth.rms_norm(x + residual, weight, eps), x + residual

    def layer_norm(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, eps: float) -> np.ndarray:
        return truth.layer_norm(x, weight, bias, eps)

    def rope(
        self, q: np.ndarray, k: np.ndarray, positions: np.ndarray, spec: RopeSpec
    ) -> tuple[np.ndarray, np.ndarray]:
        return truth.rope(q, positions.tolist(), spec), truth.rope(k, positions.tolist(), spec)

    def silu_mul(self, gate_up: np.ndarray) -> np.ndarray:
        return truth.silu_mul(gate_up)

    def gelu_mul(self, gate_up: np.ndarray, *, approximate: bool) -> np.ndarray:
        return truth.gelu_mul(gate_up, approximate=approximate)

    def gelu(self, x: np.ndarray, *, approximate: bool) -> np.ndarray:
        return truth.gelu(x, approximate=approximate)

    def softcap(self, x: np.ndarray, cap: float) -> np.ndarray:
        return truth.softcap(x, cap)

    def headwise(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return truth.headwise(x, weight)

    def route(
        self, x: np.ndarray, router: ToyWeight, spec: RoutingSpec, correction: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        shares = truth.route(truth.linear(x, router.values, router.bias), spec, correction)
        chosen = np.argsort(-shares, axis=1)[:, : spec.top_k]
        return chosen, np.take_along_axis(shares, chosen, axis=1)

    def moe(
        self,
        x: np.ndarray,
        experts: np.ndarray,
        shares: np.ndarray,
        gate_up: Sequence[ToyWeight],
        down: Sequence[ToyWeight],
        gate: GateSpec,
    ) -> np.ndarray:
        every = np.zeros((len(x), len(gate_up)))
        np.put_along_axis(every, experts, shares, axis=1)
        matrices = ([(weight.values, weight.bias) for weight in weights] for weights in (gate_up, down))
        return truth.moe(x, every, *matrices, gate)

    def take_rows(self, x: np.ndarray, rows: Sequence[int]) -> np.ndarray:
        return x[list(rows)]

    def segment_sum(self, x: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
        return np.stack([rows.sum(0) for rows in np.split(x, np.cumsum(lengths)[:-1])])

    def plan_segments(self, lengths: Sequence[int]) -> list[int]:
        return list(lengths)

    def segment_attention(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, plan: list[int], *, scale: float
    ) -> np.ndarray:
        cuts = np.cumsum(plan)[:-1]
        parts = zip(*(np.split(part, cuts) for part in (q, k, v)), strict=True)
        return np.concatenate([truth.segment_attention(*each, scale=scale) for each in parts])

    def allocate_kv(self, specs: Sequence[KVSpec], num_blocks: int, block_size: int, dtype: DType) -> ToyCache:
        layers = [
            tuple(
                np.zeros((num_blocks, block_size, spec.num_kv_heads, size)) for size in (spec.head_dim, spec.value_dim)
            )
            for spec in specs
        ]
        return ToyCache(tuple(specs), num_blocks, block_size, layers)

    def plan_attention(self, cache: ToyCache, batch: AttentionBatch) -> AttentionBatch:
        return batch

    def attention(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray | None,
        cache: ToyCache,
        layer: int,
        plan: AttentionBatch,
        *,
        scale: float,
        softcap: float | None = None,
        sinks: np.ndarray | None = None,
    ) -> np.ndarray:
        spec = cache.specs[layer]
        tables = plan.block_tables[list(dict.fromkeys(cache.specs)).index(spec)]
        results, start = [], 0
        for count, context, table in zip(plan.query_lens, plan.context_lens, tables, strict=True):
            new = slice(start, start + count)
            places = [(table[at // cache.block_size], at % cache.block_size) for at in range(context)]
            for row, (block, offset) in zip(range(*new.indices(len(q))), places[context - count :], strict=True):
                cache.layers[layer][0][block, offset] = k[row]
                if v is not None:
                    cache.layers[layer][1][block, offset] = v[row]
            keys, values = (np.stack([pages[place] for place in places]) for pages in cache.layers[layer])
            if v is None:
                values = keys[..., : spec.latent_dim]
            options = {"window": spec.window, "chunked": spec.chunked, "softcap": softcap, "sinks": sinks}
            results.append(truth.paged_attention(q[new], keys, values, scale=scale, **options))
            start += count
        return np.concatenate(results)

    def copy_blocks(self, cache: ToyCache, pairs: Sequence[tuple[int, int]]) -> None:
        for pages in (pages for layer in cache.layers for pages in layer):
            for source, target in pairs:
                pages[target] = pages[source]

    def export_blocks(self, cache: ToyCache, blocks: Sequence[int]) -> bytes:
        return b"".join(pages[list(blocks)].tobytes() for layer in cache.layers for pages in layer)

    def import_blocks(self, cache: ToyCache, blocks: Sequence[int], data: Any) -> None:
        wanted = sum(pages[0].nbytes for layer in cache.layers for pages in layer) * len(blocks)
        if len(data) != wanted:
            raise SageLLMError(ErrorCode.INVALID_REQUEST, f"{len(blocks)} blocks are {wanted} bytes (got {len(data)})")
        start = 0
        for pages in (pages for layer in cache.layers for pages in layer):
            part = pages[list(blocks)]
            pages[list(blocks)] = np.frombuffer(data, np.float64, part.size, start).reshape(part.shape)
            start += part.nbytes

    def sample(self, logits: np.ndarray, batch: SamplingBatch) -> Sampled:
        tokens = [
            truth.draw(truth.distribution(row, batch, index), batch.uniform[index]) for index, row in enumerate(logits)
        ]
        reports = [
            None if top is None else self.logprobs_of(logits[index : index + 1], [tokens[index]], top)[0]
            for index, top in enumerate(batch.logprobs)
        ]
        return Sampled(tokens, reports)

    def logprobs_of(self, logits: np.ndarray, token_ids: Sequence[int], top: int) -> Sequence[RowLogprobs]:
        rows = []
        for row, token in zip(truth.logprobs(logits), token_ids, strict=True):
            best = np.argsort(-row, kind="stable")[:top].tolist()
            rank = 1 + int((row > row[token]).sum())
            rows.append(RowLogprobs(float(row[token]), rank, tuple((other, float(row[other])) for other in best)))
        return rows

    def fuse(self, unit: FusableUnit) -> Callable[..., Any] | None:
        return None

    def capture(self, run: Callable[[], None]) -> Any:
        raise SageLLMError(ErrorCode.UNSUPPORTED, "the toy captures no graphs")

    def make_group(self, rank: int, size: int, rendezvous: str) -> ToyGroup:
        return ToyGroup(rank, size)

    def all_reduce(self, x: np.ndarray, group: ToyGroup) -> np.ndarray:
        return x

    def all_gather(self, x: np.ndarray, group: ToyGroup, axis: int) -> np.ndarray:
        return x

    def memory(self) -> MemoryInfo:
        return MemoryInfo(total_bytes=2**30, free_bytes=2**29)
