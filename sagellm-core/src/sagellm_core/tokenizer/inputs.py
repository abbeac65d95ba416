"""Texts, and pairs of texts, to what an embedding model or a cross-encoder reads: with special tokens, cut if told so.

Does as the reference tokenizers do. Knows nothing of requests or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers import Encoding


@dataclass(frozen=True)
class Encoded:
    """One input.

    Attributes:
        ids: Its tokens, cut where that was allowed.
        length: Tokens it had before.
        second: Where its second text begins, for a pair whose tokenizer tells the two apart.
    """

    ids: list[int]
    length: int
    second: int | None = None


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], limit: int | None) -> list[Encoded]:
    """Tokens of texts, with the special tokens that belong around each.

    Args:
        tokenizer: The model's.
        texts: Any number of them; they are worked on side by side.
        limit: Cut each to this many tokens, special ones included; ``None`` cuts nothing.
    """
    backend = tokenizer.backend
    around = backend.num_special_tokens_to_add(False)
    return [
        _encoded(tokenizer, encoding, None, around, limit)
        for encoding in backend.encode_batch(list(texts), add_special_tokens=False)
    ]


def encode_pairs(tokenizer: Tokenizer, first: str, seconds: Sequence[str], limit: int | None) -> list[Encoded]:
    """Tokens of pairs of one text with each of several.

    Args:
        tokenizer: The model's.
        first: In each pair.
        seconds: One in each pair.
        limit: Cut the longer of the two, and then both, until the pair has this many tokens; ``None`` cuts nothing.
    """
    backend = tokenizer.backend
    around = backend.num_special_tokens_to_add(True)
    # Cutting changes an encoding in place, and the first is in every pair: each has one of its own.
    firsts = backend.encode_batch([first] * len(seconds), add_special_tokens=False)
    others = backend.encode_batch([*seconds], add_special_tokens=False)
    return [_encoded(tokenizer, *pair, around, limit) for pair in zip(firsts, others, strict=True)]


def _encoded(tokenizer: Tokenizer, first: Encoding, second: Encoding | None, around: int, limit: int | None) -> Encoded:
    length = len(first) + (0 if second is None else len(second)) + around
    if limit is not None and length > limit:
        room = max(0, limit - around)
        if second is None:
            first.truncate(room, direction=tokenizer.truncation_side)
        else:
            for encoding, kept in zip((first, second), _shares(len(first), len(second), room), strict=True):
                encoding.truncate(kept, direction=tokenizer.truncation_side)
    whole = tokenizer.backend.post_process(first, second, True)
    types = whole.type_ids
    return Encoded(whole.ids, length, types.index(1) if second is not None and 1 in types else None)


def _shares(first: int, second: int, room: int) -> tuple[int, int]:
    """Tokens that each of a pair keeps: the longer one gives way until both are equal ("longest first")."""
    short, long = sorted((first, second))
    if short + long > room:
        long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (short, long) if first <= second else (long, short)
