"""Grammars by ``llguidance``: an Earley parser over lexemes whose regular expressions are followed by derivatives.

A step's mask takes some microseconds, whatever the grammar: it is a walk of the vocabulary's trie in which large parts,
prepared once for the vocabulary, are taken or left whole. Source: the ``llguidance`` project of Microsoft.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from sagellm_core.tokenizer import Tokenizer

from .base import GrammarError

_MAX_LEXER_STATES = 50_000
"""One takes a kilobyte or two; a grammar is kept for later requests, and so are its states."""

_DEAD_ENDS = ("NoExtension", "NoExtensionBias")


class _Vocabulary:
    """A tokenizer in the form that the library asks for."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Sequence[int]) -> None:
        self.eos_token_id = end_ids[0]
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        self.special_token_ids = sorted({*tokenizer.special_ids, *end_ids})
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


class GuidanceCompiler:
    """Compiles for one vocabulary; implements :class:`.base.Compiler`.

    Making one takes some tenths of a second: the trie is built.

    Args:
        tokenizer: The model's.
        vocab_size: Rows of the model's embedding table.
        end_ids: Tokens that end a text, at least one.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Sequence[int]) -> None:
        self._words = -(-vocab_size // 32)
        self._limits = LLParserLimits(verbose_errors=False, max_lexer_states=_MAX_LEXER_STATES)
        vocabulary = _Vocabulary(tokenizer, vocab_size, end_ids)
        # The library asks for its own base class, and reads no more than these attributes.
        self._tokenizer = LLTokenizer(vocabulary, eos_token=list(end_ids))  # type: ignore[arg-type]

    def compile(self, text: str) -> GuidanceGrammar:
        """Compile, and compute the first step's mask, which prepares what later ones share."""
        grammar = GuidanceGrammar(LLMatcher(self._tokenizer, text, log_level=0, limits=self._limits))
        matcher = grammar.matcher()
        matcher.fill(np.zeros(self._words, dtype=np.int32))
        return grammar


class GuidanceGrammar:
    """One grammar, at its beginning.

    Args:
        prototype: Has taken in nothing, and never will.
    """

    def __init__(self, prototype: LLMatcher) -> None:
        self._prototype = prototype
        _check(prototype)

    def matcher(self) -> GuidanceMatcher:
        """A copy; what any of them prepares, all share."""
        return GuidanceMatcher(self._prototype.deep_copy())


class GuidanceMatcher:
    """One sequence's way through a grammar.

    Args:
        matcher: Its own.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped() and self._matcher.is_accepting()

    @property
    def accepting(self) -> bool:
        """Whether it may end here."""
        return self._matcher.is_accepting()

    def fill(self, words: NDArray[np.int32]) -> None:
        """Write the mask into ``words``, which are contiguous."""
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if self._matcher.is_stopped() and not self._matcher.is_accepting():
            _check(self._matcher)

    def accept(self, token_ids: list[int]) -> None:
        """Follow the grammar by these tokens."""
        if not self._matcher.consume_tokens(token_ids):
            _check(self._matcher)

    def rollback(self, count: int) -> None:
        """Go back by as many tokens."""
        if not self._matcher.rollback(count):
            _check(self._matcher)


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        reason = matcher.get_error().replace("<non-verbose/>", "").strip()
        raise GrammarError("no text follows it: there is none that it could end in" if reason in _DEAD_ENDS else reason)
