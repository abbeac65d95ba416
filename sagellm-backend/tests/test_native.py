"""Native kernels against the readable backend: every instruction set that runs here, one thread and two, odd sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sagellm_backend import cpu, formats, reference
from sagellm_backend.cpu import CpuBackend, native
from sagellm_backend.cpu.native.library import AVX2, AVX512, PORTABLE
from sagellm_protocol.backend import AttentionBatch, FusableUnit, KVSpec, RopeSpec, WeightFormat, WeightUse
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import SageLLMError
from weights import blocks, f32, raw_weight

kernels = native.load()
pytestmark = pytest.mark.skipif(kernels is None, reason="the package was built without native kernels")
LEVELS = [level for level in (PORTABLE, AVX2, AVX512) if kernels is not None and level <= kernels.level]
HIDDEN, INNER, HEADS, KV_HEADS, DIM, VOCABULARY, LAYERS = 96, 160, 6, 2, 16, 50, 3


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class Decoder:
    """A small decoder's weights, packed by two backends, and its operations one by one on the readable one."""

    def __init__(
        self, kind=WeightFormat.Q4_1, *, kinds=None, hidden=HIDDEN, inner=INNER, embedding=WeightFormat.Q8_0,
        qk_norm=False, bias=False, windows=(None,) * LAYERS, rope=None,
    ):  # fmt: skip
        self.truth = reference.create(dtype="bfloat16", threads=1)
        self.fast = CpuBackend(DType.BFLOAT16, kernels)
        self.rope = rope or RopeSpec(tuple(100.0 ** (-i / (DIM // 2)) for i in range(DIM // 2)), DIM)
        self.windows = windows
        self.raws = {"embedding": ([raw_weight(embedding, VOCABULARY, hidden, 9)], [])}
        vectors = {"norm": hidden}
        for i in range(LAYERS):
            at = f"layers.{i}."
            shapes = {
                "qkv": [(HEADS * DIM, hidden), (KV_HEADS * DIM, hidden), (KV_HEADS * DIM, hidden)],
                "out": [(hidden, HEADS * DIM)],
                "gate_up": [(inner, hidden), (inner, hidden)],
                "down": [(hidden, inner)],
            }
            for role, parts in shapes.items():
                stored = kinds[role] if kinds else [kind] * len(parts)
                raws = [raw_weight(stored[n], *shape, seed=31 * i + n) for n, shape in enumerate(parts)]
                self.raws[at + role] = (raws, [f32(shape[0], seed=7 + i) for shape in parts] if bias else [])
            vectors.update({at + "input_norm": hidden, at + "post_norm": hidden})
            if qk_norm:
                vectors.update({at + "q_norm": DIM, at + "k_norm": DIM})
        dice = torch.Generator().manual_seed(5)
        self.vectors = {name: 1 + 0.1 * torch.randn(size, generator=dice).bfloat16() for name, size in vectors.items()}
        self.specs = [KVSpec(KV_HEADS, DIM, DIM, window) for window in windows]
        self.groups = len(set(self.specs))

    def unit(self, ops, **changes):
        config = {"dtype": DType.BFLOAT16, "eps": 1e-5, "num_layers": LAYERS}
        for i in range(LAYERS):
            numbers = {
                "activation": "silu", "eps": 1e-5, "head_dim": DIM, "layer": i, "num_heads": HEADS,
                "num_kv_heads": KV_HEADS, "rope": self.rope, "scale": DIM**-0.5, "window": self.windows[i],
            }  # fmt: skip
            config.update({f"layers.{i}.{name}": value for name, value in numbers.items()})
        weights = {
            name: ops.pack_weight(
                raws, DType.BFLOAT16, bias=bias,
                use=WeightUse.EMBEDDING_AND_LINEAR if name == "embedding" else WeightUse.LINEAR,
            )
            for name, (raws, bias) in self.raws.items()
        }  # fmt: skip
        return FusableUnit("decoder", config | changes, weights, self.vectors)

    def one_by_one(self, ids, positions, cache, plan):
        """The truth, in float32 throughout: weights as they are, no activation rounded."""
        ops, unit = self.truth, self.unit(reference.create(dtype="float32", threads=1))
        for name, (raws, _) in self.raws.items():
            unit.weights[name].matrix = torch.cat([ops.tensor(raw, DType.FLOAT32) for raw in raws])
        vector = {name: value.float() for name, value in self.vectors.items()}
        x = ops.embedding(ids, unit.weights["embedding"], DType.FLOAT32)
        for i in range(LAYERS):
            at = f"layers.{i}."
            qkv = ops.linear(ops.rms_norm(x, vector[at + "input_norm"], 1e-5), unit.weights[at + "qkv"])
            q, k, v = qkv.view(len(ids), -1, DIM).split([HEADS, KV_HEADS, KV_HEADS], dim=1)
            if at + "q_norm" in vector:
                q, k = ops.rms_norm(q, vector[at + "q_norm"], 1e-5), ops.rms_norm(k, vector[at + "k_norm"], 1e-5)
            q, k = ops.rope(q, k, positions, self.rope)
            attended = ops.attention(q, k, v, cache, i, plan, scale=DIM**-0.5)
            x = x + ops.linear(attended.reshape(len(ids), -1), unit.weights[at + "out"])
            normed = ops.rms_norm(x, vector[at + "post_norm"], 1e-5)
            gated = ops.silu_mul(ops.linear(normed, unit.weights[at + "gate_up"]))
            x = x + ops.linear(gated, unit.weights[at + "down"])
        return ops.rms_norm(x, vector["norm"], 1e-5)


def run(ops, call, decoder, steps, kv=DType.BFLOAT16, block_size=4, blocks_=160):
    """Hidden states of each sequence over steps of new tokens a sequence; ids and tables do not depend on the steps."""
    cache = ops.allocate_kv(decoder.specs, blocks_, block_size, kv)
    count = len(steps[0])
    totals = [sum(step[s] for step in steps) for s in range(count)]
    ids = [np.random.default_rng(s).integers(0, VOCABULARY, totals[s]) for s in range(count)]
    order = iter([*range(1, blocks_, 2), *range(0, blocks_, 2)])
    tables = [[next(order) for _ in range(-(-total // block_size))] for total in totals]
    done = [0] * count
    found = [[] for _ in range(count)]
    for step in steps:
        live = [s for s in range(count) if step[s]]
        ends = [done[s] + step[s] for s in live]
        plan = ops.plan_attention(
            cache, AttentionBatch([step[s] for s in live], ends, [[tables[s] for s in live]] * decoder.groups)
        )
        tokens = torch.from_numpy(np.concatenate([ids[s][done[s] : done[s] + step[s]] for s in live]))
        positions = torch.cat([torch.arange(done[s], done[s] + step[s]) for s in live])
        hidden = call(tokens, positions, cache, plan).float()
        for s, part in zip(live, hidden.split([step[s] for s in live]), strict=True):
            found[s].append(part)
            done[s] += step[s]
    return [torch.cat(parts) for parts in found]


SHAPES = {
    "q4_1": {},
    "q4_0": {"kind": WeightFormat.Q4_0},
    "q8_0": {"kind": WeightFormat.Q8_0},
    "bf16": {"kind": WeightFormat.F32},
    "mixed as in Q4_K_M": {
        "hidden": 256,
        "inner": 512,
        "embedding": WeightFormat.Q6_K,
        "kinds": {
            "qkv": [WeightFormat.Q4_K, WeightFormat.Q4_K, WeightFormat.Q6_K],
            "out": [WeightFormat.Q5_0],  # of rows that are no whole blocks of 256
            "gate_up": [WeightFormat.Q4_K, WeightFormat.Q5_K],
            "down": [WeightFormat.Q6_K],
        },
    },
    "head norms and biases": {"qk_norm": True, "bias": True},
    "windows": {"windows": (None, 5, None)},
    "interleaved": {"rope": RopeSpec((1.0, 0.3, 0.1), 6, interleaved=True, attention_factor=1.1)},
}
MIXED = [[9, 0, 1, 3, 130], [1, 5, 1, 2, 1], [1, 1, 1, 1, 1], [1, 70, 1, 1, 1]]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kv", [DType.FLOAT32, DType.BFLOAT16, DType.INT8])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_fused_decoder_computes_what_its_operations_do(level, kv, shape):
    decoder = Decoder(**shape)
    fused = native.fuse_decoder(kernels, decoder.unit(decoder.fast), level)
    assert fused is not None
    got = run(decoder.fast, fused, decoder, MIXED, kv)
    want = run(reference.create(threads=1), decoder.one_by_one, decoder, MIXED, DType.FLOAT32)
    for one, other in zip(got, want, strict=True):
        # Activations of 8 bits carry 0.5 % of noise into each product, which adds up over layers.
        assert (one - other).norm() / other.norm() < 0.03


@pytest.mark.parametrize("block_size", [1, 16, 20, 128])
def test_a_block_may_be_of_any_size(block_size):
    decoder = Decoder(windows=(None, 40, None))
    fused = native.fuse_decoder(kernels, decoder.unit(decoder.fast))
    got = run(decoder.fast, fused, decoder, MIXED, block_size=block_size, blocks_=512)
    want = run(decoder.fast, fused, decoder, MIXED)
    for one, other in zip(got, want, strict=True):
        assert (one - other).norm() / other.norm() < 0.02


def attended(ops, level, spec, dtype, kv, steps, *, block_size=16, softcap=None, poison=False):
    """What attention over steps of new tokens gives each sequence."""
    cache = ops.allocate_kv([KVSpec(1, 16, 16), spec], 64, block_size, kv)
    if poison:
        ops.import_blocks(cache, range(64), b"\xff" * cache.nbytes)
    dice = np.random.default_rng(3)
    done = [0] * len(steps[0])
    tables = [list(range(s, 64, len(done))) for s in range(len(done))]
    found = []
    for step in steps:
        tokens = sum(step)
        done = [had + new for had, new in zip(done, step, strict=True)]
        plan = ops.plan_attention(cache, AttentionBatch(step, done, [tables, tables]))
        q, k, v = (
            torch.from_numpy(dice.standard_normal((tokens, heads, size), dtype=np.float32)).to(dtype)
            for heads, size in ((6, spec.head_dim), (2, spec.head_dim), (2, spec.value_dim))
        )
        options = {"scale": 0.3, "softcap": softcap}
        if level is None:
            found.append(ops.attention(q, k, v, cache, 1, plan, **options))
        else:
            found.append(native.attend(kernels, q, k, v, cache, 1, plan, **options, level=level))
    return torch.cat(found).float()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("kv", "tolerance"), [(DType.FLOAT32, 1e-5), (DType.BFLOAT16, 0.02), (DType.INT8, 0.03)])
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sizes", [(16, 16), (80, 48), (256, 16)])
def test_attention_alone_agrees_with_the_readable_backend(level, kv, tolerance, window, softcap, sizes):
    spec = KVSpec(2, *sizes, window)
    steps = [[1, 40, 7], [1, 1, 150], [1, 0, 1], [17, 1, 1]]
    dtype = DType.FLOAT32 if kv is DType.FLOAT32 else DType.BFLOAT16
    ops = {name: make.create(dtype="bfloat16", threads=1) for name, make in (("fast", cpu), ("truth", reference))}
    exact = getattr(torch, dtype.value)
    got = attended(ops["fast"], level, spec, exact, kv, steps, softcap=softcap, poison=True)
    want = attended(ops["truth"], None, spec, exact, dtype, steps, softcap=softcap)
    assert (got - want).norm() / want.norm() < tolerance


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("heads", [48, 49, 71, 100])
def test_any_number_of_query_heads_may_share_a_key_head(level, heads, threads):
    threads(2)
    ops = CpuBackend(DType.BFLOAT16, kernels)
    truth = reference.create(threads=1)
    found = []
    for backend in (ops, truth):
        cache = backend.allocate_kv([KVSpec(1, 16, 16)], 32, 16, DType.FLOAT32)
        dice = np.random.default_rng(0)
        rows = []
        for lens, ends in (([300, 2], [300, 2]), ([1, 1], [301, 3])):
            plan = backend.plan_attention(cache, AttentionBatch(lens, ends, [[list(range(20)), list(range(20, 24))]]))
            q, k, v = (
                torch.from_numpy(dice.standard_normal((sum(lens), count, 16), dtype=np.float32))
                for count in (heads, 1, 1)
            )
            if backend is ops:
                rows.append(native.attend(kernels, q, k, v, cache, 0, plan, scale=0.3, softcap=None, level=level))
            else:
                rows.append(backend.attention(q, k, v, cache, 0, plan, scale=0.3))
        found.append(torch.cat(rows))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kv", [DType.FLOAT32, DType.BFLOAT16, DType.INT8])
def test_blocks_of_the_native_pool_can_be_copied_exported_and_imported(kv):
    ops = CpuBackend(DType.BFLOAT16, kernels)
    specs = [KVSpec(2, 16, 16), KVSpec(1, 32, 48)]
    cache, other = (ops.allocate_kv(specs, blocks_, 20, kv) for blocks_ in (6, 9))
    assert isinstance(cache, native.NativeKV)
    ops.import_blocks(cache, range(6), np.random.default_rng(0).bytes(cache.nbytes))
    before = [ops.export_blocks(cache, [block]) for block in range(6)]
    ops.copy_blocks(cache, [(0, 3), (3, 5)])
    after = [ops.export_blocks(cache, [block]) for block in range(6)]
    assert after == [before[0], before[1], before[2], before[0], before[4], before[3]]
    ops.import_blocks(other, [8, 2], ops.export_blocks(cache, [1, 5]))
    assert [ops.export_blocks(other, [block]) for block in (8, 2)] == [before[1], before[3]]
    with pytest.raises(SageLLMError, match="2 blocks of this layout take"):
        ops.import_blocks(other, [8, 2], before[0])


def test_a_pool_that_the_kernels_cannot_read_is_torchs_or_refused():
    ops = CpuBackend(DType.BFLOAT16, kernels)
    assert not isinstance(ops.allocate_kv([KVSpec(2, 24, 24)], 4, 16, DType.BFLOAT16), native.NativeKV)
    with pytest.raises(SageLLMError, match="multiple of 16"):
        ops.allocate_kv([KVSpec(2, 24, 24)], 4, 16, DType.INT8)
    with pytest.raises(SageLLMError, match="blocks of 256 tokens; the most is 128"):
        ops.allocate_kv([KVSpec(2, 16, 16)], 4, 256, DType.BFLOAT16)
    exact = CpuBackend(DType.FLOAT32, kernels)
    assert not isinstance(exact.allocate_kv([KVSpec(2, 16, 16)], 4, 16, DType.FLOAT32), native.NativeKV)


@pytest.mark.parametrize("level", LEVELS)
def test_a_sequence_gets_the_same_numbers_alone_batched_and_chunked(level, threads):
    decoder = Decoder(windows=(None, 40, None))
    fused = native.fuse_decoder(kernels, decoder.unit(decoder.fast), level)
    threads(1)
    whole = run(decoder.fast, fused, decoder, [[150, 7]])[0]
    threads(2)
    for steps in ([[150]], [[70], [79], [1]], [[20, 90], [129, 1], [1, 1]], [[1]] * 150):
        assert torch.equal(run(decoder.fast, fused, decoder, steps)[0], whole)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("windows", [(None,) * LAYERS, (None, 40, None)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_rows_that_are_read_are_those_of_a_whole_step(level, windows, share):
    decoder = Decoder(windows=windows)
    fused = native.fuse_decoder(kernels, decoder.unit(decoder.fast), level)
    dice = np.random.default_rng(2)

    def call(ids, positions, cache, plan):
        whole = fused(ids, positions, cache, plan)
        for read in (np.flatnonzero(dice.random(len(ids)) < share), [len(ids) - 1], range(len(ids))):
            rows = list(map(int, read))
            assert torch.equal(fused(ids, positions, cache, plan, rows), whole[rows])
        return whole

    run(decoder.fast, call, decoder, [[300, 130], [0, 1], [1, 1]])


@pytest.mark.parametrize(
    "changes",
    [{"layers.1.activation": "gelu"}, {"dtype": DType.FLOAT32}, {"layers.2.rope": None}, {"layers.0.num_heads": 3}],
)
def test_a_unit_that_the_kernels_do_not_fit_is_left_alone(changes):
    decoder = Decoder()
    assert decoder.fast.fuse(decoder.unit(decoder.fast)) is not None
    assert decoder.fast.fuse(decoder.unit(decoder.fast, **changes)) is None


def test_a_backend_that_keeps_keys_and_values_for_torch_fuses_nothing():
    decoder = Decoder()
    assert CpuBackend(DType.FLOAT32, kernels).fuse(decoder.unit(decoder.fast)) is None


def test_an_id_the_table_does_not_have_is_refused():
    decoder = Decoder()
    fused = decoder.fast.fuse(decoder.unit(decoder.fast))
    cache = decoder.fast.allocate_kv(decoder.specs, 4, 4, DType.BFLOAT16)
    plan = decoder.fast.plan_attention(cache, AttentionBatch([1], [1], [[[0]]]))
    with pytest.raises(SageLLMError, match=str(VOCABULARY)):
        fused(torch.tensor([VOCABULARY]), torch.tensor([0]), cache, plan)


def test_the_backend_says_which_build_it_uses_and_computes_without_one():
    with_kernels, without = CpuBackend(DType.BFLOAT16, kernels), CpuBackend(DType.BFLOAT16)
    assert with_kernels.capabilities().native_kernels == kernels.build
    kept = {"mxfp4", "int4", "int8", "f8_e4m3", *(kind.value for kind in native.KINDS)}
    assert set(with_kernels.capabilities().kept_quantized) == kept
    assert without.capabilities().native_kernels is None
    assert without.capabilities().fused_units == without.capabilities().kept_quantized == ()
    raw, x = blocks(WeightFormat.Q4_1, 40, 64), torch.randn(3, 64).bfloat16()
    got, want = (ops.linear(x, ops.pack_weight([raw], DType.BFLOAT16)) for ops in (with_kernels, without))
    torch.testing.assert_close(got, want, rtol=4e-2, atol=4e-2)


def test_float32_stays_exact_beside_the_kernels():
    ops, raw, x = CpuBackend(DType.FLOAT32, kernels), blocks(WeightFormat.Q4_1, 40, 64), torch.randn(3, 64)
    truth = x @ formats.expand(raw, WeightFormat.Q4_1, torch.float32).T
    torch.testing.assert_close(ops.linear(x, ops.pack_weight([raw], DType.FLOAT32)), truth, rtol=1e-5, atol=1e-5)
