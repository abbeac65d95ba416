"""Adapters through the whole stack, as OpenAI's SDK uses it, with the embedded model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from safetensors.numpy import save_file

from conftest import Server

HIDDEN, KEYS, LAYERS, RANK = 576, 192, 30, 4


def write_adapter(folder: Path, seed: int) -> Path:
    """A random adapter of smollm2-135m's queries and values."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for name, rows in (("q_proj", HIDDEN), ("v_proj", KEYS)):
            at = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{at}.lora_A.weight"] = rng.standard_normal((RANK, HIDDEN)).astype(np.float32) * 0.05
            tensors[f"{at}.lora_B.weight"] = rng.standard_normal((rows, RANK)).astype(np.float32) * 0.3
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_adapters_are_named_loaded_and_unloaded(serve: Callable[..., Server], tmp_path: Path) -> None:
    named = write_adapter(tmp_path / "named", 1)
    write_adapter(tmp_path / "allowed" / "later", 2)
    server = serve(
        "serve", "--max-model-len", "512", "--adapter", f"named={named}", "--adapter-root", str(tmp_path / "allowed")
    )
    with openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=100) as client:

        def said(model: str) -> str:
            answer = client.completions.create(model=model, prompt="Once upon a time", temperature=0, max_tokens=16)
            assert answer.model == model
            return answer.choices[0].text

        plain, adapted = said(server.model), said("named")
        assert plain != adapted
        loaded = httpx.post(
            f"{server.url}/load_lora_adapter", json={"lora_name": "later", "lora_path": "later"}, timeout=60
        )
        assert loaded.status_code == 200
        assert {model.id for model in client.models.list()} == {server.model, "named", "later"}
        assert len({plain, adapted, said("later")}) == 3
        assert said(server.model) == plain
        httpx.post(f"{server.url}/unload_lora_adapter", json={"lora_name": "later"}, timeout=60).raise_for_status()
        with pytest.raises(openai.NotFoundError):
            said("later")
