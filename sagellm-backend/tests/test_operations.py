"""Every operation of the fast backend against the readable one, at odd sizes."""

from __future__ import annotations

import itertools

import pytest
import torch

from sagellm_backend import cpu, reference
from sagellm_protocol.backend import AttentionBatch, GateSpec, KVSpec, RopeSpec, RoutingSpec, WeightUse
from sagellm_protocol.devices import DType
from weights import f32

DTYPES = [DType.FLOAT32, DType.BFLOAT16]
TORCH = {DType.FLOAT32: torch.float32, DType.BFLOAT16: torch.bfloat16}


@pytest.fixture(scope="module")
def fast():
    return cpu.create(threads=1)


@pytest.fixture(scope="module")
def truth():
    return reference.create(threads=1)


def close(got, want, dtype):
    tolerance = 2e-5 if dtype is DType.FLOAT32 else 4e-2
    assert got.dtype == want.dtype
    torch.testing.assert_close(got.float(), want.float(), rtol=tolerance, atol=tolerance)


def random(*shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(TORCH[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 33])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_agrees_with_the_reference_for_stacked_parts(fast, truth, dtype, rows, with_bias):
    parts = [f32(33, 47, seed=1, scale=0.1), f32(5, 47, seed=2, scale=0.1)]
    bias = [f32(33, seed=3), f32(5, seed=4)] if with_bias else []
    x = random(rows, 47, dtype=dtype)
    got = fast.linear(x, fast.pack_weight(parts, dtype, bias=bias))
    want = truth.linear(x, truth.pack_weight(parts, dtype, bias=bias))
    assert got.shape == (rows, 38)
    close(got, want, dtype)


@pytest.mark.parametrize("rows", [1, 6])
def test_linear_takes_a_view_of_a_wider_buffer(fast, truth, rows):
    x = random(rows, 3 * 47, dtype=DType.FLOAT32)[:, 47:94]
    parts = [f32(33, 47)]
    close(
        fast.linear(x, fast.pack_weight(parts, DType.FLOAT32)),
        truth.linear(x, truth.pack_weight(parts, DType.FLOAT32)),
        DType.FLOAT32,
    )


def test_linear_answers_in_the_type_it_was_asked_in(fast):
    weight = fast.pack_weight([f32(8, 16)], DType.FLOAT32)
    assert fast.linear(random(3, 16, dtype=DType.BFLOAT16), weight).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("use", [WeightUse.EMBEDDING, WeightUse.EMBEDDING_AND_LINEAR])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_embedding_finds_rows_of_every_part(fast, truth, dtype, use, count):
    parts = [f32(11, 32, seed=1), f32(6, 32, seed=2)]
    ids = torch.tensor([0, 16, 10, 11, 3][:count], dtype=torch.int64)
    got = fast.embedding(ids, fast.pack_weight(parts, dtype, use=use), dtype)
    assert got.shape == (count, 32)
    close(got, truth.embedding(ids, truth.pack_weight(parts, dtype, use=use), dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_norms_agree_with_the_reference(fast, truth, dtype, rows):
    x, residual = random(rows, 37, dtype=dtype), random(rows, 37, dtype=dtype, seed=1)
    weight, bias = random(37, dtype=dtype, seed=2), random(37, dtype=dtype, seed=3)
    close(fast.rms_norm(x, weight, 1e-5), truth.rms_norm(x, weight, 1e-5), dtype)
    close(fast.layer_norm(x, weight, bias, 1e-5), truth.layer_norm(x, weight, bias, 1e-5), dtype)
    close(fast.layer_norm(x, weight, None, 1e-5), truth.layer_norm(x, weight, None, 1e-5), dtype)
    want = truth.add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
    got = fast.add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
    close(got[0], want[0], dtype)
    close(got[1], want[1], dtype)


def test_rms_norm_works_on_heads_and_on_tiny_values(fast, truth):
    heads = random(3, 5, 16, dtype=DType.FLOAT32) * 1e-4
    weight = random(16, dtype=DType.FLOAT32)
    close(fast.rms_norm(heads, weight, 1e-5), truth.rms_norm(heads, weight, 1e-5), DType.FLOAT32)
    zeros = torch.zeros(2, 16)
    assert torch.equal(fast.rms_norm(zeros, weight, 1e-6), zeros)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize(("rotary_dim", "interleaved"), [(16, False), (16, True), (6, False), (6, True)])
@pytest.mark.parametrize("fused", [True, False])
def test_rope_agrees_with_the_reference(fast, truth, dtype, tokens, rotary_dim, interleaved, fused):
    spec = RopeSpec(tuple(10.0**-i for i in range(rotary_dim // 2)), rotary_dim, interleaved, 1.25)
    positions = torch.arange(tokens) * 3 + 5
    qkv = random(tokens, 8 * 16, dtype=dtype)
    q, k = qkv[:, : 5 * 16].reshape(tokens, 5, 16), qkv[:, 5 * 16 : 7 * 16].reshape(tokens, 2, 16)
    if not fused:
        q, k = q.clone(), k.clone()
    want = truth.rope(q.clone(), k.clone(), positions, spec)
    got = fast.rope(q, k, positions, spec)
    close(got[0], want[0], dtype)
    close(got[1], want[1], dtype)
    assert torch.equal(qkv[:, 7 * 16 :], random(tokens, 8 * 16, dtype=dtype)[:, 7 * 16 :])


def test_rope_follows_positions_that_are_refilled_in_place(fast, truth):
    spec = RopeSpec((1.0, 0.1), 4)
    positions = torch.tensor([1, 2])
    x = random(2, 1, 4, dtype=DType.FLOAT32)
    fast.rope(x.clone(), x.clone(), positions, spec)
    positions.copy_(torch.tensor([9, 4]))
    close(
        fast.rope(x.clone(), x.clone(), positions, spec)[0],
        truth.rope(x.clone(), x.clone(), positions, spec)[0],
        DType.FLOAT32,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_gates_agree_with_the_reference(fast, truth, dtype, rows):
    x = random(rows, 2 * 19, dtype=dtype)
    close(fast.silu_mul(x), truth.silu_mul(x), dtype)
    for approximate in (False, True):
        close(fast.gelu_mul(x, approximate=approximate), truth.gelu_mul(x, approximate=approximate), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_plain_activations_and_caps_agree_with_the_reference(fast, truth, dtype, rows):
    x = random(rows, 19, dtype=dtype)
    for approximate in (False, True):
        close(fast.gelu(x.clone(), approximate=approximate), truth.gelu(x.clone(), approximate=approximate), dtype)
    close(fast.softcap(x.clone(), 1.5), truth.softcap(x.clone(), 1.5), dtype)


ROUTINGS = [
    RoutingSpec(2),
    RoutingSpec(3, renormalize=True, scale=2.5),
    RoutingSpec(2, groups=4, top_groups=2),
    RoutingSpec(3, "sigmoid", True, groups=2, top_groups=1, group_best=2),
]


@pytest.mark.parametrize("spec", ROUTINGS, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 9])
@pytest.mark.parametrize(
    "gate", [GateSpec(), GateSpec(slope=1.7, shift=1.0, limit=0.5), GateSpec("gelu_tanh")], ids=str
)
def test_experts_agree_with_the_reference(fast, truth, spec, tokens, gate):
    gate_up = [[f32(2 * 12, 16, seed=i, scale=0.3)] for i in range(8)]
    down = [[f32(16, 12, seed=9 + i, scale=0.3)] for i in range(8)]
    x, correction = random(tokens, 16, dtype=DType.FLOAT32), random(8, dtype=DType.FLOAT32, seed=1)

    def run(backend):
        def pack(weights):
            return [backend.pack_weight(parts, DType.FLOAT32) for parts in weights]

        router = backend.pack_weight([f32(8, 16, seed=40)], DType.FLOAT32)
        chosen = backend.route(x, router, spec, correction if spec.group_best > 1 else None)
        return backend.moe(x, *chosen, pack(gate_up), pack(down), gate)

    close(run(fast), run(truth), DType.FLOAT32)


def test_a_token_gets_the_same_from_its_experts_whoever_else_is_in_the_step(fast):
    pack = fast.pack_weight
    gate_up = [pack([f32(2 * 12, 16, seed=i, scale=0.3)], DType.FLOAT32) for i in range(4)]
    down = [pack([f32(16, 12, seed=9 + i, scale=0.3)], DType.FLOAT32) for i in range(4)]
    x = random(6, 16, dtype=DType.FLOAT32)
    experts = torch.tensor([[3, 1], [0, 2], [1, 3], [1, 0], [2, 3], [0, 1]])
    shares = torch.rand(6, 2, generator=torch.Generator().manual_seed(3))
    together = fast.moe(x, experts, shares, gate_up, down, GateSpec())
    for token in range(6):
        one = slice(token, token + 1)
        close(fast.moe(x[one], experts[one], shares[one], gate_up, down, GateSpec()), together[one], DType.FLOAT32)


def test_tensors_come_and_go_alike(fast):
    assert fast.to_host(fast.from_host([1, 2, 3], DType.INT64)) == [1, 2, 3]
    assert fast.to_host(fast.from_host((0.5, 2.0), DType.BFLOAT16)) == [0.5, 2.0]
    assert fast.to_host(fast.from_host(b"\x01\x00\x00\x00\xff\xff\xff\xff", DType.INT32)) == [1, -1]
    assert fast.to_host(fast.from_host(b"", DType.INT32)) == []
    assert fast.empty((2, 0), DType.FLOAT32).shape == (2, 0)
    joined = fast.concat([fast.from_host([1.0], DType.FLOAT32), fast.from_host([2.0], DType.FLOAT32)], 0)
    assert fast.to_host(fast.take_rows(joined, [1, 1, 0])) == [2.0, 2.0, 1.0]


class Stream:
    """Random keys, values and queries of one sequence, by position."""

    def __init__(self, seed, length, heads, spec, dtype):
        self.q = random(length, heads, spec.head_dim, dtype=dtype, seed=seed)
        self.k = random(length, spec.num_kv_heads, spec.head_dim, dtype=dtype, seed=seed + 100)
        self.v = random(length, spec.num_kv_heads, spec.value_dim, dtype=dtype, seed=seed + 200)


def run_steps(backend, specs, heads, steps, dtype, *, block_size=4, num_blocks=64, softcap=None, fused=False):
    """Outputs of every step and layer; ``steps`` gives new tokens a sequence; blocks are dealt out of order."""
    cache = backend.allocate_kv(specs, num_blocks, block_size, dtype)
    sequences = len(steps[0])
    total = [sum(step[s] for step in steps) for s in range(sequences)]
    streams = [
        [Stream(7 * s + layer, total[s], heads, spec, dtype) for layer, spec in enumerate(specs)]
        for s in range(sequences)
    ]
    order = iter([*range(1, num_blocks, 2), *range(0, num_blocks, 2)])
    groups = len(set(specs))
    tables = [[[next(order) for _ in range(-(-total[s] // block_size))] for s in range(sequences)]] * groups
    done = [0] * sequences
    outputs = []
    for step in steps:
        live = [s for s in range(sequences) if step[s]]
        batch = AttentionBatch(
            [step[s] for s in live], [done[s] + step[s] for s in live], [[table[s] for s in live] for table in tables]
        )
        plan = backend.plan_attention(cache, batch)
        for layer, spec in enumerate(specs):
            parts = [
                torch.cat([getattr(streams[s][layer], name)[done[s] : done[s] + step[s]] for s in live])
                for name in "qkv"
            ]
            if fused and spec.head_dim == spec.value_dim:
                widths = [part.shape[1] for part in parts]
                buffer = torch.cat([part.flatten(1) for part in parts], dim=1).unflatten(1, (-1, spec.head_dim))
                parts = list(buffer.split(widths, dim=1))
            outputs.append(backend.attention(*parts, cache, layer, plan, scale=spec.head_dim**-0.5, softcap=softcap))
        for s in live:
            done[s] += step[s]
    return outputs, cache


FULL = KVSpec(2, 8, 8)
MIXED = [
    [9, 0, 1, 3, 30],
    [1, 5, 1, 2, 1],
    [1, 1, 1, 1, 1],
    [1, 7, 1, 1, 1],
    [1, 1, 1, 0, 1],
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "specs",
    [
        [FULL],
        [KVSpec(2, 8, 8, window=5)],
        [FULL, KVSpec(2, 8, 8, window=3), FULL],
        [KVSpec(2, 8, 16)],
        [KVSpec(1, 8, 8)],
    ],
    ids=["full", "window", "two-groups", "wide-values", "one-head"],
)
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("fused", [False, True])
def test_attention_agrees_with_the_reference_over_mixed_steps(fast, truth, dtype, specs, softcap, fused):
    got, _ = run_steps(fast, specs, 6, MIXED, dtype, softcap=softcap, fused=fused)
    want, _ = run_steps(truth, specs, 6, MIXED, dtype, softcap=softcap, fused=fused)
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        close(one, other, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 4])
def test_attention_agrees_with_the_reference_over_many_streams(fast, truth, dtype, window):
    specs = [KVSpec(2, 8, 8, window)]
    steps = [[1 + 5 * (s % 4) for s in range(19)], [1] * 19, [1] * 18 + [0], [1, 2, *[1] * 17]]
    got, _ = run_steps(fast, specs, 6, steps, dtype, num_blocks=128)
    want, _ = run_steps(truth, specs, 6, steps, dtype, num_blocks=128)
    for one, other in zip(got, want, strict=True):
        close(one, other, dtype)


def test_attention_gives_the_same_whether_a_prompt_is_chunked_or_batched(fast):
    alone = [run_steps(fast, [FULL], 4, [[n]], DType.FLOAT32)[0][0] for n in (23,)]
    chunked, _ = run_steps(fast, [FULL], 4, [[8, 3], [8, 1], [6, 1], [1, 1]], DType.FLOAT32)
    joined = torch.cat([chunked[0][:8], chunked[1][:8], chunked[2][:6], chunked[3][:1]])
    close(joined, alone[0], DType.FLOAT32)


def test_a_neighbours_broken_numbers_stay_with_it(fast):
    cache = fast.allocate_kv([FULL], 8, 4, DType.FLOAT32)
    cache.both[0].fill_(float("nan"))
    q, k, v = (random(2, h, 8, dtype=DType.FLOAT32, seed=h) for h in (4, 2, 2))
    for query, key, value, total in ((q, k, v, (1, 1)), (q, k, v, (2, 2)), (q[:1], k[:1], v[:1], (3,))):
        plan = fast.plan_attention(cache, AttentionBatch([1] * len(total), total, [[[0], [5]][: len(total)]]))
        assert torch.isfinite(fast.attention(query, key, value, cache, 0, plan, scale=1.0)).all()


def test_an_empty_step_is_allowed(fast):
    cache = fast.allocate_kv([FULL], 4, 4, DType.FLOAT32)
    plan = fast.plan_attention(cache, AttentionBatch([], [], [[]]))
    empty = torch.empty(0, 2, 8)
    assert fast.attention(empty, empty, empty, cache, 0, plan, scale=1.0).shape == (0, 2, 8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_can_be_copied_exported_and_imported(fast, dtype):
    specs = [FULL, KVSpec(1, 8, 16)]
    cache = fast.allocate_kv(specs, 6, 4, dtype)
    for seed, plane in enumerate((*cache.keys, *cache.values)):
        plane.copy_(random(*plane.shape, dtype=dtype, seed=seed))
    before = [fast.export_blocks(cache, [block]) for block in range(6)]
    fast.copy_blocks(cache, [(0, 3), (3, 5)])
    after = [fast.export_blocks(cache, [block]) for block in range(6)]
    assert after == [before[0], before[1], before[2], before[0], before[4], before[3]]
    other = fast.allocate_kv(specs, 9, 4, dtype)
    fast.import_blocks(other, [8, 2], fast.export_blocks(cache, [1, 5]))
    assert fast.export_blocks(other, [8]) == before[1]
    assert fast.export_blocks(other, [2]) == before[3]
    assert cache.nbytes == sum(len(piece) for piece in before)


def test_every_step_order_of_two_sequences_is_the_same_to_a_third(fast):
    lengths = [3, 6, 11]
    seen = []
    for order in itertools.permutations(range(3)):
        cache = fast.allocate_kv([FULL], 32, 4, DType.FLOAT32)
        streams = [Stream(s, lengths[s], 4, FULL, DType.FLOAT32) for s in order]
        tables = [[s * 8 + i for i in range(3)] for s in order]
        for new in ([lengths[s] - 1 for s in order], [1, 1, 1]):
            totals = [lengths[s] - 1 for s in order] if new != [1, 1, 1] else [lengths[s] for s in order]
            plan = fast.plan_attention(cache, AttentionBatch(new, totals, [tables]))
            parts = [
                torch.cat([getattr(stream, name)[t - n : t] for stream, n, t in zip(streams, new, totals, strict=True)])
                for name in "qkv"
            ]
            out = fast.attention(*parts, cache, 0, plan, scale=0.3)
        seen.append(out[order.index(2)])
    for out in seen[1:]:
        close(out, seen[0], DType.FLOAT32)
