"""What is no adapter for the model at hand is refused by name, with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from lora import save_adapter
from sagellm_core import models
from sagellm_core.adapters.base import AdapterRef
from sagellm_core.adapters.store import AdapterStore
from sagellm_core.executor.backends import open_backend
from sagellm_core.loading import open_checkpoint
from sagellm_core.models.base import AdaptableModel
from sagellm_protocol import ErrorCode, SageLLMError
from sagellm_protocol.devices import DType

Q = "base_model.model.model.layers.0.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(tiny.make("llama"), folder, target_modules=["q_proj", "down_proj"])
    return folder


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


def store_of(recipe: str, folder: Path, largest_rank: int = 64) -> AdapterStore:
    ops = open_backend("cpu", dtype="float32", threads=1)
    model = models.load(open_checkpoint(tiny.save(tiny.make(recipe), folder / "base")), ops, DType.FLOAT32)
    assert isinstance(model, AdaptableModel)
    return AdapterStore(lambda: model.adapting, ops, DType.FLOAT32, largest_rank)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> AdapterStore:
    return store_of("llama", tmp_path_factory.mktemp("llama"))


def refusal(store: AdapterStore, folder: Path) -> SageLLMError:
    with pytest.raises(SageLLMError) as caught:
        store.check(str(folder)).result()
    return caught.value


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "use_dora is True.*DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save.*replaces whole modules"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the model's own weights"),
        ({"made_up_method": {"x": 1}}, "made_up_method.*not known here"),
        ({"rank_pattern": {".*q_proj": 2}}, "a regular expression"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": -1}, "lora_alpha is -1"),
        ({"r": 5}, "makes 'model.layers.0.*one of rank 5"),
    ],
)
def test_a_configuration_that_is_not_offered_is_refused_by_name(
    store: AdapterStore, adapter: Path, changes: dict[str, Any], said: str
) -> None:
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(SageLLMError, match=said):
        store.check(str(adapter)).result()


def _without_its_other_half(tensors: Tensors) -> None:
    del tensors[f"{Q}.lora_B.weight"]


def _with_a_magnitude(tensors: Tensors) -> None:
    tensors[f"{Q}.lora_magnitude_vector"] = torch.ones(48)


def _of_another_width(tensors: Tensors) -> None:
    tensors[f"{Q}.lora_A.weight"] = torch.ones(4, 40)


def _of_an_unknown_module(tensors: Tensors) -> None:
    for half in ("A", "B"):
        tensors[f"{Q}x.lora_{half}.weight"] = tensors[f"{Q}.lora_{half}.weight"].clone()


def _of_the_head(tensors: Tensors) -> None:
    tensors["base_model.model.lm_head.lora_A.weight"] = torch.ones(4, 48)
    tensors["base_model.model.lm_head.lora_B.weight"] = torch.ones(131, 4)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without_its_other_half, r"lacks tensor '.*q_proj\.lora_B\.weight'"),
        (_with_a_magnitude, "lora_magnitude_vector' is none of the two"),
        (_of_another_width, r"\(4, 40\); the model's .* makes it \(4, 48\)"),
        (_of_an_unknown_module, "q_projx'.*the nearest that can is 'model.layers.0.self_attn.q_proj'"),
        (_of_the_head, "lm_head'; embedding tables and output heads"),
        (dict.clear, "holds no tensors"),
    ],
)
def test_tensors_that_fit_nothing_are_named(
    store: AdapterStore, adapter: Path, spoil: Callable[[Tensors], None], said: str
) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    spoil(tensors)
    save_file(tensors, file)
    with pytest.raises(SageLLMError, match=said):
        store.check(str(adapter)).result()


def test_a_pickle_is_never_opened(store: AdapterStore, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    error = refusal(store, adapter)
    assert error.code is ErrorCode.MODEL_NOT_FOUND
    assert "a pickle, which is a program" in error.message


def test_a_place_without_an_adapter_is_told(store: AdapterStore, tmp_path: Path) -> None:
    assert "no such folder" in refusal(store, tmp_path / "none").message
    assert "it has no adapter_config.json" in refusal(store, tmp_path).message


def test_a_rank_beyond_the_largest_is_refused(saved: Path, tmp_path: Path) -> None:
    error = refusal(store_of("llama", tmp_path, largest_rank=3), saved)
    assert "has rank 4; this engine takes ranks up to max_adapter_rank=3" in error.message


def test_experts_are_not_adapted(tmp_path: Path) -> None:
    save_adapter(tiny.make("qwen2_moe"), tmp_path / "adapter", target_modules=["gate_proj"])
    error = refusal(store_of("qwen2_moe", tmp_path), tmp_path / "adapter")
    assert error.code is ErrorCode.UNSUPPORTED
    assert "only its attention can be adapted" in error.message


def test_an_adapter_that_changed_on_disk_is_not_taken_for_what_it_was(store: AdapterStore, adapter: Path) -> None:
    key = store.check(str(adapter)).result()
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[f"{Q}.lora_A.weight"] += 1
    save_file(tensors, file)
    with pytest.raises(SageLLMError, match="not what it was when it was loaded"):
        store.read(AdapterRef(key, str(adapter))).result()
