"""One model's tokenizer: text to ids and back, its special tokens, and its chat template.

Knows nothing of where it was read from, nor of requests. Safe to use from several threads at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from .chat import ChatTemplates

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer and what its model's authors say of its use.

    Attributes:
        backend: The ``tokenizers`` object that does the work.
        special_tokens: Named special tokens (``bos_token``, ``eos_token``, …), as templates see them.
        chat: Chat templates; none for a model that was not made to chat.
        truncation_side: Which end of an input that is too long is cut off.
    """

    backend: Backend = field(repr=False)
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    chat: ChatTemplates = field(default_factory=ChatTemplates)
    truncation_side: Literal["left", "right"] = "right"

    @cached_property
    def vocab_size(self) -> int:
        """Ids that mean something are below this; a model's table may be larger."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def bos_id(self) -> int | None:
        """Id of the beginning-of-text token, if there is one."""
        token = self.special_tokens.get("bos_token")
        return None if token is None else self.backend.token_to_id(token)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that are left out of text unless asked for."""
        return frozenset(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def _added_ids(self) -> frozenset[int]:
        return frozenset(self.backend.get_added_tokens_decoder())

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of ``text``.

        Special tokens that ``text`` spells out become themselves. A beginning-of-text token that ``text`` begins with
        is not put before it a second time.
        """
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        if add_special_tokens and self.bos_id is not None and ids[:2] == [self.bos_id, self.bos_id]:
            del ids[0]
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ``ids``; bytes that are not UTF-8 become U+FFFD."""
        return str(self.backend.decode(ids, skip_special_tokens=skip_special_tokens))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for, special ones included; empty for an id without a meaning.

        Bytes of consecutive tokens join up to the text's UTF-8, which tokens' own texts do not where one character is
        several tokens.
        """
        token = self.backend.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self._added_ids:
            return token.encode()
        if self._byte_level:
            return bytes(_BYTE_OF[character] for character in token if character in _BYTE_OF)
        byte = _BYTE_TOKEN.fullmatch(token)
        if byte is not None:
            return bytes.fromhex(byte[1])
        return token.replace("\u2581", " ").encode()

    @cached_property
    def _byte_level(self) -> bool:
        return "ByteLevel" in repr(self.backend.decoder)


def byte_alphabet() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2, Radford et al. 2019).

    Printable Latin-1 stands for itself; the other bytes take the code points from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}


_BYTE_OF: Mapping[str, int] = {character: byte for byte, character in byte_alphabet().items()}
