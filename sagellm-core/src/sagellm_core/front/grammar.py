"""Writing grammars: rules in Lark's form, with JSON Schemas and other grammars as parts of them, as one text.

The text is what the core compiles, and is compared by. Knows which strings are single tokens of the model's, which no
other tokens can spell; nothing of requests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

_HEAD = '%llguidance {"no_forcing": true}'
"""Any tokens may spell what the grammar leaves no choice in: finding the usual ones takes time with each step."""
_SPACE = r"[ \n\r\t]{1,32}"
"""White space that JSON may have at one place: small models else write it without end."""
ANY_TEXT = r"/(.|\n)*/"
_REGEX_PIECE = re.compile(r"\\.|.", re.DOTALL)
_NARROWED = {r"\d": "0-9", r"\w": "0-9A-Za-z_"}
_ESCAPED = {"/": r"\/", "\n": r"\n", "\r": r"\r", "\\\n": r"\n", "\\\r": r"\r"}


class GrammarWriter:
    """Rules that are added one by one; the first that is asked for by :meth:`text` is where output begins.

    Args:
        special_id: The id of a string that is one special token, which is no text then.
    """

    def __init__(self, special_id: Callable[[str], int | None] = lambda marker: None) -> None:
        self._special_id = special_id
        self._rules: list[str] = []
        self._parts: list[dict[str, Any]] = []

    def literal(self, *texts: str) -> str:
        """These texts, one after another; each is a special token if it is spelt as one."""
        return " ".join(self._one(text) for text in texts if text)

    def is_special(self, text: str) -> bool:
        """Whether ``text`` is a special token."""
        return self._special_id(text) is not None

    def rule(self, body: str, attribute: str = "") -> str:
        """Name a rule."""
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{attribute}: {body}")
        return name

    def up_to(self, marker: str, body: str = ANY_TEXT) -> str:
        """Text that ``body`` matches, by default any, and then ``marker``, which ends it where it first comes.

        Args:
            marker: A special token, or a text.
            body: An expression over characters.
        """
        if self.is_special(marker):
            return f"{self.rule(body)} {self.literal(marker)}"
        return self.rule(body, f"[stop={self.literal(marker)}]")

    def schema(self, schema: Mapping[str, Any] | bool) -> str:
        """JSON that a schema allows."""
        options = {"whitespace_pattern": _SPACE}
        if isinstance(schema, Mapping):
            given = schema.get("x-guidance")
            options = {**options, **given} if isinstance(given, Mapping) else options
            return self._part(json_schema={**schema, "x-guidance": options})
        return self._part(json_schema=schema)

    def lark(self, grammar: str) -> str:
        """What another grammar allows."""
        return self._part(lark_grammar=grammar)

    def text(self, start: str) -> str:
        """All of it, beginning with the expression ``start``."""
        lark = "\n".join([_HEAD, f"start: {start}", *self._rules, ""])
        return json.dumps({"grammars": [{"lark_grammar": lark}, *self._parts]}, ensure_ascii=False)

    def _one(self, text: str) -> str:
        token = self._special_id(text)
        return json.dumps(text, ensure_ascii=False) if token is None else f"<[{token}]>"

    def _part(self, **grammar: Any) -> str:
        name = f"p{len(self._parts)}"
        self._parts.append({"name": name, **grammar})
        return f"@{name}"


def alternatives(expressions: list[str]) -> str:
    """Any of them."""
    return expressions[0] if len(expressions) == 1 else f"({' | '.join(expressions)})"


def regex(pattern: str) -> str:
    """A regular expression as it stands in a grammar, between slashes, and as nobody reads it otherwise.

    Python's digits and words are Unicode's, JavaScript's are ASCII's; what is written here is both.
    """
    parts: list[str] = []
    in_class = False
    for found in _REGEX_PIECE.finditer(pattern):
        piece = found[0]
        if piece in _NARROWED:
            piece = _NARROWED[piece] if in_class else f"[{_NARROWED[piece]}]"
        elif piece in _ESCAPED:
            piece = _ESCAPED[piece]
        elif piece == "[":
            in_class = True
        elif piece == "]":
            in_class = False
        parts.append(piece)
    return f"/{''.join(parts)}/"
