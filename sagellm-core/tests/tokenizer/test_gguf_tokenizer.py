"""Tokenizers out of GGUF files: the same ids and texts as the tokenizer the model was trained with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer as Backend, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from loading.files import LLAMA, gguf, llama_tensors
from sagellm_core.loading.gguf import GGUFFile
from sagellm_core.tokenizer import Tokenizer, load_tokenizer
from sagellm_core.tokenizer.pretokenizers import CUTS
from sagellm_core.tokenizer.tokenizer import byte_alphabet
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .texts import ANY_TEXT, TEXTS

SPACE_BEFORE_NUMBER = re.compile(r"\s[^\W_a-zA-Z]|\s[½²³Ⅷ]")
# Bytes that SmolLM2's vocabulary has no token for: text with them cannot be spelled.
UNKNOWN_BYTES = frozenset(b"\xc0\xc1\xf1\xf2\x04\x06\x13\x14\x16\x1d" + bytes(range(0xF5, 0x100)))
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello there"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Two  spaces?\n"}],
    [
        {"role": "user", "content": "日本語 ok"},
        {"role": "assistant", "content": "はい 👍"},
        {"role": "user", "content": "<|im_end|> in my text"},
    ],
]


@pytest.fixture(scope="session")
def ours(smollm2: Path) -> Tokenizer:
    return load_tokenizer(smollm2)


@pytest.fixture(scope="session")
def published(theirs: PreTrainedTokenizerBase) -> Backend:
    """As SmolLM2's own tokenizer.json cuts: each digit alone. The reference reader leaves that out of a GGUF."""
    made = Backend.from_str(theirs.backend_tokenizer.to_str())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return made


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_texts_equal_the_reference_reader(ours: Tokenizer, theirs: PreTrainedTokenizerBase, text: str) -> None:
    ids = ours.encode(text)
    if not SPACE_BEFORE_NUMBER.search(text):
        assert ids == theirs(text)["input_ids"]
    assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, skip_special_tokens=False)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@settings(deadline=None, max_examples=300)
@given(text=ANY_TEXT)
def test_ids_of_any_text_equal_the_published_tokenizer(ours: Tokenizer, published: Backend, text: str) -> None:
    ids = ours.encode(text)
    assert ids == published.encode(text).ids
    if not UNKNOWN_BYTES.intersection(text.encode()):
        assert ours.decode(ids, skip_special_tokens=False) == text


@settings(deadline=None)
@given(text=ANY_TEXT.filter(lambda text: not UNKNOWN_BYTES.intersection(text.encode())))
def test_bytes_of_tokens_join_up_to_the_text(ours: Tokenizer, text: str) -> None:
    assert b"".join(map(ours.token_bytes, ours.encode(text))) == text.encode()


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("open_turn", [True, False])
def test_conversations_render_as_the_reference_renders_them(
    ours: Tokenizer, theirs: PreTrainedTokenizerBase, messages: list[dict[str, Any]], open_turn: bool
) -> None:
    text = ours.chat.render(messages, add_generation_prompt=open_turn, special_tokens=ours.special_tokens)
    assert text == theirs.apply_chat_template(messages, add_generation_prompt=open_turn, tokenize=False)
    expected = theirs.apply_chat_template(messages, add_generation_prompt=open_turn, return_dict=True)["input_ids"]
    assert ours.encode(text, add_special_tokens=False) == expected


def test_special_tokens_are_known_by_name_and_left_out_of_text(ours: Tokenizer) -> None:
    assert ours.special_tokens["eos_token"] == "<|im_end|>"
    assert ours.bos_id == 1
    assert {0, 1, 2} <= ours.special_ids
    assert ours.vocab_size == 49152
    assert ours.token_bytes(2) == b"<|im_end|>"
    assert ours.token_bytes(10**6) == b""


def test_the_byte_alphabet_is_the_librarys() -> None:
    assert sorted(byte_alphabet().values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(byte_alphabet()) == 256


@pytest.mark.parametrize("name", sorted(CUTS))
def test_every_named_pre_tokenizer_keeps_all_of_the_text(name: str) -> None:
    from sagellm_core.tokenizer.pretokenizers import pre_tokenizer

    of_character = {character: byte for byte, character in byte_alphabet().items()}
    cutter = pre_tokenizer(CUTS[name])
    for text in TEXTS:
        pieces = "".join(piece for piece, _ in cutter.pre_tokenize_str(text))
        assert bytes(of_character[character] for character in pieces) == text.encode()


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("smollm", "ab  12", ["ab", "  ", "1", "2"]),
        ("gpt-2", "ab  12", ["ab", " ", " 12"]),
        ("llama-bpe", "12345 ab!\n", ["123", "45", " ab", "!\n"]),
        ("qwen2", "12 Ab's", ["1", "2", " Ab", "'s"]),
        ("tekken", "HelloWorld 12", ["Hello", "World", " ", "1", "2"]),
        ("gpt-4o", "HelloWorld's 1234", ["Hello", "World's", " ", "123", "4"]),
        ("default", "a+12345", ["a", "+", "123", "45"]),
    ],
)
def test_named_pre_tokenizers_cut_where_their_models_do(name: str, text: str, pieces: list[str]) -> None:
    from sagellm_core.tokenizer.pretokenizers import pre_tokenizer

    cut = [piece for piece, _ in pre_tokenizer(CUTS[name]).pre_tokenize_str(text)]
    assert [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece in cut] == pieces


def made(tmp_path: Path, **tokenizer: Any) -> Tokenizer:
    values = {f"tokenizer.ggml.{key}": value for key, value in tokenizer.items() if value is not None}
    path = tmp_path / "t.gguf"
    path.write_bytes(gguf({**LLAMA, **values, "tokenizer.chat_template": "{{ messages }}"}, llama_tensors()))
    return load_tokenizer(path)


WORDS = ["▁he", "▁hello", "llo", "lo", "ll", "he", "▁w", "or", "ld", "orld", "▁world", "▁▁", "▁"]
LETTERS = [*"helowrd", "é", "日"]
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS, *LETTERS]
SCORES = [0.0] * 259 + [-float(rank) for rank in range(len(WORDS) + len(LETTERS))]
TYPES = [2, 3, 3, *[6] * 256, *[1] * (len(WORDS) + len(LETTERS))]
SPM: dict[str, Any] = {
    "model": "llama",
    "tokens": PIECES,
    "scores": SCORES,
    "token_type": TYPES,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
}


@pytest.mark.parametrize(
    "text", ["hello world", "hello  world", "held", "日本 é", "x\ny", "hello</s>", "", "hello world hello world"]
)
def test_a_sentencepiece_vocabulary_gives_the_ids_of_the_reference_reader(tmp_path: Path, text: str) -> None:
    ours = made(tmp_path, **SPM)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="t.gguf")
    assert ours.encode(text) == theirs(text)["input_ids"]
    assert ours.decode(ours.encode(text)) == text.replace("</s>", "")


def test_a_sentencepiece_vocabulary_writes_bytes_it_has_no_piece_for(tmp_path: Path) -> None:
    ours = made(tmp_path, **SPM)
    ids = ours.encode("本", add_special_tokens=False)
    assert [PIECES[index] for index in ids] == ["▁", "<0xE6>", "<0x9C>", "<0xAC>"]
    assert b"".join(map(ours.token_bytes, ids)) == " 本".encode()


def test_a_beginning_of_text_token_is_added_once(tmp_path: Path) -> None:
    ours = made(tmp_path, **SPM)
    assert ours.encode("hello")[0] == 1
    assert ours.encode("<s>hello").count(1) == 1
    assert 1 not in ours.encode("hello", add_special_tokens=False)
    assert 1 not in made(tmp_path, **SPM, add_bos_token=False).encode("hello")
    assert made(tmp_path, **SPM, add_eos_token=True).encode("hello")[-1] == 2


BPE: dict[str, Any] = {
    "model": "gpt2",
    "pre": "gpt-2",
    "tokens": [*byte_alphabet().values(), "he", "ll", "hell", "<|end|>", "<think>"],
    "merges": ["h e", "l l", "he ll"],
    "token_type": [*[1] * 259, 3, 4],
    "eos_token_id": 259,
}


def test_user_defined_tokens_are_whole_but_stay_in_the_text(tmp_path: Path) -> None:
    ours = made(tmp_path, **BPE)
    ids = ours.encode("hell<think>o<|end|>")
    assert ids[0] == 258
    assert (ids[1], ids[-1]) == (260, 259)
    assert ours.decode(ids) == "hell<think>o"


@pytest.mark.parametrize(
    ("change", "said", "code"),
    [
        ({"model": "t5"}, "tokenizer 't5' is not offered in GGUF; known are gpt2, llama", ErrorCode.UNSUPPORTED),
        ({"pre": "nova"}, "pre-tokenizer 'nova' is not offered; known are default", ErrorCode.UNSUPPORTED),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing", ErrorCode.INVALID_REQUEST),
        ({"merges": None}, "tokenizer.ggml.merges is missing", ErrorCode.INVALID_REQUEST),
        ({"merges": ["h zz"]}, "vocabulary and merges do not fit together", ErrorCode.INVALID_REQUEST),
        ({"tokens": ["a", "a"], "eos_token_id": 0}, "token 'a' is in the vocabulary twice", ErrorCode.INVALID_REQUEST),
        ({"eos_token_id": 999}, "eos_token_id is 999, beyond the 261 tokens", ErrorCode.INVALID_REQUEST),
        ({"token_type": [1, 2]}, "token_type has 2 entries for 261 tokens", ErrorCode.INVALID_REQUEST),
        ({"model": "llama", "scores": [0.0]}, "has 1 scores for 261 tokens", ErrorCode.INVALID_REQUEST),
    ],
)
def test_what_does_not_fit_together_is_named(
    tmp_path: Path, change: dict[str, Any], said: str, code: ErrorCode
) -> None:
    with pytest.raises(SageLLMError, match=said) as caught:
        made(tmp_path, **{**BPE, **change})
    assert caught.value.code is code
    assert "t.gguf" in caught.value.message


def test_a_file_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    path = tmp_path / "t.gguf"
    path.write_bytes(gguf(LLAMA, llama_tensors()))
    with pytest.raises(SageLLMError, match="model is missing"):
        load_tokenizer(path, file=GGUFFile(path))
