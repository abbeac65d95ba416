"""Safetensors: single and sharded, read as the format's library writes them, refused in one sentence when unsound."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.numpy import save_file

from sagellm_core.loading import open_checkpoint
from sagellm_core.loading.safetensors import SafetensorsFile
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .files import folder, safetensors

X = ("F32", (2, 3), struct.pack("<6f", *range(6)))
Y = ("BF16", (4,), bytes(range(8)))
INDEX = "model.safetensors.index.json"


def test_a_file_of_the_reference_writer_reads_back(tmp_path: Path) -> None:
    arrays = {
        "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
        "f16": np.arange(4, dtype=np.float16),
        "i64": np.arange(3, dtype=np.int64),
        "scalar": np.array(7, np.float32),
        "none": np.zeros((0, 4), np.float32),
    }
    save_file(arrays, tmp_path / "x.safetensors", {"format": "pt"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert set(file.tensors) == set(arrays)
    for name, array in arrays.items():
        tensor = file.tensors[name]
        assert tensor.shape == array.shape
        assert bytes(file.data(tensor)) == array.tobytes()
    assert file.tensors["f16"].format == "f16"
    assert file.tensors["i64"].format == "i64"


def test_one_file_beside_a_config_is_a_model(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", model__safetensors=safetensors({"x": X, "y": Y}, format="pt"))
    for place in (path, path / "model.safetensors"):
        checkpoint = open_checkpoint(place)
        assert sorted(checkpoint.names()) == ["x", "y"]
        assert checkpoint.weight("x").shape == (2, 3)
        assert checkpoint.weight("y").format == "bf16"
        assert isinstance(checkpoint.weight("x").data, memoryview)


def sharded(tmp_path: Path, weight_map: Any) -> Path:
    return folder(
        tmp_path / "m",
        a__safetensors=safetensors({"x": X, "spare": Y}),
        b__safetensors=safetensors({"y": Y}),
        model__safetensors__index__json=json.dumps({"weight_map": weight_map}).encode(),
    )


def test_several_files_behind_an_index_are_one_model(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(sharded(tmp_path, {"y": "b.safetensors", "x": "a.safetensors"}))
    assert {weight.name: bytes(memoryview(weight.data)) for weight in checkpoint.weights()} == {"x": X[2], "y": Y[2]}


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"x": "a.safetensors", "z": "gone.safetensors"}, "lacks 1 of 2 weights files: gone.safetensors"),
        ({"x": "b.safetensors"}, f"b.safetensors: lacks tensor 'x', which {INDEX} places there"),
        ({"x": "../m/a.safetensors"}, "which is not a file name"),
        ({"x": 3}, "which is not a file name"),
        ({}, "has no weight_map"),
        ("all", "has no weight_map"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_named(tmp_path: Path, weight_map: Any, said: str) -> None:
    with pytest.raises(SageLLMError, match=said) as caught:
        open_checkpoint(sharded(tmp_path, weight_map))
    assert caught.value.code is ErrorCode.INVALID_REQUEST


def test_several_files_without_an_index_are_not_guessed_at(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", a__safetensors=safetensors({"x": X}), b__safetensors=safetensors({"y": Y}))
    with pytest.raises(SageLLMError, match=r"several weights files \(a.safetensors, b.safetensors\)"):
        open_checkpoint(path)


def entry(**changes: Any) -> bytes:
    table = {"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}}
    header = json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + bytes(24)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the file is empty"),
        (b"abc", "ends within its header"),
        (struct.pack("<Q", 2**60) + b"{}", "claims a header of 1152921504606846976 bytes in a file of 10"),
        (struct.pack("<Q", 2) + b"[]", "its header is a JSON list"),
        (struct.pack("<Q", 2) + b"{!", "not sound JSON"),
        (struct.pack("<Q", 60_000) + b"[" * 60_000, "not sound JSON"),
        (struct.pack("<Q", 16) + b'{"a":{}, "a":{}}', "appears twice"),
        (entry(dtype="F31"), "dtype 'F31'; known are F32"),
        (entry(dtype=["F32"]), "known are F32"),
        (entry(shape=[2, -3]), "whole numbers"),
        (entry(shape=[2, 2]), r"shape \[2, 2\] in F32 needs 16 bytes, but has 24"),
        (entry(shape=[2**40, 2**40]), "needs .* bytes, but has 24"),
        (entry(data_offsets=[24, 48]), "past|of a file of"),
        (entry(data_offsets=[0]), "lacks dtype, shape or data_offsets"),
        (entry(data_offsets=None), "lacks dtype, shape or data_offsets"),
    ],
)
def test_a_file_that_is_not_sound_is_refused_naming_it(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(SageLLMError, match=rf"bad\.safetensors: .*({said})") as caught:
        SafetensorsFile(path)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


WHOLE = safetensors({"x": X, "y": Y}, format="pt")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 33), st.binary(min_size=1, max_size=8)), max_size=3),
    st.integers(0, len(WHOLE)),
)
def test_a_mutated_file_is_read_or_refused_but_never_a_crash(
    tmp_path: Path, changes: list[tuple[int, bytes]], length: int
) -> None:
    data = bytearray(WHOLE)
    for at, patch in changes:
        data[at : at + len(patch)] = patch
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data[:length])
    try:
        file = SafetensorsFile(path)
    except SageLLMError as error:
        refusal = error.message
    else:
        refusal = "bad.safetensors was read"
        assert all(len(file.data(tensor)) == tensor.nbytes for tensor in file.tensors.values())
    assert "bad.safetensors" in refusal
