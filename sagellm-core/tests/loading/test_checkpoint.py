"""Opening a path: the right reader for what is there, and a refusal that says what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sagellm_core.loading import DummyCheckpoint, open_checkpoint, read_config
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .files import CONFIG, LLAMA, folder, gguf, llama_tensors, safetensors

TENSORS = {"model.norm.weight": ("F32", (4,), bytes(16))}


def refused(path: Path, load_format: str = "auto") -> SageLLMError:
    with pytest.raises(SageLLMError) as caught:
        open_checkpoint(path, load_format)
    return caught.value


def test_a_folder_with_one_gguf_is_that_model(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf(LLAMA, llama_tensors()))
    assert open_checkpoint(tmp_path).config.architecture == "LlamaForCausalLM"


def test_a_gguf_of_any_name_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(gguf(LLAMA, llama_tensors()))
    assert open_checkpoint(tmp_path / "blob").config.num_layers == 1


def test_several_ggufs_are_not_guessed_at(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(gguf(LLAMA, llama_tensors()))
    error = refused(tmp_path)
    assert "name one of a.gguf, b.gguf" in error.message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.ckpt"])
def test_pickles_are_refused_by_name(tmp_path: Path, name: str) -> None:
    folder(tmp_path)
    (tmp_path / name).write_bytes(b"\x80\x04.")
    for place in (tmp_path, tmp_path / name):
        error = refused(place)
        assert error.code is ErrorCode.UNSUPPORTED
        assert name in error.message
        assert "pickle" in error.message


def test_places_without_a_model_say_what_they_lack(tmp_path: Path) -> None:
    assert "no such file or folder" in refused(tmp_path / "none").message
    assert "holds no model" in refused(tmp_path).message
    folder(tmp_path)
    assert "holds a config.json but no weights" in refused(tmp_path).message
    assert "is neither GGUF nor safetensors" in refused(tmp_path / "config.json").message
    (tmp_path / "config.json").unlink()
    (tmp_path / "model.safetensors").write_bytes(safetensors(TENSORS))
    assert "config.json: no such file" in refused(tmp_path).message
    (tmp_path / "adapter_config.json").write_bytes(b"{}")
    assert "holds an adapter, not a model" in refused(tmp_path).message


def test_an_unknown_format_is_answered_with_those_there_are(tmp_path: Path) -> None:
    error = refused(tmp_path, "onnx")
    assert (error.param, error.message) == (
        "load_format",
        "load_format is 'onnx'; known are auto, gguf, safetensors, dummy",
    )


def test_a_missing_tensor_is_named_with_its_nearest(tmp_path: Path) -> None:
    path = folder(tmp_path, model__safetensors=safetensors(TENSORS))
    with pytest.raises(
        SageLLMError, match=r"no tensor 'model.norms.weight'.*the nearest it has is 'model.norm.weight'"
    ):
        open_checkpoint(path).weight("model.norms.weight")


def test_tensors_that_no_model_asked_for_are_named(tmp_path: Path) -> None:
    extra = {f"model.extra.{n}": TENSORS["model.norm.weight"] for n in range(7)}
    inert = {"model.layers.0.self_attn.rotary_emb.inv_freq": TENSORS["model.norm.weight"]}
    path = folder(tmp_path, model__safetensors=safetensors({**TENSORS, **extra, **inert}))
    checkpoint = open_checkpoint(path)
    with pytest.raises(SageLLMError, match=r"does not know: model.extra.0, .*model.extra.4 and 2 more"):
        checkpoint.refuse_leftovers(["model.norm.weight"])
    checkpoint.refuse_leftovers([*TENSORS, *extra])


def test_what_a_family_derives_may_be_left(tmp_path: Path) -> None:
    tensors = {**TENSORS, "lm_head.weight": TENSORS["model.norm.weight"]}
    tied = folder(tmp_path / "tied", {**CONFIG, "tie_word_embeddings": True}, model__safetensors=safetensors(tensors))
    open_checkpoint(tied).refuse_leftovers(TENSORS, ("lm_head.weight",))
    untied = folder(tmp_path / "untied", model__safetensors=safetensors(tensors))
    with pytest.raises(SageLLMError, match="lm_head"):
        open_checkpoint(untied).refuse_leftovers(TENSORS)


def test_the_key_tells_weights_apart_and_nothing_else(tmp_path: Path) -> None:
    def key(name: str, data: bytes) -> str:
        tensors = {"model.norm.weight": ("F32", (len(data) // 4,), data)}
        return open_checkpoint(folder(tmp_path / name, model__safetensors=safetensors(tensors))).key

    data = bytes(64_000)
    changed = data[:-4] + b"\0\0\0\1"
    assert key("a", data) == key("b", data)
    assert key("a", data) != key("c", changed)
    assert key("a", data) != key("d", data[:-4])


def test_dummy_weights_have_the_shapes_of_the_real_ones(smollm2: Path) -> None:
    real, dummy = open_checkpoint(smollm2), open_checkpoint(smollm2, "dummy")
    assert set(dummy.names()) == set(real.names())
    for name in ("model.embed_tokens.weight", "model.layers.3.self_attn.k_proj.weight", "model.norm.weight"):
        weight = dummy.weight(name)
        assert weight.shape == real.weight(name).shape
        assert memoryview(weight.data).nbytes == 2 * int(np.prod(weight.shape))


def test_a_folder_without_weights_is_enough_for_dummy_weights(tmp_path: Path) -> None:
    assert "lm_head.weight" in open_checkpoint(folder(tmp_path), "dummy")


def test_dummy_weights_depend_on_the_seed_and_not_on_the_order_of_reading(tmp_path: Path) -> None:
    path = folder(tmp_path)
    first = {weight.name: bytes(memoryview(weight.data)) for weight in open_checkpoint(path, "dummy", seed=1).weights()}
    again = open_checkpoint(path, "dummy", seed=1)
    for name in reversed(list(first)):
        assert bytes(memoryview(again.weight(name).data)) == first[name]
    other = open_checkpoint(path, "dummy", seed=2)
    assert all(bytes(memoryview(other.weight(name).data)) != data for name, data in first.items())
    assert again.key != other.key


def test_dummy_weights_are_small_numbers_about_zero_and_norms_about_one(tmp_path: Path) -> None:
    dummy = open_checkpoint(folder(tmp_path, {**CONFIG, "vocab_size": 4096}), "dummy")

    def numbers(name: str) -> np.ndarray:
        halves = np.frombuffer(dummy.weight(name).data, np.uint16).astype(np.uint32)
        return (halves << 16).view(np.float32)

    table = numbers("model.embed_tokens.weight")
    assert abs(float(table.mean())) < 1e-3
    assert float(table.std()) == pytest.approx(0.02, rel=0.05)
    assert float(numbers("model.norm.weight").mean()) == pytest.approx(1, abs=0.05)


def test_dummy_weights_of_an_unknown_family_are_refused(tmp_path: Path) -> None:
    config = read_config(
        folder(tmp_path, {**CONFIG, "model_type": "opt", "architectures": ["OPTForCausalLM"]}, model__safetensors=b"")
    )
    with pytest.raises(SageLLMError, match="dummy weights of 'opt' are not offered; known are llama"):
        DummyCheckpoint(config)


def test_reading_a_model_needs_neither_torch_nor_transformers_nor_numpy(smollm2: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from sagellm_core import loading, store, tokenizer\n"
        "from sagellm_core.front import detokenizer, load, renderer, stop\n"
        f"path = pathlib.Path({str(smollm2)!r})\n"
        "checkpoint = loading.open_checkpoint(path)\n"
        "checkpoint.weight('model.layers.0.self_attn.q_proj.weight')\n"
        "made = load.load_renderer(path, block_size=16)\n"
        "made.tokenizer.chat.render([{'role': 'user', 'content': 'hi'}])\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'huggingface_hub') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout == "[]\n"
