"""``sagellm plan`` on a published model's sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sagellm.cli.app import app, main

CONFIG = {
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_a_split_is_told_with_its_memory_and_reasons(model: Path) -> None:
    done = CliRunner().invoke(app, ["plan", str(model), "--devices", "8x80", "--json"], catch_exceptions=False)
    told = json.loads(done.stdout)
    assert (told["tensor_parallel"], told["pipeline_parallel"], told["data_parallel"]) == (4, 1, 2)
    assert told["memory_bytes"]["total"] <= told["memory_bytes"]["available"]
    assert any("70.55 billion parameters" in reason for reason in told["reasons"])
    shown = CliRunner().invoke(app, ["plan", str(model), "--devices", "8x80"], catch_exceptions=False).stdout
    assert "tensor_parallel 4" in shown
    assert "does not fit" in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--devices", "1x80"], "too few"),
        (["--devices", "eight"], "8x80"),
        (["--devices", "8x80", "--quantization", "int3"], "unknown type 'int3'"),
    ],
)
def test_what_cannot_be_planned_is_an_error_with_its_reason(
    model: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(model), *arguments]) == 1
    assert says in capsys.readouterr().err


def test_a_folder_without_a_config_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tmp_path / "none"), "--devices", "8x80"]) == 1
    assert "none" in capsys.readouterr().err
