"""A model from outside: a distribution of its own is built, installed, and its model served."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fake_model import CHARACTERS, VOCAB, write_tokenizer
from sagellm_core import LLM, models
from sagellm_protocol import SamplingParams

PLUGIN = Path(__file__).parents[1] / "plugin_model"
NAMES = {"model.embed_tokens": "twist.tokens", "model.layers": "twist.blocks", "model.norm": "twist.last"}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The distribution, on the path."""
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(site), str(PLUGIN)], check=True, timeout=100)
    monkeypatch.syspath_prepend(site)


def write_twisted(folder: Path) -> transformers.PreTrainedModel:
    """A tiny Qwen3 in the words of the plug-in's architecture; returns what it is."""
    torch.manual_seed(5)
    config = transformers.Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
    )
    model = transformers.Qwen3ForCausalLM(config).eval()
    model.save_pretrained(folder)
    write_tokenizer(folder)
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), "model_type": "twisted", "architectures": ["TwistedForCausalLM"]}
    path.write_text(json.dumps(values))
    weights = folder / "model.safetensors"
    save_file({_renamed(name): tensor for name, tensor in load_file(weights).items()}, weights)
    return model


def _renamed(name: str) -> str:
    for theirs, own in NAMES.items():
        name = name.replace(theirs, own)
    return re.sub(r"\.mlp\.", ".feed.", name.replace("lm_head", "out"))


@pytest.mark.usefixtures("installed")
def test_a_model_of_another_distribution_is_served(tmp_path: Path) -> None:
    reference = write_twisted(tmp_path / "model")
    assert "TwistedForCausalLM" in models.architectures()
    prompt = [3, 14, 15, 92, 65, 35, 8, 9]
    with LLM(str(tmp_path / "model"), dtype="float32") as llm:
        [answer] = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=16), progress=False)
    tokens = list(prompt)
    while len(tokens) < len(prompt) + 16 and tokens[-1] != 0:
        with torch.no_grad():
            tokens.append(int(reference(torch.tensor([tokens])).logits[0, -1].argmax()))
    assert answer.output_text == "".join(CHARACTERS[token - 1] for token in tokens[len(prompt) :] if token)
