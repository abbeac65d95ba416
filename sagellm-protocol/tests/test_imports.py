from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import sagellm_protocol
import sagellm_protocol.testing

HEAVY = {
    "torch",
    "transformers",
    "numpy",
    "fastapi",
    "starlette",
    "uvicorn",
    "httpx",
    "pytest",
    "asyncio",
    "sqlalchemy",
}


def modules_after(code: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after running ``code``."""
    printed = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys, json; print(json.dumps(list(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return set(json.loads(printed))


def test_importing_the_contract_does_not_load_even_pydantic() -> None:
    loaded = modules_after("import sagellm_protocol")
    assert "pydantic" not in loaded
    assert not loaded & HEAVY
    assert {name for name in loaded if name.startswith("sagellm_protocol")} == {
        "sagellm_protocol",
        "sagellm_protocol._version",
    }


def test_every_name_of_the_contract_costs_pydantic_and_little_else() -> None:
    baseline = modules_after("from pydantic import BaseModel, Field, TypeAdapter, model_validator, JsonValue")
    loaded = modules_after("from sagellm_protocol import *")
    assert not (loaded - baseline) & HEAVY
    extra = {name for name in loaded - baseline if not name.startswith("sagellm_protocol")}
    assert len(extra) < 10, extra


def test_no_validator_is_built_by_importing() -> None:
    code = """
from sagellm_protocol import *
from sagellm_protocol import _wire
def leaves(model):
    for child in model.__subclasses__():
        yield child
        yield from leaves(child)
built = [m.__name__ for base in (_wire.Ask, _wire.Report) for m in leaves(base) if m.__pydantic_complete__]
assert not built, built
"""
    modules_after(code)


def test_the_mock_engine_needs_neither_pytest_nor_numpy() -> None:
    assert not modules_after("from sagellm_protocol.testing import *") & (HEAVY - {"asyncio"})


@pytest.mark.parametrize("module", [sagellm_protocol, sagellm_protocol.testing])
def test_what_checkers_see_is_what_is_there(module) -> None:
    tree = ast.parse(Path(module.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == module._HOME
    assert set(seen) == set(module.__all__) - {"__version__"}
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(module.__all__) <= set(dir(module))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="made_up"):
        _ = sagellm_protocol.made_up


def test_the_version_is_that_of_the_distribution() -> None:
    pyproject = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert f'version = "{sagellm_protocol.__version__}"' in pyproject
