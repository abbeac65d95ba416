"""What is asked of a grammar: which tokens may come next, and what has come.

Knows no particular library.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the front reads this module, and holds no arrays
    import numpy as np
    from numpy.typing import NDArray


class GrammarError(ValueError):
    """A grammar that cannot be followed, and why, in words for who wrote it."""


class Matcher(Protocol):
    """How far one sequence has followed its grammar."""

    @property
    def complete(self) -> bool:
        """What has come is all that the grammar asks for, and nothing may follow."""
        ...

    @property
    def accepting(self) -> bool:
        """What has come is all that the grammar asks for; more may follow."""
        ...

    def fill(self, words: NDArray[np.int32]) -> None:
        """Write which tokens may come next; those that end a text are among them where :attr:`accepting`.

        Args:
            words: ``[ceil(V / 32)]``, contiguous: bit ``t % 32`` of word ``t // 32`` stands for token ``t``.

        Raises:
            GrammarError: It has become too large to be followed.
        """
        ...

    def accept(self, token_ids: list[int]) -> None:
        """Take in what has come.

        Raises:
            GrammarError: It does not follow the grammar.
        """
        ...

    def rollback(self, count: int) -> None:
        """Take back the last ``count`` tokens: drafts that were rejected."""
        ...


class Grammar(Protocol):
    """A grammar that was compiled for one vocabulary."""

    def matcher(self) -> Matcher:
        """A new one, at the beginning."""
        ...


class Compiler(Protocol):
    """Makes grammars for one vocabulary."""

    def compile(self, text: str) -> Grammar:
        """Compile a grammar, and prepare its first step.

        Raises:
            GrammarError: It is none, or nothing can follow it.
        """
        ...


class Grammars(Protocol):
    """Grammars of one model, by their text.

    Attributes:
        vocab_size: Token ids are below this.
        end_ids: Tokens that end a text.
    """

    vocab_size: int
    end_ids: tuple[int, ...]

    def teach(self, vocabulary: str) -> None:
        """Say how tokens are spelt, before the first is asked for: a ``tokenizer.json``."""
        ...

    def compile(self, text: str) -> Future[Grammar]:
        """Have one compiled, off the caller's thread. Whoever holds it keeps it."""
        ...

    def get(self, text: str) -> Grammar:
        """One that was compiled, and that somebody holds."""
        ...

    def stop(self) -> None:
        """Compile nothing more."""
        ...
