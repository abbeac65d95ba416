"""What docs/features.md promises is proved: its tests and options exist, and no feature of the contract is left out."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from sagellm_protocol import features

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
SUITES = sorted((ROOT / "sagellm-protocol" / "src" / "sagellm_protocol" / "testing" / "conformance").rglob("*.py"))
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "proved by" not in line]
NAMED = sorted(set(re.findall(r"`([\w./-]+\.py::[\w:]+)`", PAGE)))


@cache
def functions(path):
    """Functions of a file by name, and the bases and methods of its classes."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    plain = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    classes = {
        node.name: (
            [base.id for base in node.bases if isinstance(base, ast.Name)],
            {inner.name for inner in node.body if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef))},
        )
        for node in body
        if isinstance(node, ast.ClassDef)
    }
    return plain, classes


def methods(name, path):
    """What a class has, from a suite that it belongs to as well."""
    for file in (path, *SUITES):
        if name in functions(file)[1]:
            bases, own = functions(file)[1][name]
            return own.union(*(methods(base, file) for base in bases))
    return set()


@pytest.mark.parametrize("test", NAMED)
def test_every_test_that_it_names_exists(test):
    path, *within, name = test.split("::")
    file = ROOT / path
    assert file.is_file()
    assert name.startswith("test_")
    assert name in (methods(within[0], file) if within else functions(file)[0])


def test_every_row_names_what_proves_it():
    assert len(ROWS) > 50
    assert [row for row in ROWS if "::test_" not in row] == []


def test_every_feature_of_the_contract_is_there():
    assert {name for name in features.ALL if f"`{name}`" not in PAGE} == set()


def test_every_option_of_the_command_that_it_names_exists():
    shown = "".join(
        subprocess.run(
            [sys.executable, "-m", "sagellm", command, "--help"],
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
            env={**os.environ, "COLUMNS": "200"},
        ).stdout
        for command in ("serve", "run")
    )
    options = set(re.findall(r"--[a-z][a-z-]+", PAGE))
    assert len(options) > 10
    assert options <= set(re.findall(r"--[a-z][a-z-]+", shown))


def test_the_readme_leads_there():
    assert "(docs/features.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
