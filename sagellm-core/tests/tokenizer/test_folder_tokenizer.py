"""Tokenizers out of Hugging Face folders: what ``tokenizer.json`` and the files beside it say, together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from tokenizers import AddedToken, Tokenizer as Backend, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sagellm_core.tokenizer import Tokenizer, load_tokenizer
from sagellm_core.tokenizer.tokenizer import byte_alphabet
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .texts import ANY_TEXT, TEXTS


@pytest.fixture(scope="session")
def saved(theirs: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model's tokenizer as the reference saves it."""
    folder = tmp_path_factory.mktemp("saved")
    theirs.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pair(saved: Path) -> tuple[Tokenizer, Any]:
    return load_tokenizer(saved), AutoTokenizer.from_pretrained(saved)


@pytest.mark.parametrize("text", TEXTS)
def test_a_saved_tokenizer_gives_the_ids_and_texts_of_the_reference(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = pair
    ids = ours.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@settings(deadline=None, max_examples=200)
@given(text=ANY_TEXT)
def test_any_text_gives_the_ids_of_the_reference(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = pair
    assert ours.encode(text) == theirs(text)["input_ids"]


def test_a_saved_template_renders_as_the_reference_renders_it(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    messages = [{"role": "user", "content": "hi"}]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert ours.chat.render(messages, special_tokens=ours.special_tokens) == expected
    assert ours.special_tokens == theirs.special_tokens_map


def tiny(folder: Path, config: dict[str, Any] | None = None, **files: str) -> Path:
    """A byte-level tokenizer that cuts and pads, as training leaves it, with ``<s>`` put before each text."""
    backend = Backend(models.BPE({character: byte for byte, character in byte_alphabet().items()}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>", normalized=False), AddedToken("</s>", normalized=False)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in files.items():
        path = folder / name.replace("__", ".").replace("SLASH", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def test_cutting_and_padding_left_from_training_are_off(tmp_path: Path) -> None:
    assert len(load_tokenizer(tiny(tmp_path)).encode("abcdefgh")) == 9


@pytest.mark.parametrize("flag", [True, False])
def test_what_is_put_around_a_text_is_for_the_tokenizer_alone_to_say(tmp_path: Path, flag: bool) -> None:
    folder = tiny(tmp_path, {"bos_token": "<s>", "add_bos_token": flag, "add_eos_token": flag})
    ids = load_tokenizer(folder).encode("a")
    assert ids == [256, 97]
    assert PreTrainedTokenizerFast.from_pretrained(folder)("a")["input_ids"][:2] == ids


def test_tokens_that_only_the_config_lists_are_added(tmp_path: Path) -> None:
    listed = {
        "256": {"content": "<s>", "special": True},
        "258": {"content": "<extra>", "special": False, "normalized": False},
        "259": {"content": "<hidden>", "special": True},
    }
    ours = load_tokenizer(tiny(tmp_path, {"added_tokens_decoder": listed}))
    assert ours.encode("<extra><hidden>", add_special_tokens=False) == [258, 259]
    assert ours.decode([258, 259]) == "<extra>"


def test_a_token_at_another_id_than_listed_is_named(tmp_path: Path) -> None:
    with pytest.raises(SageLLMError, match=r"token '<extra>' should be 300, but tokenizer.json makes it 258"):
        load_tokenizer(tiny(tmp_path, {"added_tokens_decoder": {"300": {"content": "<extra>"}}}))


def test_named_special_tokens_come_from_both_files_and_in_both_forms(tmp_path: Path) -> None:
    folder = tiny(
        tmp_path,
        {"eos_token": {"content": "</s>", "lstrip": False}},
        special_tokens_map__json='{"bos_token": "<s>", "eos_token": "<s>"}',
    )
    assert load_tokenizer(folder).special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def template(tokenizer: Tokenizer, **options: Any) -> str:
    return tokenizer.chat.render([{"role": "user", "content": "x"}], **options)


def test_a_template_is_found_wherever_it_may_be(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t{{ tools | length }}"}]
    assert template(load_tokenizer(tiny(tmp_path / "a", {"chat_template": "in config"}))) == "in config"
    several = load_tokenizer(tiny(tmp_path / "b", {"chat_template": named}))
    assert template(several) == "d"
    assert template(several, tools=[{}]) == "t1"
    own = tiny(
        tmp_path / "c",
        {"chat_template": "in config"},
        chat_template__jinja="in a file",
        additional_chat_templatesSLASHtool_use__jinja="tools {{ tools }}",
    )
    assert template(load_tokenizer(own)) == "in a file"
    assert template(load_tokenizer(own), tools=[{}]) == "tools [{}]"


def test_a_template_given_from_outside_wins(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "m", {"chat_template": "own"})
    (tmp_path / "given.jinja").write_text("from a file")
    assert template(load_tokenizer(folder, chat_template="{{ 'given' }}")) == "given"
    assert template(load_tokenizer(folder, chat_template=str(tmp_path / "given.jinja"))) == "from a file"
    with pytest.raises(SageLLMError, match=r"chat template 'missing.jinja' cannot be read"):
        load_tokenizer(folder, chat_template="missing.jinja")


def test_a_tokenizer_may_stand_alone(tmp_path: Path) -> None:
    folder = tiny(tmp_path)
    assert load_tokenizer(folder / "tokenizer.json").encode("a") == load_tokenizer(folder).encode("a")


@pytest.mark.parametrize(
    ("files", "said", "code"),
    [
        ({"tokenizer.model": "x"}, "has tokenizer.model but no tokenizer.json", ErrorCode.UNSUPPORTED),
        ({}, "has no tokenizer.json", ErrorCode.MODEL_NOT_FOUND),
        ({"tokenizer.json": "{}"}, "tokenizer.json: is not a tokenizer", ErrorCode.INVALID_REQUEST),
        ({"tokenizer.json": "\0"}, "tokenizer.json: is not a tokenizer", ErrorCode.INVALID_REQUEST),
    ],
)
def test_a_folder_without_a_usable_tokenizer_says_why(
    tmp_path: Path, files: dict[str, str], said: str, code: ErrorCode
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SageLLMError, match=said) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.code is code


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("[]", "holds a JSON list"),
        ("{", "is not JSON"),
        ('{"chat_template": 3}', "chat_template is a int"),
        ('{"chat_template": [3]}', "chat_template lists 3"),
        ('{"added_tokens_decoder": {"x": 1}}', "entry 'x' is 1"),
    ],
)
def test_a_config_that_is_not_sound_is_named(tmp_path: Path, config: str, said: str) -> None:
    folder = tiny(tmp_path, tokenizer_config__json=config)
    with pytest.raises(SageLLMError, match=f"tokenizer_config.json.*{said}") as caught:
        load_tokenizer(folder)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
