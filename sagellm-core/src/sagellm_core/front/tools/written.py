"""Grammars of arguments that are written one by one, each with its name, rather than as one JSON object.

A JSON Schema says what an object is; here its properties stand alone, in the schema's order. What can then not be held
to the schema is refused by name, as nothing of a schema is passed over.

Knows nothing of any family's marks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sagellm_core.front.grammar import ANY_TEXT, GrammarWriter, alternatives, regex
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .schemas import KINDS, Schema, kind_of, kinds, referred

_NOTES = frozenset(
    {
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema"),
        *("$id", "$defs", "definitions", "contentEncoding", "contentMediaType", "strict"),
    }
)
"""What a schema says that asks for nothing."""
_OF_OBJECTS = frozenset({"type", "properties", "required", "additionalProperties"})
_OF_TEXT = frozenset({"type", "minLength", "maxLength", "pattern", "format"})
_JUNCTIONS = ("$ref", "anyOf", "oneOf")
_DATE, _TIME = r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])", r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?"
_ZONE, _BYTE = r"(Z|[+\-]([01]\d|2[0-3]):[0-5]\d)", r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_FORMATS: Mapping[str, str] = {
    "date": _DATE,
    "time": _TIME + _ZONE,
    "date-time": f"{_DATE}T{_TIME}{_ZONE}",
    "email": r"[A-Za-z0-9_+\-]+(\.[A-Za-z0-9_+\-]+)*@[A-Za-z0-9\-]+(\.[A-Za-z0-9\-]+)+",
    "uuid": r"[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}",
    "ipv4": rf"({_BYTE}\.){{3}}{_BYTE}",
}
"""RFC 3339, 9562 and 791; of addresses of mail, those without quotes and comments (RFC 5321)."""
MAX_BRANCHES = 256
"""Schemas of which a value may follow one."""
_DEPTH = 8
_REGEX_PIECE = re.compile(r"\\.|.", re.DOTALL)


@dataclass(frozen=True)
class Argument:
    """One argument of a function.

    Attributes:
        name: Its name.
        schema: Of its value.
        required: Whether it must be there.
    """

    name: str
    schema: Any
    required: bool


def arguments_one_by_one(function: str, schema: Schema) -> list[Argument]:
    """The arguments of a function, in the order in which they are to be written.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for a schema that says more of them than each by itself.
    """
    if "$ref" in schema:
        target = referred(schema["$ref"], schema)
        own = {key: value for key, value in schema.items() if key not in {"$ref", "type"}}
        schema = {**own, **target} if isinstance(target, Mapping) else schema
    where = f"the parameters of {function!r}"
    if "object" not in kinds(schema, schema):
        raise _contradiction(f"{where} are of type {schema.get('type')!r}, which is no object")
    _refuse_others(schema, _OF_OBJECTS, where)
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, Mapping):
        raise _contradiction(f"{where} have properties that are no object")
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise _contradiction(f"{where} have required {required!r:.80}, which is no list of names")
    more = schema.get("additionalProperties", True)
    further = {name: more for name in required if name not in properties}
    return [Argument(name, of, name in required) for name, of in {**properties, **further}.items()]


def as_python(argument: Argument, root: Schema, writer: GrammarWriter) -> str:
    """An expression for a value as Python writes it, which but for its constants is as JSON writes it."""
    schema = argument.schema
    if isinstance(schema, Mapping) and schema.get("type") == "boolean" and not set(schema) - _NOTES - {"type"}:
        return alternatives([writer.literal("True"), writer.literal("False")])
    return writer.schema(_with_definitions(schema, root))


def check_name(name: str, pattern: re.Pattern[str], what: str) -> None:
    """Refuse a name that has no place in a form.

    Raises:
        SageLLMError: ``UNSUPPORTED``.
    """
    if not pattern.fullmatch(name):
        raise _unsupported(f"{what} {name!r} cannot be written")


def as_plain(argument: Argument, root: Schema, writer: GrammarWriter, *, ends: str, line: bool) -> str:
    """An expression for a value without quotes, and what ends it.

    Args:
        argument: Whose value.
        root: What references point into.
        writer: Takes further rules.
        ends: The mark after a value, which no value may hold.
        line: Values stand on lines of their own.
    """
    where = f"parameter {argument.name!r}"
    marks = _Marks(writer, ends, "\n" if line else "")
    branches = list(islice(_branches(argument.schema, root, where), MAX_BRANCHES + 1))
    if len(branches) > MAX_BRANCHES:
        raise _unsupported(f"{where} is one of more than {MAX_BRANCHES} alternatives, which cannot be followed")
    return alternatives([marks.after(branch, root, where) for branch in branches])


class _Marks:
    """Writes plain values and what ends them."""

    def __init__(self, writer: GrammarWriter, ends: str, line: str) -> None:
        self._writer = writer
        self._ends = ends
        # A special token is no text, so that what stands before it cannot be told from the value by it.
        self._stop = ends if writer.is_special(ends) else line + ends
        self._close = writer.literal(line, ends)

    def after(self, schema: Any, root: Schema, where: str) -> str:
        """An expression for one branch of a schema."""
        if not schema:
            return self._writer.up_to(self._ends)  # whatever is written is something
        if kinds(schema, root) != {"string"}:
            return f"{self._writer.schema(_with_definitions(schema, root))} {self._close}"
        texts = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(texts, list):
            if any(self._ends in text for text in texts):
                raise _unsupported(f"{where} may hold {self._ends!r}, which cannot be told from its end")
            return alternatives([f"{self._writer.literal(text)} {self._close}" for text in texts])
        _refuse_others(schema, _OF_TEXT, where)
        bodies = _bodies(schema, where)
        if not bodies:
            return self._writer.up_to(self._ends)
        mark = regex(re.escape(self._ends))[1:-1]
        return self._writer.up_to(self._stop, " & ".join([*bodies, rf"~/(.|\n)*{mark}(.|\n)*/"]))


def _branches(schema: Any, root: Schema, where: str, depth: int = _DEPTH) -> Iterator[Any]:
    """Schemas one of which a value must follow, each of strings alone or of anything else."""
    allowed = frozenset() if schema is False else kinds(schema, root)
    if not allowed:
        raise _contradiction(f"no value fits {where}")
    if not depth:
        raise _unsupported(f"{where} has references within references and cannot be followed")
    if not isinstance(schema, Mapping):
        yield {}
    elif not isinstance(schema.get("enum", []), list):
        raise _contradiction(f"{where} has the enum {schema['enum']!r:.80}, which is no list")
    elif "string" not in allowed:
        yield schema
    elif key := next((key for key in _JUNCTIONS if key in schema), None):
        others = {name: value for name, value in schema.items() if name != key}
        for one in _joined(key, schema[key], root, where):
            yield from _branches(_merged(others, one, root, where), root, where, depth - 1)
    elif allowed == KINDS:
        _refuse_others(schema, frozenset({"type"}), f"{where}, which has no type,")
        yield {}
    else:
        for part in (frozenset({"string"}), allowed - {"string"}):
            if part:
                yield _narrowed(schema, part)


def _joined(key: str, value: Any, root: Schema, where: str) -> list[Schema]:
    """What a reference or a union leads to."""
    found = [referred(value, root)] if key == "$ref" else value
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise _contradiction(f"{where} has a {key} that leads to no schema")
    if key == "oneOf":
        seen: frozenset[str] = frozenset()
        for one in found:
            if seen & kinds(one, root):
                raise _unsupported(f"{where} has a oneOf of several schemas for one type, which cannot be followed")
            seen |= kinds(one, root)
    return found


def _merged(schema: Schema, other: Schema, root: Schema, where: str) -> Schema:
    """One schema that asks for what both do."""
    twice = sorted((set(schema) & set(other)) - _NOTES - {"type"})
    if twice:
        raise _unsupported(f"{where} says {', '.join(twice)} twice and cannot be followed")
    both = {**schema, **other}
    if "type" in both:
        both["type"] = sorted(_stated(schema, root) & _stated(other, root))
    return both


def _stated(schema: Schema, root: Schema) -> frozenset[str]:
    return kinds({"type": schema["type"]}, root) if "type" in schema else KINDS


def _narrowed(schema: Schema, allowed: frozenset[str]) -> Schema:
    """A schema of some of the kinds that it allows."""
    narrowed = {**schema, "type": sorted(allowed)}
    if "enum" in schema:
        narrowed["enum"] = [value for value in schema["enum"] if kind_of(value) in allowed]
    return narrowed


def _bodies(schema: Schema, where: str) -> list[str]:
    """Regular expressions all of which a string must match; none of them where any string will do."""
    bodies = []
    least, most = _length(schema, "minLength", where) or 0, _length(schema, "maxLength", where)
    if least or most is not None:
        bodies.append(rf"/(.|\n){{{least},{'' if most is None else most}}}/")
    if "pattern" in schema:
        bodies.append(_found_within(schema["pattern"], where))
    if "format" in schema:
        form = schema["format"]
        if not isinstance(form, str) or form not in _FORMATS:
            raise _unsupported(f"{where} is of format {form!r}, where only {', '.join(_FORMATS)} can be followed")
        bodies.append(regex(_FORMATS[form]))
    return bodies


def _length(schema: Schema, key: str, where: str) -> int | None:
    length = schema.get(key)
    if key in schema and (type(length) is not int or length < 0):
        raise _contradiction(f"{where} has the {key} {length!r:.80}, which is no length")
    return length


def _found_within(pattern: Any, where: str) -> str:
    """An expression for texts that have a match of ``pattern`` somewhere."""
    if not isinstance(pattern, str):
        raise _contradiction(f"{where} has the pattern {pattern!r}, which is no string")
    inner, begins, ends = pattern, pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith(r"\$")
    inner = inner[1:] if begins else inner
    inner = inner[:-1] if ends else inner
    if (begins or ends) and _is_choice(inner):
        raise _unsupported(f"{where} has the pattern {pattern!r}, of which only a part is anchored, and cannot be held")
    any_text = ANY_TEXT[1:-1]
    return f"/{'' if begins else any_text}({regex(inner)[1:-1]}){'' if ends else any_text}/"


def _is_choice(pattern: str) -> bool:
    """Whether a regular expression is one or another, as a whole."""
    depth, in_class = 0, False
    for found in _REGEX_PIECE.finditer(pattern):
        piece = found[0]
        if in_class:
            in_class = piece != "]"
        elif piece == "|" and not depth:
            return True
        else:
            in_class = piece == "["
            depth += {"(": 1, ")": -1}.get(piece, 0)
    return False


def _with_definitions(schema: Any, root: Schema) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    return {**{key: root[key] for key in ("$defs", "definitions") if key in root}, **schema}


def _refuse_others(schema: Schema, known: frozenset[str], where: str) -> None:
    others = sorted(set(schema) - known - _NOTES)
    if others:
        raise _unsupported(f"{where} cannot be held to {', '.join(map(json.dumps, others))}")


def _contradiction(what: str) -> SageLLMError:
    return SageLLMError(ErrorCode.INVALID_REQUEST, f"tools cannot be followed: {what}", "tools")


def _unsupported(what: str) -> SageLLMError:
    return SageLLMError(
        ErrorCode.UNSUPPORTED,
        f"{what} in the form this model writes calls in; say it otherwise, or leave tool_choice at auto",
        "tools",
    )
