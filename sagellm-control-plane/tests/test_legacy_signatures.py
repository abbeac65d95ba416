"""Names, parameters, defaults and fields are exactly those that callers of the replaced control plane know."""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import subprocess
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

import legacy_facts
import sagellm_control_plane
from sagellm_control_plane import types

FACTS = legacy_facts.read()
LATER = {"sagellm_control_plane.executors.finetune_executor"}
"""Fine-tuning, which is refused by name: there is no module that only pretends to it."""
MODULES = {name: facts for name, facts in FACTS["modules"].items() if name not in LATER}
CLASSES = {(module, name): facts for module, found in MODULES.items() for name, facts in found["classes"].items()}
METHODS = [(module, name, text) for (module, name), facts in CLASSES.items() for text in facts["methods"]]
FUNCTIONS = [(module, text) for module, found in MODULES.items() for text in found["functions"]]
KINDS = {"@static": staticmethod, "@classmethod": classmethod}


def _function(text: str) -> tuple[str | None, ast.FunctionDef | ast.AsyncFunctionDef]:
    kind, _, rest = text.partition(" ") if text.startswith("@") else (None, "", text)
    node = ast.parse(rest + ": ...").body[0]
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return kind, node


def _value(module: ModuleType, node: ast.expr | None) -> Any:
    if node is None:
        return inspect.Parameter.empty
    return eval(compile(ast.Expression(node), "facts", "eval"), {**vars(types), **vars(module)})


def _takes(module: ModuleType, member: Any, node: ast.FunctionDef | ast.AsyncFunctionDef, *, bound: bool) -> None:
    assert inspect.iscoroutinefunction(member) == isinstance(node, ast.AsyncFunctionDef)
    parameters = list(inspect.signature(member).parameters.values())[bound:]
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    expected = [
        (a.arg, inspect.Parameter.POSITIONAL_OR_KEYWORD, _value(module, d))
        for a, d in zip(plain, defaults, strict=True)
    ]
    expected += [
        (a.arg, inspect.Parameter.KEYWORD_ONLY, _value(module, d))
        for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg is not None:
        expected.append((arguments.kwarg.arg, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.empty))
    assert [(p.name, p.kind, p.default) for p in parameters] == expected


def test_the_facts_are_those_of_the_list() -> None:
    if not legacy_facts.SOURCE.exists():
        pytest.skip("the list of what is replaced is not beside this tree")
    assert legacy_facts.parse(legacy_facts.SOURCE.read_text()) == FACTS


@pytest.mark.parametrize("name", FACTS["exports"])
def test_what_was_exported_is_exported(name: str) -> None:
    assert name in sagellm_control_plane.__all__
    assert getattr(sagellm_control_plane, name).__name__ == name


@pytest.mark.parametrize(("module", "cls", "text"), METHODS, ids=[f"{name}.{text[:60]}" for _, name, text in METHODS])
def test_a_method_has_its_known_parameters_and_defaults(module: str, cls: str, text: str) -> None:
    there = import_module(module)
    kind, node = _function(text)
    member = inspect.getattr_static(getattr(there, cls), node.name)
    if kind == "@property":
        assert isinstance(member, property)
    elif kind is not None:
        assert isinstance(member, KINDS[kind])
        _takes(there, member.__func__, node, bound=kind == "@classmethod")
    else:
        _takes(there, member, node, bound=True)


@pytest.mark.parametrize(("module", "text"), FUNCTIONS)
def test_a_function_has_its_known_parameters_and_defaults(module: str, text: str) -> None:
    there = import_module(module)
    _, node = _function(text)
    _takes(there, getattr(there, node.name), node, bound=False)


@pytest.mark.parametrize(("module", "cls"), CLASSES)
def test_a_class_is_of_its_known_kind(module: str, cls: str) -> None:
    kind = getattr(import_module(module), cls)
    # A typed mapping is a plain one once it is made, and has no other trace of its kind.
    known = {one.__name__ for one in kind.__mro__} | ({"TypedDict"} if hasattr(kind, "__total__") else set())
    assert {base.split(".")[-1] for base in CLASSES[module, cls]["bases"]} <= known


@pytest.mark.parametrize(("module", "cls"), [key for key, facts in CLASSES.items() if facts["fields"]])
def test_a_type_has_its_known_fields_and_defaults(module: str, cls: str) -> None:
    there, texts = import_module(module), CLASSES[module, cls]["fields"]
    kind = getattr(there, cls)
    if issubclass(kind, enum.Enum):
        expected = {name.strip(): ast.literal_eval(value) for name, value in (f.split("=") for f in texts)}
        # States may have been added since; none may have gone or changed.
        assert {member.name: member.value for member in kind}.items() >= expected.items()
        return
    nodes = [ast.parse(text).body[0] for text in texts]
    given = [node for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    assert len(given) == len(texts)
    names = [ast.unparse(node.target) for node in given]
    if not dataclasses.is_dataclass(kind):
        assert list(kind.__annotations__)[: len(names)] == names
        assert all(
            node.value is None or getattr(kind, n) == _value(there, node.value)
            for n, node in zip(names, given, strict=True)
        )
        return
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    assert list(fields) == names
    for name, node in zip(names, given, strict=True):
        field, text = fields[name], None if node.value is None else ast.unparse(node.value)
        if text is None:
            assert field.default is field.default_factory is dataclasses.MISSING
        elif text.startswith("field("):
            assert field.default_factory is not dataclasses.MISSING
        else:
            assert field.default == _value(there, node.value)


def test_importing_every_module_of_old_loads_no_heavy_one() -> None:
    names = ", ".join(sorted(MODULES))
    heavy = ("torch", "transformers", "pynvml", "statsmodels", "fastapi", "ray")
    code = f"import sys, {names}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
