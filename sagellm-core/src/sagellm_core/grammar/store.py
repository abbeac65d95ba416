"""Compiled grammars by their text: compiled one after another in a thread, kept as long as they are used, and longer.

The vocabulary they are compiled for is learnt from whoever asks for the first. Knows nothing of requests.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from weakref import WeakValueDictionary

from sagellm_core.tokenizer import Tokenizer

from .base import Compiler, Grammar, GrammarError

KEPT = 128
"""Grammars that are kept though nobody uses them."""


def compiler_of(vocabulary: str, vocab_size: int, end_ids: tuple[int, ...]) -> Compiler:
    """A compiler for a vocabulary; imports what it needs, which takes time.

    Args:
        vocabulary: A ``tokenizer.json``.
        vocab_size: Rows of the model's embedding table.
        end_ids: Tokens that end a text.
    """
    from tokenizers import Tokenizer as Backend

    from .guidance import GuidanceCompiler

    return GuidanceCompiler(Tokenizer(Backend.from_str(vocabulary)), vocab_size, end_ids)


class GrammarStore:
    """Grammars of one model.

    Args:
        vocab_size: Rows of the model's embedding table.
        end_ids: Tokens that end a text.
        make: Makes the compiler, in the thread, when the first grammar is asked for.
        kept: How many unused ones are kept.
    """

    def __init__(
        self,
        vocab_size: int,
        end_ids: tuple[int, ...],
        make: Callable[[str, int, tuple[int, ...]], Compiler] = compiler_of,
        kept: int = KEPT,
    ) -> None:
        self.vocab_size = vocab_size
        self.end_ids = end_ids
        self._make = make
        self._kept = kept
        self._vocabulary: str | None = None
        self._compiler: Compiler | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._used: WeakValueDictionary[str, Grammar] = WeakValueDictionary()
        self._recent: OrderedDict[str, Grammar] = OrderedDict()
        self._compiling: dict[str, Future[Grammar]] = {}

    def teach(self, vocabulary: str) -> None:
        """Say how tokens are spelt, once, before any grammar is asked for.

        Args:
            vocabulary: The model's ``tokenizer.json``.
        """
        if self._vocabulary is None:
            self._vocabulary = vocabulary

    def compile(self, text: str) -> Future[Grammar]:
        """Have a grammar compiled, unless it is there; whoever holds its result keeps it.

        The future's error is a :class:`.base.GrammarError` where the text is at fault.
        """
        with self._lock:
            future = self._compiling.get(text)
            if future is not None:
                return future
            grammar = self._find(text)
            if grammar is not None:
                future = Future()
                future.set_result(grammar)
                return future
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="sagellm-grammars")
            future = self._compiling[text] = self._pool.submit(self._compile, text)
            return future

    def get(self, text: str) -> Grammar:
        """One that somebody holds."""
        with self._lock:
            grammar = self._find(text)
        assert grammar is not None, "nobody held the grammar"
        return grammar

    def stop(self) -> None:
        """Compile nothing more; waits for the one that is being compiled."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _find(self, text: str) -> Grammar | None:
        grammar = self._used.get(text)
        if grammar is not None:
            self._keep(text, grammar)
        return grammar

    def _keep(self, text: str, grammar: Grammar) -> None:
        self._recent[text] = grammar
        self._recent.move_to_end(text)
        while len(self._recent) > self._kept:
            self._recent.popitem(last=False)

    def _compile(self, text: str) -> Grammar:
        try:
            if self._compiler is None:
                assert self._vocabulary is not None, "nobody said how tokens are spelt"
                if not self.end_ids:
                    raise GrammarError("the model names no token that ends a text, so none could end")
                self._compiler = self._make(self._vocabulary, self.vocab_size, self.end_ids)
            grammar = self._compiler.compile(text)
            with self._lock:
                self._used[text] = grammar
                self._keep(text, grammar)
            return grammar
        finally:
            with self._lock:
                del self._compiling[text]
