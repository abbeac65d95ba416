"""GGUF files: read as their writers meant them, and refused in one sentence when they are not sound."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import gguf as reference
import numpy as np
import pytest
from gguf.quants import dequantize
from hypothesis import HealthCheck, given, settings, strategies as st

from sagellm_core.loading import open_checkpoint, read_config
from sagellm_core.loading.gguf import GGUFFile
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .files import LLAMA, gguf, llama_tensors, nbytes, text


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return path


def test_metadata_and_tensors_of_the_default_model_equal_the_reference_readers(smollm2: Path) -> None:
    ours, theirs = GGUFFile(smollm2), reference.GGUFReader(smollm2)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            assert ours.metadata[key] == field.contents(), key
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.shape == tuple(int(extent) for extent in reversed(tensor.shape))
        assert mine.format.value == tensor.tensor_type.name.lower()
        assert ours.data(mine)[:64] == tensor.data.tobytes()[:64]
        assert mine.nbytes == tensor.n_bytes


def test_a_file_of_the_reference_writer_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "written.gguf"
    writer = reference.GGUFWriter(path, "llama")
    values: dict[str, Any] = {"a.u8": 7, "a.i64": -(2**40), "a.f64": 1.5, "a.flag": True, "a.text": "héllo"}
    writer.add_uint8("a.u8", 7)
    writer.add_key_value("a.i64", -(2**40), reference.GGUFValueType.INT64)
    writer.add_key_value("a.f64", 1.5, reference.GGUFValueType.FLOAT64)
    writer.add_bool("a.flag", True)
    writer.add_string("a.text", "héllo")
    writer.add_array("a.texts", ["", "x", "日本"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_custom_alignment(64)
    data = np.arange(6, dtype=np.float32).reshape(2, 3)
    writer.add_tensor("one", data)
    writer.add_tensor("two", data.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(path)
    assert {key: file.metadata[key] for key in values} == values
    assert file.metadata["a.texts"] == ["", "x", "日本"]
    assert file.metadata["a.numbers"] == [1, 2, 3]
    assert file.tensors["one"].shape == (2, 3)
    assert bytes(file.data(file.tensors["one"])) == data.tobytes()
    assert bytes(file.data(file.tensors["two"])) == data.astype(np.float16).tobytes()


@pytest.mark.parametrize("form", ["f32", "f16", "bf16", "q4_0", "q4_1", "q8_0"])
def test_query_and_key_rows_come_back_in_the_order_they_were_trained_in(tmp_path: Path, form: str) -> None:
    checkpoint = open_checkpoint(write(tmp_path, gguf(LLAMA, llama_tensors(form))))
    for name, heads in (("q", 4), ("k", 2)):
        weight = checkpoint.weight(f"model.layers.0.self_attn.{name}_proj.weight")
        rows = np.frombuffer(weight.data, np.uint8).reshape(heads * 8, -1)
        assert (rows == rows[:, :1]).all()
        # Within a head of eight the file holds the pairs (0, 4), (1, 5), …: the first halves are its even rows.
        expected = [head * 8 + row for head in range(heads) for row in (0, 2, 4, 6, 1, 3, 5, 7)]
        assert rows[:, 0].tolist() == expected


def test_only_families_that_store_pairs_are_reordered(tmp_path: Path) -> None:
    metadata = {key.replace("llama.", "qwen2."): value for key, value in LLAMA.items()}
    metadata["general.architecture"] = "qwen2"
    checkpoint = open_checkpoint(write(tmp_path, gguf(metadata, llama_tensors())))
    weight = checkpoint.weight("model.layers.0.self_attn.q_proj.weight")
    assert np.frombuffer(weight.data, np.uint8).reshape(32, -1)[:, 0].tolist() == list(range(32))


def test_reordered_blocks_of_the_default_model_equal_reordered_numbers(smollm2: Path) -> None:
    checkpoint = open_checkpoint(smollm2)
    theirs = {tensor.name: tensor for tensor in reference.GGUFReader(smollm2).tensors}["blk.7.attn_k.weight"]
    ours = checkpoint.weight("model.layers.7.self_attn.k_proj.weight")
    blocks = np.frombuffer(ours.data, np.uint8).reshape(ours.shape[0], -1)
    numbers = dequantize(theirs.data, theirs.tensor_type).reshape(3, 32, 2, 576).swapaxes(1, 2).reshape(192, 576)
    assert np.array_equal(dequantize(blocks, theirs.tensor_type), numbers)


def test_weights_are_views_of_the_file_unless_they_are_reordered(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path, gguf(LLAMA, llama_tensors())))
    assert isinstance(checkpoint.weight("model.embed_tokens.weight").data, memoryview)


@pytest.mark.parametrize("form", ["q4_k", "q6_k"])
def test_formats_of_256_elements_are_sized_right(tmp_path: Path, form: str) -> None:
    data = bytes(nbytes(form, (3, 512)))
    file = GGUFFile(write(tmp_path, gguf({"general.architecture": "llama"}, {"x": (form, (3, 512), data)})))
    assert file.tensors["x"].nbytes == len(data)
    assert file.tensors["x"].format.value == form


def test_the_configuration_says_what_the_file_says(tmp_path: Path) -> None:
    metadata = {
        **LLAMA,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 5,
    }
    config = read_config(write(tmp_path, gguf(metadata, llama_tensors())))
    assert (config.architecture, config.vocab_size, config.hidden_size, config.head_dim) == (
        "LlamaForCausalLM",
        16,
        32,
        8,
    )
    assert (config.num_heads, config.num_kv_heads, config.num_layers, config.intermediate_size) == (4, 2, 1, 64)
    assert config.tie_word_embeddings
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2, 5))
    assert config.rope is not None
    assert (config.rope.theta, config.rope.rotary_dim, config.rope.kind) == (10000.0, 8, "default")


def test_an_output_head_means_untied_embeddings(tmp_path: Path) -> None:
    tensors = llama_tensors()
    checkpoint = open_checkpoint(
        write(tmp_path, gguf(LLAMA, {**tensors, "output.weight": tensors["token_embd.weight"]}))
    )
    assert not checkpoint.config.tie_word_embeddings
    assert "lm_head.weight" in checkpoint


def test_rope_factors_in_a_tensor_become_part_of_the_configuration(tmp_path: Path) -> None:
    tensors = {**llama_tensors(), "rope_freqs.weight": ("f32", (4,), struct.pack("<4f", 1, 1, 4, 8))}
    checkpoint = open_checkpoint(write(tmp_path, gguf(LLAMA, tensors)))
    assert checkpoint.config.rope is not None
    assert checkpoint.config.rope.kind == "factors"
    assert checkpoint.config.rope.factors == (1, 1, 4, 8)
    checkpoint.refuse_leftovers(name for name in checkpoint.names())
    assert "rope_freqs.weight" not in checkpoint


def test_yarn_is_read_with_its_temperature(tmp_path: Path) -> None:
    scaling = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 16,
    }
    rope = read_config(write(tmp_path, gguf({**LLAMA, **scaling}, llama_tensors()))).rope
    assert rope is not None
    assert (rope.kind, rope.factor, rope.original_max_position_embeddings) == ("yarn", 4.0, 16)
    assert rope.attention_factor == pytest.approx(1 + 0.1 * math.log(4))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"general.architecture": "bloom"},
            "architecture 'bloom' is not offered in GGUF; known are gemma, gemma2",
        ),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0}, "rope scaling 'longrope'"),
        (
            {"llama.expert_count": 8, "llama.expert_used_count": 2, "llama.expert_gating_func": 2},
            r"expert_gating_func \(2\) is not offered",
        ),
        ({"llama.logit_scale": 0.5}, r"logit_scale \(0.5\) is not offered"),
        ({"llama.attention.value_length": 4}, "different sizes"),
        ({"split.count": 3}, "one of 3 parts; merge them"),
        ({"llama.rope.dimension_count": 4}, "over 4 of 8 dimensions"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    metadata = {**LLAMA, **change}
    if change.get("general.architecture"):
        metadata = {"general.architecture": "bloom"}
    with pytest.raises(SageLLMError, match=said) as caught:
        open_checkpoint(write(tmp_path, gguf(metadata, llama_tensors())))
    assert caught.value.code is ErrorCode.UNSUPPORTED


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"llama.embedding_length": None}, "embedding_length is missing"),
        ({"llama.attention.head_count": 0}, "attention.head_count is 0; it must be a whole number from 1"),
        ({"llama.attention.head_count_kv": 3}, r"head_count \(4\) is not a multiple"),
        ({"llama.block_count": "many"}, "block_count is 'many'"),
        ({"llama.attention.head_count": 8, "llama.attention.head_count_kv": 2}, "has 32 rows|attn_q"),
        ({"general.alignment": 3}, "general.alignment is 3; it must be a power of two"),
    ],
)
def test_values_that_cannot_be_are_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    metadata = {key: item for key, item in {**LLAMA, **change}.items() if item is not None}
    path = write(
        tmp_path, gguf(metadata, {**llama_tensors(), "blk.0.attn_q.weight": ("q8_0", (40, 32), bytes(40 * 34))})
    )
    with pytest.raises(SageLLMError, match=said) as caught:
        list(open_checkpoint(path).weights())
    assert caught.value.code is ErrorCode.INVALID_REQUEST


def test_a_big_endian_file_is_said_to_be_one(tmp_path: Path) -> None:
    data = gguf({}, {})
    with pytest.raises(SageLLMError, match="big-endian files are not offered"):
        GGUFFile(write(tmp_path, data[:4] + data[4:8][::-1] + data[8:]))


def test_a_tensor_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    data = gguf({}, {"x": ("f32", (32,), bytes(128))})
    entry = text("x") + struct.pack("<IQIQ", 1, 32, 0, 0)
    assert entry in data
    with pytest.raises(SageLLMError, match="tensor 'x' is stored as IQ2_XXS, which is not offered; known are F32, F16"):
        GGUFFile(write(tmp_path, data.replace(entry, text("x") + struct.pack("<IQIQ", 1, 32, 16, 0))))


WHOLE = gguf({**LLAMA, "tokenizer.ggml.tokens": ["a", "b", "ç"], "x.numbers": [1, 2, 3]}, llama_tensors("q4_0"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, len(WHOLE) - 1))
def test_a_truncated_file_is_refused_in_one_sentence_naming_it(tmp_path: Path, length: int) -> None:
    path = write(tmp_path, WHOLE[:length])
    with pytest.raises(SageLLMError, match=r"model\.gguf: .+"):
        open_checkpoint(path)


HEADER = WHOLE.index(b"token_embd") + 400


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=250)
@given(st.lists(st.tuples(st.integers(0, HEADER), st.binary(min_size=1, max_size=8)), min_size=1, max_size=3))
def test_a_mutated_header_is_read_or_refused_but_never_a_crash(
    tmp_path: Path, changes: list[tuple[int, bytes]]
) -> None:
    data = bytearray(WHOLE)
    for at, patch in changes:
        data[at : at + len(patch)] = patch
    path = write(tmp_path, bytes(data))
    try:
        weights = list(open_checkpoint(path).weights())
    except SageLLMError as error:
        refusal = error.message
    else:
        refusal = "model.gguf was read"
        assert all(memoryview(weight.data).nbytes == nbytes(weight.format, weight.shape) for weight in weights)
    assert "model.gguf" in refusal
