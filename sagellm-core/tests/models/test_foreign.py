"""Architectures without a file here: what runs through the reference implementation's own code, and what is refused."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny
from changed import Changed
from fake_model import CHARACTERS, VOCAB, write_tokenizer
from sagellm_core import LLM, models
from sagellm_core.executor.backends import open_backend
from sagellm_core.loading import open_checkpoint
from sagellm_core.loading.base import Checkpoint
from sagellm_core.models.foreign import Foreign
from sagellm_protocol import SamplingParams, StructuredOutput
from sagellm_protocol.backend import Backend
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError


@pytest.fixture(scope="module")
def ops() -> Backend[Any]:
    return open_backend("cpu", dtype="float32", threads=1)


@pytest.fixture(scope="module")
def starcoder(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(tiny.save(tiny.make("starcoder2"), tmp_path_factory.mktemp("model")))


def made(folder: Path, architecture: str, config: str, **sizes: Any) -> Checkpoint:
    """A tiny model of any class, saved and opened."""
    torch.manual_seed(0)
    recipe = tiny.Recipe(architecture, config, {"vocab_size": tiny.VOCAB, **sizes})
    return open_checkpoint(tiny.save(recipe(), folder))


def refusal(checkpoint: Checkpoint, ops: Backend[Any], **options: Any) -> SageLLMError:
    with pytest.raises(SageLLMError) as caught:
        models.load(checkpoint, ops, DType.FLOAT32, **options)
    return caught.value


def test_what_layers_keep_is_found_out(tmp_path: Path, ops: Backend[Any]) -> None:
    mixed = models.load(open_checkpoint(tiny.save(tiny.make("exaone4"), tmp_path / "a")), ops, DType.FLOAT32)
    assert isinstance(mixed, Foreign)
    assert [spec.window for spec in mixed.kv_specs] == [9, 9, 9, None]
    assert {(spec.num_kv_heads, spec.head_dim, spec.value_dim) for spec in mixed.kv_specs} == {(2, 8, 8)}
    sunk = models.load(open_checkpoint(tiny.save(tiny.make("granite_swa"), tmp_path / "b")), ops, DType.FLOAT32)
    assert isinstance(sunk, Foreign)
    assert all(spec.sinks for spec in sunk.kv_specs)


def test_a_model_of_ours_would_be_found_out_alike(tmp_path: Path, ops: Backend[Any]) -> None:
    checkpoint = open_checkpoint(tiny.save(tiny.make("llama4"), tmp_path))
    model, own = Foreign(checkpoint, ops, DType.FLOAT32), models.load(checkpoint, ops, DType.FLOAT32)
    assert not isinstance(own, Foreign)
    assert model.kv_specs == own.kv_specs  # type: ignore[union-attr]
    assert any(spec.chunked for spec in model.kv_specs)


def test_it_is_said_once(starcoder: Checkpoint, ops: Backend[Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = models.load(starcoder, ops, DType.FLOAT32)
    [record] = caplog.records
    assert "Starcoder2ForCausalLM" in record.message
    assert "transformers" in record.message
    assert set(model.sharding) == set(starcoder.names())
    assert model.weight_bytes >= sum(len(memoryview(raw.data).cast("B")) for raw in starcoder.weights())


def test_it_computes_in_other_types(starcoder: Checkpoint) -> None:
    rounding = open_backend("cpu", dtype="bfloat16", threads=1)
    model = models.load(starcoder, rounding, DType.BFLOAT16)
    assert isinstance(model, Foreign)
    assert model.logits(torch.zeros(1, 48, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_it_is_served_with_all_that_requests_may_ask(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = transformers.Starcoder2Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        sliding_window=40,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
    )
    reference = transformers.Starcoder2ForCausalLM(config).eval()
    reference.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    prompts = [[5 + (7 * place + shift) % 60 for place in range(70)] for shift in range(3)]
    with LLM(str(tmp_path), dtype="float32", max_num_batched_tokens=32, block_size=8) as llm:
        greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=2)
        answers = llm.generate(prompts, greedy, progress=False)
        again = llm.generate(prompts, greedy, progress=False)
        [number] = llm.generate(
            [prompts[0]], SamplingParams(max_tokens=9, seed=1), structured=StructuredOutput(regex="[0-9]{4}")
        )
        assert llm.stats().used_blocks == 0
    for prompt, answer, repeated in zip(prompts, answers, again, strict=True):
        tokens = list(prompt)
        for _ in range(12):
            with torch.no_grad():
                logits = reference(torch.tensor([tokens])).logits[0, -1]
            tokens.append(int(logits.argmax()))
        said = "".join(CHARACTERS[token - 1] for token in tokens[len(prompt) :] if token)
        assert answer.output_text == repeated.output_text == said
        assert repeated.usage.cached_tokens > 0
    assert number.output_text.isdecimal()
    assert len(number.output_text) == 4


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model.layers.1.mlp.c_fc.weight": None}, "model.layers.1.mlp.c_fc.weight"),
        ({"model.layers.0.self_attn.sinks": (3,)}, "model.layers.0.self_attn.sinks"),
        ({"model.norm.weight": (47,)}, r"model.norm.weight.*\(47,\).*\(48,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    starcoder: Checkpoint, ops: Backend[Any], changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(SageLLMError, match=named) as caught:
        models.load(Changed(starcoder, changes), ops, DType.FLOAT32)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("rope_parameters", {"rope_type": "zz"}, "'zz'"),
        ("head_dim", -1, "negative dimension"),
        ("head_dim", 1.5, "float"),
    ],
)
def test_a_configuration_that_no_model_can_be_built_of_is_refused(
    starcoder: Checkpoint, ops: Backend[Any], field: str, value: Any, named: str
) -> None:
    error = refusal(Changed(starcoder, {}, raw={**starcoder.config.raw, field: value}), ops)
    assert error.code is ErrorCode.INVALID_REQUEST
    assert named in error.message


REFUSED = {
    "a state": ("MambaForCausalLM", "MambaConfig", {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}),
    "layers of type conv": (
        "Lfm2ForCausalLM",
        "Lfm2Config",
        {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "layer_types": ["conv", "full_attention"],
        },
    ),
    "attention of its own": ("MptForCausalLM", "MptConfig", {"d_model": 32, "n_heads": 4, "n_layers": 1}),
    "attends 2 times": (
        "DiffLlamaForCausalLM",
        "DiffLlamaConfig",
        {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    ),
    "does not run without a cache of its own": (
        "DogeForCausalLM",
        "DogeConfig",
        {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    ),
}


@pytest.mark.parametrize("reason", sorted(REFUSED))
def test_what_cannot_be_paged_is_refused_with_the_reason(reason: str, tmp_path: Path, ops: Backend[Any]) -> None:
    architecture, config, sizes = REFUSED[reason]
    checkpoint = made(tmp_path, architecture, config, **sizes)
    if architecture == "MambaForCausalLM":  # its file knows no heads
        assert checkpoint.config.unread is not None
    error = refusal(checkpoint, ops)
    assert error.code is ErrorCode.UNSUPPORTED
    assert architecture in error.message
    assert reason in error.message


def test_modelling_code_that_mixes_tokens_is_found_out(
    starcoder: Checkpoint, ops: Backend[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.starcoder2 import modeling_starcoder2

    plain = modeling_starcoder2.Starcoder2MLP.forward

    def mixing(self: Any, x: torch.Tensor) -> torch.Tensor:
        """With a look at the token before, as a convolution has."""
        return plain(self, x + 0.5 * torch.roll(x, 1, dims=1) * (torch.arange(x.shape[1]) > 0)[None, :, None])

    monkeypatch.setattr(modeling_starcoder2.Starcoder2MLP, "forward", mixing)
    error = refusal(starcoder, ops)
    assert error.code is ErrorCode.UNSUPPORTED
    assert "mixes or counts tokens" in error.message


def test_a_checkpoints_own_code_is_never_run(starcoder: Checkpoint, ops: Backend[Any]) -> None:
    raw = {**starcoder.config.raw, "model_type": "novel", "auto_map": {"AutoModelForCausalLM": "modeling.Novel"}}
    error = refusal(Changed(starcoder, {}, architecture="NovelForCausalLM", raw=raw), ops)
    assert error.code is ErrorCode.UNSUPPORTED
    assert "never run" in error.message


def test_frequencies_that_depend_on_the_step_are_refused(starcoder: Checkpoint, ops: Backend[Any]) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 48, **factors}
    error = refusal(Changed(starcoder, {}, raw={**starcoder.config.raw, "rope_parameters": rope}), ops)
    assert error.code is ErrorCode.UNSUPPORTED
    assert "longrope" in error.message


def test_quantization_is_refused_by_name(starcoder: Checkpoint, ops: Backend[Any]) -> None:
    error = refusal(starcoder, ops, quantization="int8")
    assert (error.code, error.param) == (ErrorCode.UNSUPPORTED, "quantization")
    assert "int8" in error.message


def test_without_transformers_it_says_what_to_install(
    starcoder: Checkpoint, ops: Backend[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sagellm_core.models.foreign", None)
    error = refusal(starcoder, ops)
    assert error.code is ErrorCode.UNSUPPORTED
    assert "pip install 'isagellm-core[transformers]'" in error.message
    assert all(name in error.message for name in models.ARCHITECTURES)


def test_a_file_without_the_usual_sizes_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "novel", "architectures": ["Novel"]}))
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(SageLLMError, match="is missing") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


def test_models_of_ours_never_import_transformers(tmp_path: Path) -> None:
    folder = tiny.save(tiny.make("llama"), tmp_path)
    code = (
        "import sys; from sagellm_core import models; from sagellm_core.executor.backends import open_backend;"
        " from sagellm_core.loading import open_checkpoint; from sagellm_protocol.devices import DType;"
        f" models.load(open_checkpoint(__import__('pathlib').Path({str(folder)!r})),"
        " open_backend('cpu', dtype='float32', threads=1), DType.FLOAT32);"
        " sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
