"""Quantising at load: what is asked of the backend for each weight, what the model says of it, and what it costs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sagellm_core import models
from sagellm_core.executor.backends import open_backend
from sagellm_core.executor.inline import InlineExecutor
from sagellm_core.loading import Checkpoint, DummyCheckpoint, open_checkpoint
from sagellm_protocol.backend import AttentionBatch, RawWeight
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError

IDS = [5, 99, 7, 130, 64, 3]


def dummy(folder: Path, **changed: int) -> Path:
    """A folder with a configuration and no weights."""
    folder.mkdir(exist_ok=True)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2, **changed}
    fixed = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": 160,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps({**fixed, **sizes}))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(dummy(tmp_path_factory.mktemp("model")), "dummy")


class Recorder:
    """A backend that notes what each weight is quantised to, and may offer less than it can."""

    def __init__(self, offered: Sequence[str] = ("int8", "int4")) -> None:
        self._ops = open_backend("reference", dtype="float32", threads=1)
        self._offered = tuple(offered)
        self.asked: dict[str, str | None] = {}

    def capabilities(self) -> Any:
        return self._ops.capabilities().model_copy(update={"quantizations": self._offered})

    def pack_weight(
        self, parts: Sequence[RawWeight], dtype: DType, *, quantization: str | None = None, **how: Any
    ) -> Any:
        self.asked.update((part.name, quantization) for part in parts)
        return self._ops.pack_weight(parts, dtype, quantization=quantization, **how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)


@pytest.mark.parametrize(
    ("asked", "offered", "of_tables"),
    [
        (None, ("int8", "int4"), None),
        ("int8", ("int8", "int4"), "int8"),
        ("int4", ("int8", "int4"), "int8"),
        ("int4", ("int4",), None),
    ],
)
def test_projections_are_quantised_as_told_and_tables_to_eight_bits(
    checkpoint: Checkpoint, asked: str | None, offered: Sequence[str], of_tables: str | None
) -> None:
    ops: Any = Recorder(offered)
    models.load(checkpoint, ops, DType.FLOAT32, asked)
    tables = {"model.embed_tokens.weight", "lm_head.weight"}
    assert {ops.asked[name] for name in tables} == {of_tables}
    assert {how for name, how in ops.asked.items() if name not in tables} == {asked}
    assert len(ops.asked) == len(tables) + 7 * checkpoint.config.num_layers


def test_what_is_not_offered_is_refused_before_any_weight_is_read(checkpoint: Checkpoint) -> None:
    ops: Any = Recorder()
    with pytest.raises(SageLLMError, match=r"'int3' is not offered by backend 'reference' here; it offers int8, int4"):
        InlineExecutor(checkpoint, ops, quantization="int3")
    assert not ops.asked
    with pytest.raises(SageLLMError, match="it offers none") as refusal:
        InlineExecutor(checkpoint, Recorder([]), quantization="int8")  # type: ignore[arg-type]
    assert (refusal.value.code, refusal.value.param) == (ErrorCode.UNSUPPORTED, "quantization")


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_a_quantised_model_computes_nearly_what_it_did(checkpoint: Checkpoint, device: str) -> None:
    import torch

    scores = {}
    for quantization in (None, "int8", "int4"):
        ops = open_backend(device, dtype="float32", threads=1)
        executor = InlineExecutor(checkpoint, ops, dtype="float32", quantization=quantization)
        assert executor.info.quantization == quantization
        model = models.load(checkpoint, ops, DType.FLOAT32, quantization)
        cache = ops.allocate_kv(model.kv_specs, 2, 8, DType.FLOAT32)
        plan = ops.plan_attention(cache, AttentionBatch([len(IDS)], [len(IDS)], [[[0, 1]]]))
        ids, positions = ops.from_host(IDS, DType.INT64), ops.from_host(range(len(IDS)), DType.INT64)
        scores[quantization] = torch.tensor(ops.to_host(model.logits(model.forward(ids, positions, cache, plan))))
    exact = scores[None]
    noise = {name: float((scores[name] - exact).norm() / exact.norm()) for name in ("int8", "int4")}
    assert 0 < noise["int8"] < 0.05
    assert noise["int8"] < noise["int4"] < 0.5


def test_dummy_weights_are_never_whole_in_float32(checkpoint: Checkpoint) -> None:
    config = replace(checkpoint.config, vocab_size=1 << 18)  # 16 million values, 32 MiB
    made = DummyCheckpoint(config)
    made.weight("model.norm.weight")  # what is imported on the way is not counted
    tracemalloc.start()
    try:
        weight = made.weight("model.embed_tokens.weight")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert memoryview(weight.data).nbytes == 32 << 20
    assert peak < (32 + 12) << 20


LOADED = """
import json, math, resource, sys
from sagellm_core.executor.backends import open_backend
from sagellm_core.executor.inline import InlineExecutor
from sagellm_core.loading import DummyCheckpoint, open_checkpoint
from pathlib import Path

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

ops = open_backend("cpu", dtype="bfloat16", threads=1)
kept = ops.capabilities().kept_quantized
warm, large = (open_checkpoint(Path(folder), "dummy") for folder in sys.argv[1:])
InlineExecutor(warm, ops, dtype="bfloat16", quantization="int4")
before = peak()
info = InlineExecutor(large, ops, dtype="bfloat16", quantization="int4").info
grown = peak() - before
values = sum(math.prod(large.weight(name).shape) for name in large.names())
print(json.dumps({"kept": kept, "grown": grown, "weights": info.weight_bytes, "values": values}))
"""


@pytest.mark.skipif(importlib.util.find_spec("resource") is None, reason="the system does not tell the peak of memory")
def test_a_model_that_is_quantised_never_lies_in_memory_whole_and_unquantised(tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    folders = [str(dummy(tmp_path / str(layers), num_hidden_layers=layers, **sizes)) for layers in (1, 16)]
    ran = subprocess.run(
        [sys.executable, "-c", LOADED, *folders], capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    if "q4_1" not in told["kept"]:
        pytest.skip("without native kernels weights are expanded")
    assert told["values"] > 67_000_000
    assert told["weights"] < 0.65 * told["values"]  # 5 bits a weight
    # Besides what stays, one weight at a time is read, quantised and packed, and the allocator keeps some of that.
    assert told["grown"] < told["weights"] + (80 << 20) < told["values"] * 2
