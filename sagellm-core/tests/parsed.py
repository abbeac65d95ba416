"""What a parser makes of a text that comes in pieces, with what is one told as one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import count, pairwise
from typing import Any

from sagellm_core.front.output import OutputParser
from sagellm_core.front.parsing.pieces import Piece, joined
from sagellm_core.front.parsing.stage import Stage
from sagellm_core.front.tools import TOOL_PARSERS


def pieces(stage: Stage, texts: Iterable[str]) -> list[Piece]:
    """All that is found in ``texts``."""
    found = [piece for text in texts for piece in stage.push(text)]
    found += stage.flush()
    told: list[Piece] = []
    for piece in found:
        whole = joined(told[-1], piece) if told else None
        if whole is None:
            told.append(piece)
        else:
            told[-1] = whole
    return told


def cut(text: str, places: Iterable[int]) -> list[str]:
    """``text`` cut at some places."""
    bounds = [0, *sorted({place % (len(text) + 1) for place in places}), len(text)]
    return [text[start:end] for start, end in pairwise(bounds)]


def ids() -> Callable[[], str]:
    numbers = count()
    return lambda: f"id{next(numbers)}"


def whole(stages: Sequence[Stage], texts: Iterable[str], **options: Any) -> tuple[str, str, list[tuple[str, str, str]]]:
    """Answer, reasoning, and calls (id, name, arguments)."""
    parser = OutputParser(stages, ids(), **options)
    answer, reasoning, calls = "", "", {}
    for text in [*texts, None]:
        if text is None:
            parser.flush()
        else:
            parser.push(text)
        found = parser.take()
        answer += found.text
        reasoning += found.reasoning
        assert len({delta.index for delta in found.tool_calls}) == len(found.tool_calls)
        for delta in found.tool_calls:
            if delta.index not in calls:
                assert delta.id
                assert delta.name
                calls[delta.index] = [delta.id, delta.name, ""]
            else:
                assert delta.id is None
                assert delta.name is None
            calls[delta.index][2] += delta.arguments
    return answer, reasoning, [tuple(calls[index]) for index in range(len(calls))]


def calls_in(name: str, text: str) -> tuple[str, list[tuple[str, str]]]:
    """Content, and calls (name, arguments), that the parser of a name finds."""
    answer, _, calls = whole([TOOL_PARSERS[name]()], text)
    return answer, [(function, arguments) for _, function, arguments in calls]


def as_values(calls: Iterable[tuple[str, str]]) -> list[tuple[str, Any]]:
    return [(name, json.loads(arguments)) for name, arguments in calls]
