"""What a JSON Schema says about the kind of a value, where a form of calls writes values without their kind.

Knows nothing of any form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Schema = Mapping[str, Any]

KINDS = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
"""All that JSON Schema has a name for."""
_DEEPEST = 64
"""Schemas within schemas that are looked into."""


def kinds(schema: Any, root: Schema) -> frozenset[str]:
    """The kinds a value may be of, as far as the schema says so plainly; none where it contradicts itself.

    Args:
        schema: Of the value.
        root: What its references point into.
    """
    return _kinds(schema, root, {}, _DEEPEST)


def _kinds(schema: Any, root: Schema, known: dict[int, frozenset[str]], depth: int) -> frozenset[str]:
    if not isinstance(schema, Mapping) or not depth:
        return KINDS
    place = id(schema)
    if place not in known:
        known[place] = KINDS  # what refers to itself says nothing by that; and no schema is looked into twice
        known[place] = _of_parts(schema, lambda part: _kinds(part, root, known, depth - 1), root)
    return known[place]


def _of_parts(schema: Schema, of: Callable[[Any], frozenset[str]], root: Schema) -> frozenset[str]:
    found = _stated(schema)
    if "$ref" in schema:
        found &= of(referred(schema["$ref"], root))
    for key in ("anyOf", "oneOf"):
        branches = schema.get(key)
        if isinstance(branches, list) and branches:
            found &= frozenset().union(*map(of, branches))
    branches = schema.get("allOf")
    for branch in branches if isinstance(branches, list) else ():
        found &= of(branch)
    return found


def kind_of(value: Any) -> str:
    """The kind of one value, as narrow as there is one."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "integer" if value == value // 1 else "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def referred(pointer: Any, root: Schema) -> Any:
    """What a reference within the document points to; ``None`` where that is nothing."""
    if not isinstance(pointer, str) or not pointer.startswith("#"):
        return None
    found: Any = root
    for step in pointer.removeprefix("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _stated(schema: Schema) -> frozenset[str]:
    stated = schema.get("type")
    named = [stated] if isinstance(stated, str) else stated
    found = KINDS.intersection(one for one in named if isinstance(one, str)) if isinstance(named, list) else KINDS
    if "number" in found:
        found |= {"integer"}
    if "const" in schema:
        found &= {kind_of(schema["const"])}
    listed = schema.get("enum")
    if isinstance(listed, list):
        found &= {kind_of(value) for value in listed}
    return found
