"""Names, parameters, defaults and fields are exactly those that callers of the replaced control plane know."""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
from typing import Any

import pytest

from legacy_api import MANAGER, TYPES
from sagellm_control_plane import manager, types

CLASSES = {**{name: (manager, facts) for name, facts in MANAGER.items()}, **{n: (types, f) for n, f in TYPES.items()}}
METHODS = [(name, text) for name, (_, facts) in CLASSES.items() for text in facts["methods"]]


def _function(text: str) -> tuple[str | None, ast.FunctionDef | ast.AsyncFunctionDef]:
    kind, _, rest = text.partition(" ") if text.startswith("@") else (None, "", text)
    node = ast.parse(rest + ": ...").body[0]
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return kind, node


def _value(node: ast.expr | None) -> Any:
    if node is None:
        return inspect.Parameter.empty
    return eval(compile(ast.Expression(node), "facts", "eval"), vars(types).copy())


@pytest.mark.parametrize(("cls", "text"), METHODS, ids=[f"{name}.{text[:60]}" for name, text in METHODS])
def test_a_method_has_its_known_parameters_and_defaults(cls: str, text: str) -> None:
    kind, node = _function(text)
    member = inspect.getattr_static(getattr(CLASSES[cls][0], cls), node.name)
    if kind == "@property":
        assert isinstance(member, property)
        return
    assert inspect.iscoroutinefunction(member) == isinstance(node, ast.AsyncFunctionDef)
    parameters = list(inspect.signature(member).parameters.values())[1:]
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    expected = [
        (a.arg, inspect.Parameter.POSITIONAL_OR_KEYWORD, _value(d)) for a, d in zip(plain, defaults, strict=True)
    ]
    expected += [
        (a.arg, inspect.Parameter.KEYWORD_ONLY, _value(d))
        for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    assert [(p.name, p.kind, p.default) for p in parameters] == expected


@pytest.mark.parametrize("cls", [name for name, (_, facts) in CLASSES.items() if facts["fields"]])
def test_a_type_has_its_known_fields_and_defaults(cls: str) -> None:
    module, facts = CLASSES[cls]
    kind = getattr(module, cls)
    if issubclass(kind, enum.Enum):
        expected = {name.strip(): ast.literal_eval(value) for name, value in (f.split("=") for f in facts["fields"])}
        # States may have been added since; none may have gone or changed.
        assert {member.name: member.value for member in kind}.items() >= expected.items()
        return
    given = [ast.parse(text).body[0] for text in facts["fields"]]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    assert list(fields) == [
        node.target.id for node in given if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    for node in given:
        assert isinstance(node, ast.AnnAssign)
        assert isinstance(node.target, ast.Name)
        field, text = fields[node.target.id], None if node.value is None else ast.unparse(node.value)
        if text is None:
            assert field.default is field.default_factory is dataclasses.MISSING
        elif text.startswith("field("):
            assert field.default_factory is not dataclasses.MISSING
        else:
            assert field.default == _value(node.value)
