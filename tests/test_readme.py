"""What README.md tells a newcomer to type exists: sessions, files, imports."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SESSIONS = {
    node.name
    for node in ast.parse((ROOT / "noxfile.py").read_text()).body
    if isinstance(node, ast.FunctionDef) and "nox.session" in map(ast.unparse, node.decorator_list)
}


def test_every_nox_session_that_it_names_exists():
    named = set()
    for call in re.findall(r"nox -s ([^`\n]+)", README):
        words = call.split(" -- ")[0].split("#")[0].replace('"', "").split()
        named |= {word.split("(")[0] for word in words}
    assert {"serve", "tests", "tests_of"} <= named <= SESSIONS


def test_every_file_and_folder_that_it_links_to_exists():
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert targets
    assert all((ROOT / target).exists() for target in targets)


@pytest.mark.parametrize("snippet", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_every_name_that_its_python_imports_exists(snippet):
    imports = [node for node in ast.parse(snippet).body if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        module = importlib.import_module(node.module)
        assert all(hasattr(module, alias.name) for alias in node.names)
