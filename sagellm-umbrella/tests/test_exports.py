"""``import sagellm``: what it offers and what it costs."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import sagellm
from sagellm._exports import EXPORTS


@pytest.mark.parametrize("name", sorted(EXPORTS))
def test_every_public_name_is_the_components_own_object(name: str) -> None:
    module = importlib.import_module(EXPORTS[name])
    assert getattr(sagellm, name) is getattr(module, name)


@pytest.mark.parametrize("name", sorted(EXPORTS))
def test_every_public_name_is_public_where_it_comes_from(name: str) -> None:
    assert name in importlib.import_module(EXPORTS[name]).__all__


def test_all_lists_the_table_and_the_version() -> None:
    assert set(sagellm.__all__) == {*EXPORTS, "__version__"}
    assert sagellm.__version__.count(".") == 2
    assert set(sagellm.__all__) <= set(dir(sagellm))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = sagellm.Nothing  # type: ignore[attr-defined]


def test_a_name_whose_package_is_absent_says_what_to_install() -> None:
    script = "import sys; sys.modules['sagellm_core'] = None\nfrom sagellm import LLM"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert "sagellm.LLM is defined by sagellm_core, which is not installed: pip install isagellm" in done.stderr


def test_importing_it_loads_nothing_heavy() -> None:
    loaded = _modules_after("import sagellm")
    assert not loaded & {"torch", "transformers", "pydantic", "httpx", "fastapi", "typer", "numpy"}


def test_the_client_and_the_sampling_parameters_need_no_torch() -> None:
    loaded = _modules_after("from sagellm import LLM, SamplingParams, UnifiedInferenceClient; SamplingParams()")
    assert "torch" not in loaded
    assert "transformers" not in loaded


def _modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())
