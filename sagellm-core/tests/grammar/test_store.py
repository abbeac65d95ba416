"""Grammars are compiled off the step loop, kept while they are used, and wait for nobody."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from core_harness import Harness, assert_all_free
from fake_executor import EOS, VOCAB, alone
from fake_model import write_tokenizer
from sagellm_core.core.sequence import Finish
from sagellm_core.grammar.base import GrammarError
from sagellm_core.grammar.guidance import GuidanceCompiler
from sagellm_core.grammar.store import GrammarStore
from sagellm_core.tokenizer import Tokenizer, load_tokenizer

WAIT_S = 30.0
ABC = '{"grammars": [{"lark_grammar": "start: /[abc]{3,4}/"}]}'


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("vocabulary")))


class _Grammar:
    def __init__(self, text: str) -> None:
        self.text = text

    def matcher(self) -> object:
        raise AssertionError("nothing runs")


class Slow:
    """Compiles when it is let."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.compiled: list[str] = []

    def compile(self, text: str) -> _Grammar:
        assert self.go.wait(WAIT_S)
        self.compiled.append(text)
        if text == "bad":
            raise GrammarError("it is bad")
        if text == "broken":
            raise ZeroDivisionError("one too many")
        return _Grammar(text)


def store_of(slow: Slow, kept: int = 2) -> GrammarStore:
    store = GrammarStore(VOCAB, (EOS,), lambda vocabulary, size, ends: slow, kept)  # type: ignore[arg-type, return-value]
    store.teach("{}")
    return store


def test_what_is_asked_for_at_once_is_compiled_once_and_used_ones_are_kept() -> None:
    slow = Slow()
    store = store_of(slow)
    twice = [store.compile("a"), store.compile("a")]
    slow.go.set()
    held = twice[0].result(WAIT_S)
    assert twice[1].result(WAIT_S) is held
    del twice
    for text in ("b", "c", "d"):
        store.compile(text).result(WAIT_S)
    assert store.compile("a").result(WAIT_S) is held is store.get("a")
    store.compile("b").result(WAIT_S)  # nobody held it, and it was the longest unused
    assert slow.compiled == ["a", "b", "c", "d", "b"]
    store.stop()


def test_a_bad_one_is_tried_again_for_whoever_asks_again() -> None:
    slow = Slow()
    slow.go.set()
    store = store_of(slow)
    for _ in range(2):
        with pytest.raises(GrammarError, match="it is bad"):
            store.compile("bad").result(WAIT_S)
    store.stop()


def _held(slow: Slow) -> tuple[Harness, threading.Event]:
    harness = Harness(grammars=store_of(slow))
    woken = threading.Event()
    harness.core.wake = woken.set
    return harness, woken


def test_others_run_while_a_grammar_is_compiled_and_a_bad_one_harms_none() -> None:
    slow = Slow()
    harness, woken = _held(slow)
    harness.add(0, [5, 6], grammar="bad", n=2)
    harness.add(1, [5, 6], 4)
    for _ in range(5):
        harness.step()
    assert harness.tokens[1, 0] == alone([5, 6], 4)
    assert harness.core.stats().waiting == 2
    harness.step()
    assert not harness.core.has_work  # blocked, not polling
    slow.go.set()
    assert woken.wait(WAIT_S)
    [first, second] = harness.settle()
    assert {first.ending.finish, second.ending.finish} == {Finish.REFUSED}
    assert first.ending.message == "it is bad"
    assert harness.core.in_flight == 0
    assert_all_free(harness.core)
    harness.core.stop()


def test_what_breaks_the_compiler_fails_that_request() -> None:
    slow = Slow()
    slow.go.set()
    harness, woken = _held(slow)
    harness.add(0, [5, 6], grammar="broken")
    assert woken.wait(WAIT_S)
    [output] = harness.settle()
    assert (output.ending.finish, output.ending.message) == (Finish.FAILED, "ZeroDivisionError: one too many")
    harness.core.stop()


def test_a_request_may_be_aborted_whole_or_in_part_while_its_grammar_is_compiled() -> None:
    slow = Slow()
    harness, woken = _held(slow)
    harness.add(0, [5, 6], grammar="a")
    harness.add(1, [5, 6], 3, n=2, grammar="a")
    harness.abort(0)
    harness.abort(1, 0)
    assert harness.core.stats().waiting == 1
    slow.go.set()
    assert woken.wait(WAIT_S)
    while harness.core.stats().waiting and harness.core.in_flight and (1, 1) not in harness.endings:
        harness.settle()
        harness.step()
    harness.run()
    assert {place: ending.finish for place, ending in harness.endings.items()} == {
        (0, 0): Finish.CANCELLED,
        (1, 0): Finish.CANCELLED,
        (1, 1): Finish.LENGTH,
    }
    assert_all_free(harness.core)
    harness.core.stop()


def test_a_matcher_says_what_may_come_takes_it_in_and_takes_it_back(tokenizer: Tokenizer) -> None:
    compiler = GuidanceCompiler(tokenizer, VOCAB, (EOS,))
    matcher = compiler.compile(ABC).matcher()
    words = np.zeros(-(-VOCAB // 32), dtype=np.int32)

    def allowed() -> set[str]:
        matcher.fill(words)
        bits = np.unpackbits(words.view(np.uint8), count=VOCAB, bitorder="little")
        return {tokenizer.decode([token], skip_special_tokens=False) for token in np.flatnonzero(bits).tolist()}

    abc = tokenizer.encode("abc", add_special_tokens=False)
    assert allowed() == {"a", "b", "c"}
    matcher.accept(abc)
    assert matcher.accepting
    assert not matcher.complete
    assert allowed() == {"a", "b", "c", "</s>"}
    matcher.accept(abc[:1])
    assert matcher.complete
    matcher.rollback(2)
    assert not matcher.accepting
    assert allowed() == {"a", "b", "c"}
    with pytest.raises(GrammarError):
        matcher.accept(tokenizer.encode("x", add_special_tokens=False))


def test_a_vocabulary_without_an_end_of_text_token_is_refused(tmp_path: Path) -> None:
    store = GrammarStore(VOCAB, ())
    store.teach((write_tokenizer(tmp_path) / "tokenizer.json").read_text())
    with pytest.raises(GrammarError, match="no token that ends a text"):
        store.compile(ABC).result(WAIT_S)
    store.stop()
