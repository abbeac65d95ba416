"""Time the operations of a backend at the sizes of a small model, beside what plain torch takes for the same.

Prints milliseconds, and the ratio plain / ours within this run, which is what carries over between machines and
moments.

    python benchmarks/ops.py [--backend cpu] [--dtype bfloat16] [--threads 2] [--context 200] [--only linear,step]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sagellm_protocol import plugins
from sagellm_protocol.backend import AttentionBatch, Backend, KVSpec, RawWeight, RopeSpec, SamplingBatch, WeightUse
from sagellm_protocol.devices import DType

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD, INNER, VOCABULARY = 30, 576, 9, 3, 64, 1536, 49152
"""SmolLM2-135M."""
BLOCK = 16
TORCH = {DType.FLOAT32: torch.float32, DType.BFLOAT16: torch.bfloat16}


def best_ms(run: Callable[[], Any], repeat: int = 5, budget_s: float = 0.25) -> float:
    """Fastest of several rounds, milliseconds a call; each round lasts long enough to time."""
    run()
    begin = time.perf_counter()
    run()
    once = time.perf_counter() - begin
    calls = max(1, int(budget_s / repeat / max(once, 1e-7)))
    rounds = []
    for _ in range(repeat):
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        rounds.append((time.perf_counter() - begin) / calls)
    return min(rounds) * 1e3


def raw(*shape: int, scale: float = 0.05) -> RawWeight:
    """Random numbers as a checkpoint would hold them."""
    values = np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32) * np.float32(scale)
    return RawWeight("random", "f32", shape, values)


class Decoder:
    """The model's forward pass over a backend's operations, with random weights."""

    def __init__(self, ops: Backend[Any], dtype: DType) -> None:
        self.ops, self.dtype = ops, dtype
        widths = (HEADS * HEAD, KV_HEADS * HEAD, KV_HEADS * HEAD)
        self.layers = [
            {
                "qkv": ops.pack_weight([raw(width, HIDDEN) for width in widths], dtype),
                "out": ops.pack_weight([raw(HIDDEN, HEADS * HEAD)], dtype),
                "gate_up": ops.pack_weight([raw(INNER, HIDDEN)] * 2, dtype),
                "down": ops.pack_weight([raw(HIDDEN, INNER)], dtype),
            }
            for _ in range(LAYERS)
        ]
        self.table = ops.pack_weight([raw(VOCABULARY, HIDDEN)], dtype, use=WeightUse.EMBEDDING_AND_LINEAR)
        self.norm = ops.tensor(raw(HIDDEN, scale=1.0), dtype)
        self.rope = RopeSpec(tuple(1e5 ** (-i / (HEAD // 2)) for i in range(HEAD // 2)), HEAD)

    def forward(self, ids: Any, positions: Any, cache: Any, plan: Any) -> Any:
        ops = self.ops
        residual = ops.embedding(ids, self.table, self.dtype)
        x = ops.rms_norm(residual, self.norm, 1e-5)
        tokens = ids.shape[0]
        for number, layer in enumerate(self.layers):
            if number:
                x, residual = ops.add_rms_norm(x, residual, self.norm, 1e-5)
            qkv = ops.linear(x, layer["qkv"])
            q = qkv[:, : HEADS * HEAD].reshape(tokens, HEADS, HEAD)
            k = qkv[:, HEADS * HEAD : (HEADS + KV_HEADS) * HEAD].reshape(tokens, KV_HEADS, HEAD)
            v = qkv[:, (HEADS + KV_HEADS) * HEAD :].reshape(tokens, KV_HEADS, HEAD)
            q, k = ops.rope(q, k, positions, self.rope)
            attended = ops.attention(q, k, v, cache, number, plan, scale=HEAD**-0.5)
            x = ops.linear(attended.reshape(tokens, HEADS * HEAD), layer["out"])
            x, residual = ops.add_rms_norm(x, residual, self.norm, 1e-5)
            x = ops.linear(ops.silu_mul(ops.linear(x, layer["gate_up"])), layer["down"])
        return ops.add_rms_norm(x, residual, self.norm, 1e-5)[0]


def greedy(rows: int) -> SamplingBatch:
    """Rows that take the likeliest token."""
    neutral: dict[str, Any] = {
        "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "uniform": 0.5, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "prompt_tokens": (), "output_tokens": (), "bias": {},
        "banned": (), "allowed": None, "logprobs": None,
    }  # fmt: skip
    return SamplingBatch(**{name: [value] * rows for name, value in neutral.items()})


def step_of(model: Decoder, query_lens: list[int], context_lens: list[int]) -> Callable[[], Any]:
    """A whole step: plan, forward, logits of each sequence's last token, greedy choice."""
    ops = model.ops
    spec = KVSpec(KV_HEADS, HEAD, HEAD)
    counts = [-(-context // BLOCK) for context in context_lens]
    cache = ops.allocate_kv([spec] * LAYERS, sum(counts), BLOCK, model.dtype)
    order = iter(np.random.default_rng(0).permutation(sum(counts)).tolist())
    tables = [[next(order) for _ in range(count)] for count in counts]
    tokens = sum(query_lens)
    positions = [p for new, total in zip(query_lens, context_lens, strict=True) for p in range(total - new, total)]
    last = (np.cumsum(query_lens) - 1).tolist()
    batch = greedy(len(query_lens))

    def step() -> Any:
        plan = ops.plan_attention(cache, AttentionBatch(query_lens, context_lens, [tables]))
        ids = ops.from_host([7] * tokens, DType.INT64)
        hidden = model.forward(ids, ops.from_host(positions, DType.INT64), cache, plan)
        logits = ops.linear(ops.take_rows(hidden, last), model.table)
        return ops.sample(logits, batch)

    return step


def time_linear(ops: Backend[Any], dtype: DType) -> Iterator[tuple[str, float, float]]:
    """Products at the model's sizes, at several numbers of rows; plain is ``F.linear``."""
    for rows in (1, 4, 16, 64, 1024):
        for out, into in ((960, 576), (576, 576), (3072, 576), (576, 1536), (VOCABULARY, 576)):
            if out == VOCABULARY and rows > 64:
                continue
            # Several weights in turn, so that none stays in the processor's cache as it would not in a model.
            count = max(1, min(24, 2**26 // (out * into)))
            weight = raw(out, into)
            packed = [ops.pack_weight([weight], dtype) for _ in range(count)]
            plain = [ops.tensor(weight, dtype) for _ in range(count)]
            x = ops.tensor(raw(rows, into), dtype)
            ours = best_ms(lambda x=x, packed=packed: [ops.linear(x, one) for one in packed]) / count
            theirs = best_ms(lambda x=x, plain=plain: [F.linear(x, one) for one in plain]) / count
            yield f"linear {rows:5} x {into} -> {out}", ours, theirs


def time_attention(ops: Backend[Any], dtype: DType, context: int) -> Iterator[tuple[str, float, float]]:
    """Decoding and prefill over a paged cache whose blocks lie out of order."""
    spec = KVSpec(KV_HEADS, HEAD, HEAD)
    for count, new, total in (
        (1, 1, context),
        (16, 1, context),
        (64, 1, context),
        (1, 1, 2048),
        (1, 1024, 1024),
        (1, 256, 1024),
    ):
        blocks = -(-total // BLOCK)
        cache = ops.allocate_kv([spec], count * blocks, BLOCK, dtype)
        table = np.random.default_rng(0).permutation(count * blocks).reshape(count, blocks).tolist()
        plan = ops.plan_attention(cache, AttentionBatch([new] * count, [total] * count, [table]))
        q = torch.randn(count * new, HEADS, HEAD).to(TORCH[dtype])
        k, v = torch.randn(2, count * new, KV_HEADS, HEAD).to(TORCH[dtype])
        ours = best_ms(
            lambda q=q, k=k, v=v, cache=cache, plan=plan: ops.attention(q, k, v, cache, 0, plan, scale=0.125)
        )
        queries = torch.randn(count, HEADS, new, HEAD).to(TORCH[dtype])
        keys, values = torch.randn(2, count, KV_HEADS, total, HEAD).to(TORCH[dtype])
        theirs = best_ms(
            lambda q=queries, k=keys, v=values, causal=new == total: F.scaled_dot_product_attention(
                q, k, v, is_causal=causal, enable_gqa=True
            )
        )
        yield f"attention {count} x {new} over {total} (plain: SDPA, not paged)", ours, theirs


def time_rest(ops: Backend[Any], dtype: DType) -> Iterator[tuple[str, float, float]]:
    """Norm, gate and rotation."""
    spec = RopeSpec(tuple(1e5 ** (-i / (HEAD // 2)) for i in range(HEAD // 2)), HEAD)
    weight = ops.tensor(raw(HIDDEN, scale=1.0), dtype)
    for rows in (1, 16, 1024):
        x, residual = (torch.randn(rows, HIDDEN).to(TORCH[dtype]) for _ in range(2))
        yield (
            f"add_rms_norm {rows}",
            best_ms(lambda x=x, residual=residual: ops.add_rms_norm(x, residual.zero_(), weight, 1e-5)),
            best_ms(lambda x=x, residual=residual: F.rms_norm(residual.zero_().add_(x), (HIDDEN,), weight, 1e-5)),
        )
        gate_up = torch.randn(rows, 2 * INNER).to(TORCH[dtype])
        yield (
            f"silu_mul {rows}",
            best_ms(lambda g=gate_up: ops.silu_mul(g)),
            best_ms(lambda g=gate_up: F.silu(g[:, :INNER]) * g[:, INNER:]),
        )
        qkv = torch.randn(rows, HEADS + KV_HEADS, HEAD).to(TORCH[dtype])
        positions = torch.arange(rows)
        cos, sin = torch.randn(2, rows, 1, HEAD).to(TORCH[dtype])

        def plain(x: torch.Tensor = qkv, cos: torch.Tensor = cos, sin: torch.Tensor = sin) -> list[torch.Tensor]:
            return [
                part * cos + torch.cat((-part[..., HEAD // 2 :], part[..., : HEAD // 2]), -1) * sin
                for part in (x[:, :HEADS], x[:, HEADS:])
            ]

        yield (
            f"rope {rows}",
            best_ms(lambda x=qkv, p=positions: ops.rope(x[:, :HEADS], x[:, HEADS:], p, spec)),
            best_ms(plain),
        )


def time_steps(ops: Backend[Any], dtype: DType, context: int) -> Iterator[tuple[str, float, float]]:
    """Whole steps of the whole model."""
    model = Decoder(ops, dtype)
    plain = [
        [torch.randn(o, i).to(TORCH[dtype]) for o, i in ((960, 576), (576, 576), (3072, 576), (576, 1536))]
        for _ in range(LAYERS)
    ]
    head = torch.randn(VOCABULARY, HIDDEN).to(TORCH[dtype])
    for streams in (1, 4, 16, 64):
        inputs = {i: torch.randn(streams, i).to(TORCH[dtype]) for i in (576, 1536)}

        def linears(inputs: dict[int, torch.Tensor] = inputs) -> None:
            for layer in plain:
                for weight in layer:
                    F.linear(inputs[weight.shape[1]], weight)
            F.linear(inputs[HIDDEN], head)

        ragged = [context - 3 * (stream % 8) for stream in range(streams)]
        ours = best_ms(step_of(model, [1] * streams, ragged), budget_s=1.0)
        yield f"decode step, {streams} streams (plain: its F.linear alone)", ours, best_ms(linears, budget_s=1.0)
    for chunks in ([1024], [256]):
        ours = best_ms(step_of(model, chunks, [sum(chunks)]), budget_s=2.0)
        yield f"prefill of {chunks[0]}: {chunks[0] / ours * 1e3:,.0f} tokens a second", ours, float("nan")


def main() -> None:
    """Parse the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--context", type=int, default=200)
    parser.add_argument("--only", default="linear,attention,rest,step", help="parts to time, with commas between")
    args = parser.parse_args()
    ops: Backend[Any] = plugins.load(plugins.BACKENDS, args.backend)(None, dtype=args.dtype, threads=args.threads)
    dtype = ops.capabilities().dtypes[0]
    print(
        f"{args.backend}, {dtype.value}, {torch.get_num_threads()} threads, torch {torch.__version__},"
        f" {ops.device.name}"
    )
    parts: dict[str, Iterator[tuple[str, float, float]]] = {
        "linear": time_linear(ops, dtype),
        "attention": time_attention(ops, dtype, args.context),
        "rest": time_rest(ops, dtype),
        "step": time_steps(ops, dtype, args.context),
    }
    for name in args.only.split(","):
        for label, ours, plain in parts[name]:
            ratio = "" if plain != plain else f"   plain {plain:9.3f}   plain/ours {plain / ours:5.2f}"
            print(f"{label:64} {ours:9.3f} ms{ratio}", flush=True)


if __name__ == "__main__":
    main()
