"""Which command lines have a core's process started before they are parsed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sagellm.cli.ahead import wants_core


@pytest.mark.parametrize(
    "line",
    ["run hi", "run -m smollm2-135m hi", "--debug run hi", "chat", "serve", "serve ./model --port 0", "engine m"],
)
def test_a_command_that_loads_a_model_here_starts_its_core_first(line: str) -> None:
    assert wants_core(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--help",
        "run --help",
        "serve -h",
        "models",
        "doctor",
        "run hi --url http://127.0.0.1:1/v1",
        "run hi --url=http://127.0.0.1:1/v1",
        "serve --attach http://127.0.0.1:1",
        "serve --engine mock",
        "run hi --core=inline",
    ],
)
def test_a_command_that_loads_none_in_a_process_of_ours_starts_nothing(line: str) -> None:
    assert not wants_core(line.split())


def test_deciding_imports_nothing_that_takes_time() -> None:
    code = (
        "import sys, sagellm.cli.ahead;"
        " print(*{'asyncio', 'httpx', 'pydantic', 'rich', 'torch', 'typer'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
