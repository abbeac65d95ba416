"""The README says what the code does."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Server

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in (README.parent / "src").rglob("*.py"))
COMMANDS = re.findall(
    r"(sagellm (?!COMMAND)[a-z][^#\n`]*)", "\n".join(re.findall(r"```\n(sagellm .*?)```", TEXT, re.DOTALL))
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("variable", sorted(set(re.findall(r'"(SAGELLM_[A-Z_]+)"', SOURCES))))
def test_every_environment_variable_is_described(variable: str) -> None:
    assert f"| `{variable}` |" in TEXT


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_in_an_example_exists(
    command: str, sagellm: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    words = shlex.split(command.strip())
    shown = sagellm(words[1], "--help").stdout
    for word in words[2:]:
        if word.startswith("--"):
            assert word in shown


def test_the_examples_in_python_run(real_stack: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGELLM_BASE_URL", real_stack.url)
    for block in blocks("python"):
        exec(compile(block, str(README), "exec"), {})
