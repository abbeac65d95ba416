"""Streaming detokenisation: pieces join up to the whole text, and no piece is half a character."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer as Backend, decoders, models, normalizers

from sagellm_core.front.detokenizer import PRIMING, Detokenizer
from sagellm_core.tokenizer import Tokenizer, load_tokenizer

SPACE = "\u2581"


@pytest.fixture(scope="session")
def tokenizer(smollm2: Path) -> Tokenizer:
    return load_tokenizer(smollm2)


@pytest.fixture(scope="session")
def sentencepiece() -> Tokenizer:
    """Words with their space before them, and bytes for everything else."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, f"{SPACE}the", f"{SPACE}cat", "s", "sat"]
    backend = Backend(
        models.BPE({piece: n for n, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(backend)


def stream(tokenizer: Tokenizer, ids: list[int], *, skip: bool = True, prompt: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip, prompt=prompt or [])
    return [*(detokenizer.push([token_id]) for token_id in ids), detokenizer.flush()]


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(max_codepoint=0x2FFFF, exclude_categories=["Cs", "Cc"]), max_size=40))
def test_pieces_of_any_text_join_up_to_it_and_none_is_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    pieces = stream(tokenizer, tokenizer.encode(text), skip=False)
    assert "".join(pieces) == text
    assert pieces[-1] == ("" if not text.endswith("\ufffd") else pieces[-1])
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(deadline=None, max_examples=300)
@given(ids=st.lists(st.integers(0, 49_151) | st.integers(17, 300), max_size=40), skip=st.booleans())
def test_pieces_of_any_ids_join_up_to_their_text(tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    assert "".join(stream(tokenizer, ids, skip=skip)) == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(deadline=None)
@given(ids=st.lists(st.integers(17, 300), max_size=30), cuts=st.lists(st.integers(1, 5), max_size=30))
def test_ids_may_come_several_at_a_time(tokenizer: Tokenizer, ids: list[int], cuts: list[int]) -> None:
    detokenizer = Detokenizer(tokenizer)
    text, left = "", list(ids)
    for size in cuts:
        text += detokenizer.push(left[:size])
        del left[:size]
    text += detokenizer.push(left) + detokenizer.flush()
    assert text == "".join(stream(tokenizer, ids))


def test_a_character_comes_with_its_last_byte(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("😀")
    assert len(ids) > 1
    assert stream(tokenizer, ids) == [""] * (len(ids) - 1) + ["😀", ""]


def test_a_character_that_is_never_finished_shows_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ok 😀")[:-1]
    pieces = stream(tokenizer, ids)
    assert pieces[-1].endswith("\ufffd")
    assert "".join(pieces) == tokenizer.decode(ids)


def test_special_tokens_show_only_when_asked_for(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|im_end|>b")
    assert "".join(stream(tokenizer, ids)) == "ab"
    assert "".join(stream(tokenizer, ids, skip=False)) == "a<|im_end|>b"


def test_endless_bytes_that_are_no_text_are_not_hoarded(tokenizer: Tokenizer) -> None:
    lone = tokenizer.encode("😀")[-1]
    detokenizer = Detokenizer(tokenizer)
    shown = "".join(detokenizer.push([lone]) for _ in range(1000))
    assert set(shown) == {"\ufffd"}
    assert len(shown) > 900


def test_the_space_before_the_first_word_is_kept_after_a_prompt(sentencepiece: Tokenizer) -> None:
    the, cat, plural = (sentencepiece.backend.token_to_id(piece) for piece in (f"{SPACE}the", f"{SPACE}cat", "s"))
    assert "".join(stream(sentencepiece, [cat, plural], prompt=[the])) == " cats"
    assert "".join(stream(sentencepiece, [plural, cat], prompt=[the])) == "s cat"
    assert "".join(stream(sentencepiece, [the, cat])) == "the cat"


@settings(deadline=None, max_examples=200)
@given(ids=st.lists(st.integers(1, 261), max_size=30), prompt=st.lists(st.integers(257, 261), min_size=1, max_size=9))
def test_byte_pieces_join_up_to_what_the_whole_reads_as(
    sentencepiece: Tokenizer, ids: list[int], prompt: list[int]
) -> None:
    whole = sentencepiece.decode([*prompt[-PRIMING:], *ids])
    before = sentencepiece.decode(prompt[-PRIMING:])
    text = "".join(stream(sentencepiece, ids, prompt=prompt))
    if "\ufffd" not in whole and whole.startswith(before):
        assert text == whole[len(before) :]


def test_a_prompt_that_ends_within_a_character_is_finished_by_the_output(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("😀!")
    assert "".join(stream(tokenizer, ids[1:], prompt=ids[:1])) == "😀!"


def test_special_tokens_that_are_part_of_a_form_are_shown_and_no_others(tokenizer: Tokenizer) -> None:
    mark, end = (tokenizer.backend.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>"))
    assert mark is not None
    assert end is not None
    ids = [end, mark, *tokenizer.encode(" é 𝄞", add_special_tokens=False), mark, end, mark]
    detokenizer = Detokenizer(tokenizer, shown=frozenset({mark}), prompt=[end, mark])
    pieces = [detokenizer.push([token_id]) for token_id in ids]
    assert "".join(pieces) + detokenizer.flush() == "<|im_start|> é 𝄞<|im_start|><|im_start|>"
    assert (pieces[0], pieces[1], pieces[-2]) == ("", "<|im_start|>", "")
    everything = Detokenizer(tokenizer, skip_special_tokens=False, shown=frozenset({mark}))
    assert everything.push(ids) == tokenizer.decode(ids, skip_special_tokens=False)
