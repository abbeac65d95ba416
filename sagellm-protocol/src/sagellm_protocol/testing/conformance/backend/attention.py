"""Conformance of paged attention and of moving blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sagellm_protocol.backend import AttentionBatch, Backend, KVCache, KVSpec
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.testing import truth

from .base import BackendSuite, Floats

BLOCK_SIZE = 5
NUM_BLOCKS = 24


class _Sequence:
    """A sequence's true queries, keys and values, its blocks, and how much of it is cached."""

    def __init__(self, rng: np.random.Generator, spec: KVSpec, heads: int, length: int, blocks: Sequence[int]) -> None:
        self.q = rng.standard_normal((length, heads, spec.head_dim))
        self.k = rng.standard_normal((length, spec.num_kv_heads, spec.head_dim))
        self.v = rng.standard_normal((length, spec.num_kv_heads, spec.value_dim))
        self.blocks = blocks
        self.cached = 0


class AttentionConformance(BackendSuite):
    """A pool is written and read step by step, as an engine does."""

    def _step(
        self,
        backend: Backend[Any],
        cache: KVCache,
        dtype: DType,
        work: Sequence[tuple[_Sequence, int]],
        *,
        softcap: float | None = None,
        sinks: Floats | None = None,
    ) -> None:
        """Compute the next tokens of some sequences and compare them with the truth."""
        spec = cache.specs[0]
        scale = 1 / math.sqrt(spec.head_dim)
        latent = spec.value_dim == 0
        parts: dict[str, list[Floats]] = {"q": [], "k": [], "v": []}
        for sequence, count in work:
            new = slice(sequence.cached, sequence.cached + count)
            for name, part in parts.items():
                part.append(getattr(sequence, name)[new])
            sequence.cached += count
        batch = AttentionBatch(
            query_lens=[count for _, count in work],
            context_lens=[sequence.cached for sequence, _ in work],
            block_tables=[[sequence.blocks[: -(-sequence.cached // cache.block_size)] for sequence, _ in work]],
        )
        q, k = (self.tensor(backend, np.concatenate(parts[name]), dtype) for name in "qk")
        v = None if latent else self.tensor(backend, np.concatenate(parts["v"]), dtype)
        got = backend.attention(
            q,
            k,
            v,
            cache,
            0,
            backend.plan_attention(cache, batch),
            scale=scale,
            softcap=softcap,
            sinks=None if sinks is None else self.tensor(backend, sinks, DType.FLOAT32),
        )
        want = [
            truth.paged_attention(
                self.rounded(backend, sequence.q[sequence.cached - count : sequence.cached], dtype),
                self.rounded(backend, sequence.k[: sequence.cached], dtype),
                self.rounded(
                    backend,
                    sequence.k[: sequence.cached, :, : spec.latent_dim] if latent else sequence.v[: sequence.cached],
                    dtype,
                ),
                scale=scale,
                window=spec.window,
                chunked=spec.chunked,
                softcap=softcap,
                sinks=sinks,
            )
            for sequence, count in work
        ]
        self.check_tensor(backend, got, np.concatenate(want), dtype)

    @pytest.mark.parametrize(
        ("spec", "heads", "softcap"),
        [
            pytest.param(KVSpec(2, 8, 8), 2, None, id="one head each"),
            pytest.param(KVSpec(3, 16, 16), 9, None, id="grouped heads"),
            pytest.param(KVSpec(1, 6, 6), 4, None, id="one head for all"),
            pytest.param(KVSpec(2, 8, 12), 4, None, id="values wider than keys"),
            pytest.param(KVSpec(2, 8, 8, window=4), 4, None, id="window shorter than a block"),
            pytest.param(KVSpec(2, 8, 8, window=7), 4, None, id="window across blocks"),
            pytest.param(KVSpec(2, 8, 8, window=8, chunked=True), 4, None, id="chunks of two blocks"),
            pytest.param(KVSpec(2, 16, 16, window=5, chunked=True), 4, None, id="chunks across blocks"),
            pytest.param(KVSpec(2, 8, 8), 4, 3.0, id="soft cap"),
            pytest.param(KVSpec(1, 12, 0, latent_dim=8), 4, None, id="latent"),
            pytest.param(KVSpec(2, 12, 0, window=7, latent_dim=8), 4, 3.0, id="latent, window, soft cap"),
            pytest.param(KVSpec(2, 16, 16, sinks=True), 4, None, id="sinks"),
            pytest.param(KVSpec(2, 8, 8, window=7, sinks=True), 4, None, id="sinks, window"),
            pytest.param(KVSpec(2, 8, 12, sinks=True), 4, 3.0, id="sinks, values wider than keys, soft cap"),
        ],
    )
    def test_prefill_chunks_and_decodes_mix_in_a_step(
        self,
        backend: Backend[Any],
        rng: np.random.Generator,
        dtype: DType,
        spec: KVSpec,
        heads: int,
        softcap: float | None,
    ) -> None:
        cache = backend.allocate_kv([spec], NUM_BLOCKS, BLOCK_SIZE, dtype)
        assert cache.specs == (spec,)
        assert (cache.num_blocks, cache.block_size) == (NUM_BLOCKS, BLOCK_SIZE)
        assert cache.nbytes >= NUM_BLOCKS * BLOCK_SIZE * spec.num_kv_heads * (spec.head_dim + spec.value_dim) * 2
        a = _Sequence(rng, spec, heads, 19, [23, 2, 11, 7])
        b = _Sequence(rng, spec, heads, 12, [0, 9, 4])
        c = _Sequence(rng, spec, heads, 6, [1, 16])
        sinks = np.linspace(-1, 2, heads) if spec.sinks else None
        for work in (
            [(a, 7)],
            [(a, 3), (b, 10)],
            [(b, 1), (a, 6), (c, 1)],
            [(c, 1), (a, 1), (b, 1)],
            [(c, 4), (a, 2)],
        ):
            self._step(backend, cache, dtype, work, softcap=softcap, sinks=sinks)

    def test_a_prompt_longer_than_one_block_is_attended_at_once(
        self, backend: Backend[Any], rng: np.random.Generator, dtype: DType
    ) -> None:
        spec = KVSpec(2, 8, 8)
        cache = backend.allocate_kv([spec], NUM_BLOCKS, BLOCK_SIZE, dtype)
        sequence = _Sequence(rng, spec, 4, 98, list(range(22, 2, -1)))
        self._step(backend, cache, dtype, [(sequence, 97)])
        self._step(backend, cache, dtype, [(sequence, 1)])

    def test_sequences_share_the_blocks_of_a_prefix(
        self, backend: Backend[Any], rng: np.random.Generator, dtype: DType
    ) -> None:
        spec = KVSpec(2, 8, 8)
        cache = backend.allocate_kv([spec], NUM_BLOCKS, BLOCK_SIZE, dtype)
        first = _Sequence(rng, spec, 4, 14, [3, 5, 8])
        second = _Sequence(rng, spec, 4, 13, [3, 5, 13])
        second.k[:10], second.v[:10], second.cached = first.k[:10], first.v[:10], 10
        self._step(backend, cache, dtype, [(first, 13)])
        self._step(backend, cache, dtype, [(first, 1), (second, 3)])

    def test_each_group_of_layers_has_its_own_block_table(
        self, backend: Backend[Any], rng: np.random.Generator, dtype: DType
    ) -> None:
        wide, narrow = KVSpec(2, 8, 8), KVSpec(1, 8, 8, window=4)
        cache = backend.allocate_kv([wide, narrow, wide], NUM_BLOCKS, BLOCK_SIZE, dtype)
        tables = [[[4, 1]], [[9, 2]]]
        plan = backend.plan_attention(cache, AttentionBatch([8], [8], tables))
        for layer, spec in enumerate((wide, narrow, wide)):
            one = _Sequence(rng, spec, 2, 8, [])
            q, k, v = (self.tensor(backend, values, dtype) for values in (one.q, one.k, one.v))
            got = backend.attention(q, k, v, cache, layer, plan, scale=0.3)
            rounded = [self.rounded(backend, values, dtype) for values in (one.q, one.k, one.v)]
            want = truth.paged_attention(*rounded, scale=0.3, window=spec.window)
            self.check_tensor(backend, got, want, dtype)

    def test_a_copied_block_reads_like_its_source(
        self, backend: Backend[Any], rng: np.random.Generator, dtype: DType
    ) -> None:
        spec = KVSpec(2, 8, 8)
        cache = backend.allocate_kv([spec], NUM_BLOCKS, BLOCK_SIZE, dtype)
        sequence = _Sequence(rng, spec, 4, 12, [3, 5, 8])
        self._step(backend, cache, dtype, [(sequence, 9)])
        backend.copy_blocks(cache, [(5, 20), (3, 0)])
        sequence.blocks = [0, 20, 8]
        self._step(backend, cache, dtype, [(sequence, 3)])

    @pytest.mark.parametrize("spec", [KVSpec(2, 8, 8), KVSpec(1, 12, 0, latent_dim=8)], ids=["usual", "latent"])
    def test_exported_blocks_can_be_imported_into_another_pool(
        self, backend: Backend[Any], rng: np.random.Generator, dtype: DType, spec: KVSpec
    ) -> None:
        specs = [spec]
        source = backend.allocate_kv(specs, NUM_BLOCKS, BLOCK_SIZE, dtype)
        target = backend.allocate_kv(specs, NUM_BLOCKS - 5, BLOCK_SIZE, dtype)
        assert source.layout == target.layout
        assert source.layout
        sequence = _Sequence(rng, specs[0], 4, 12, [21, 5, 8])
        self._step(backend, source, dtype, [(sequence, 9)])
        backend.import_blocks(target, [2, 17], backend.export_blocks(source, [21, 5]))
        sequence.blocks = [2, 17, 4]
        self._step(backend, target, dtype, [(sequence, 3)])

    def test_an_import_of_the_wrong_size_is_refused(self, backend: Backend[Any], dtype: DType) -> None:
        cache = backend.allocate_kv([KVSpec(2, 8, 8)], NUM_BLOCKS, BLOCK_SIZE, dtype)
        data = backend.export_blocks(cache, [1, 2])
        for wrong in (data[:-1], data + b"\0"):
            with pytest.raises(SageLLMError) as refusal:
                backend.import_blocks(cache, [1, 2], wrong)
            assert refusal.value.code is ErrorCode.INVALID_REQUEST
