"""What the README says is what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from sagellm_core.front.form import REASONING_SIGNS, TOOL_SIGNS
from sagellm_core.front.reasoning import REASONING_PARSERS
from sagellm_core.front.tools import TOOL_PARSERS
from sagellm_core.loading.gguf import FORMATS
from sagellm_core.loading.hf_rope import ROPE_KINDS
from sagellm_core.models import ARCHITECTURES, ENCODERS
from sagellm_core.options import OPTIONS
from sagellm_protocol import EngineSpec

SOURCES = Path(__file__).parents[1] / "src" / "sagellm_core"
_READ = re.compile(r'"((?:HF|OMP|SAGELLM|TRANSFORMERS|XDG)_[A-Z_]+)"')


@pytest.fixture(scope="module")
def text() -> str:
    readme = Path(__file__).parents[1] / "README.md"
    if not readme.exists():
        pytest.skip("installed without its README")
    return readme.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def named(text: str) -> set[str]:
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return set(re.findall(r"`([^`\n]+)`", prose))


def test_architectures_formats_and_rope_types_are_those_there_are(named: set[str]) -> None:
    assert {name for name in named if name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))} == set(
        ARCHITECTURES
    )
    formats = {form.value.upper() for form in FORMATS.values()}
    assert {name for name in named if re.fullmatch(r"B?F\d+|Q\d_\w|MXFP\d", name)} == formats
    assert set(ROPE_KINDS) <= named


def test_encoders_are_those_there_are(named: set[str]) -> None:
    told = {name for name in named if re.fullmatch(r"\w*(Bert|Roberta)(Model|ForSequenceClassification)", name)}
    assert told == set(ENCODERS)


def test_every_option_is_documented(named: set[str]) -> None:
    assert set(EngineSpec.model_fields) <= named
    assert set(OPTIONS) <= named


def test_parsers_and_their_signs_are_those_there_are(text: str, named: set[str]) -> None:
    assert {*TOOL_PARSERS, *REASONING_PARSERS} <= named
    cells = text.replace("\\|", "|")
    signs = (words for words, _ in (*TOOL_SIGNS, *REASONING_SIGNS))
    assert all(f"`{sign}`" in cells or f"` {sign} `" in cells for sign in {*chain(*signs)})


def test_every_environment_variable_that_is_read_is_documented(named: set[str]) -> None:
    read = {name for file in SOURCES.rglob("*.py") for name in _READ.findall(file.read_text(encoding="utf-8"))}
    assert read == {name for name in named if re.fullmatch(r"[A-Z]+_[A-Z_]+", name)}


def test_every_folder_is_on_the_map(named: set[str]) -> None:
    folders = {f"{file.parent.name}/" for file in SOURCES.glob("*/__init__.py")}
    assert folders <= named


def test_the_readmes_first_program_runs(text: str, smollm2: Path) -> None:
    program = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def test_the_readmes_program_that_drafts_runs(text: str, smollm2: Path) -> None:
    [program] = re.findall(r"## Speculative decoding\n.*?```python\n(.*?)```", text, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "12. fig pie" in done.stdout
