"""A string, a list of strings, a list of token ids or a list of those lists: what prompts and embedding inputs may be.

Knows nothing of what is done with them.
"""

from __future__ import annotations

from pydantic import JsonValue

from .body import invalid

Prompt = str | tuple[int, ...]


def read_prompts(value: JsonValue, param: str, most: int) -> tuple[Prompt, ...]:
    """Tell the four forms apart.

    Args:
        value: As it stands in the body.
        param: Its field's name.
        most: Most prompts that one request may have.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for another form, an empty list, or too many.
    """
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise invalid(param, "must be a string, a list of strings, a list of token ids, or a list of such lists")
    if all(_is_token(item) for item in value):
        return (_tokens(value, param),)
    if len(value) > most:
        raise invalid(param, f"has {len(value)} entries; at most {most} are taken at once")
    return tuple(_one(item, f"{param}[{index}]") for index, item in enumerate(value))


def _one(item: JsonValue, where: str) -> Prompt:
    if isinstance(item, str):
        return item
    if isinstance(item, list) and item and all(_is_token(token) for token in item):
        return _tokens(item, where)
    raise invalid(where, "must be a string or a list of token ids that is not empty")


def _is_token(item: JsonValue) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


def _tokens(items: list[JsonValue], where: str) -> tuple[int, ...]:
    tokens = tuple(item for item in items if isinstance(item, int))
    for index, token in enumerate(tokens):
        if token < 0:
            raise invalid(f"{where}[{index}]", f"token ids are 0 or more (got {token})")
    return tokens
