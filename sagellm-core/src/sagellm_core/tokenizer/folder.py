"""A tokenizer read from a Hugging Face folder: ``tokenizer.json`` and the files that say how to use it.

What is put before and after a text is for ``tokenizer.json`` alone to say, as transformers 5 has it too.
Knows nothing of weights. The slow formats (``tokenizer.model``, ``vocab.json`` with ``merges.txt``) are refused by
name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sagellm_core.loading.errors import corrupt, not_a_checkpoint, unsupported
from sagellm_core.loading.fields import Fields, read_object

from .chat import ChatTemplates, is_template_name
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SLOW = ("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "tokenizer.tiktoken", "tekken.json")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def tokenizer_from_folder(folder: Path) -> Tokenizer:
    """Read the tokenizer of a model's folder.

    Raises:
        SageLLMError: ``MODEL_NOT_FOUND`` when there is none; ``UNSUPPORTED`` when there is only one in a format that is
            not read; ``INVALID_REQUEST`` when it is not sound.
    """
    backend = _read_backend(folder)
    config = _optional(folder / "tokenizer_config.json")
    _add_tokens(backend, config)
    named = _named_tokens(config, _optional(folder / "special_tokens_map.json"))
    backend.add_special_tokens([token for token in named.values() if backend.token_to_id(token) is not None])
    side: Literal["left", "right"] = "left" if config.text("truncation_side", "right") == "left" else "right"
    return Tokenizer(backend, named, _templates(folder, config), side)


def _read_backend(folder: Path) -> Backend:
    from tokenizers import Tokenizer as Backend

    path = folder / "tokenizer.json"
    if not path.is_file():
        slow = [name for name in _SLOW if (folder / name).is_file()]
        if slow:
            raise unsupported(
                folder, f"has {', '.join(slow)} but no tokenizer.json; save the tokenizer with transformers to get one"
            )
        raise not_a_checkpoint(folder, "has no tokenizer.json")
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:
        raise corrupt(path, f"is not a tokenizer: {error}") from error
    # What a training script left behind would cut long prompts silently.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _optional(path: Path) -> Fields:
    return Fields(path, read_object(path) if path.is_file() else {})


def _add_tokens(backend: Backend, config: Fields) -> None:
    """Add what ``tokenizer_config.json`` lists beyond ``tokenizer.json``, in order of id."""
    from tokenizers import AddedToken

    listed = config.table("added_tokens_decoder")
    if listed is None:
        return
    known = backend.get_added_tokens_decoder()
    missing: list[tuple[int, AddedToken]] = []
    for key, entry in listed.values.items():
        if not key.isdecimal() or not isinstance(entry, Mapping) or not isinstance(entry.get("content"), str):
            raise corrupt(listed.source, f"entry {key!r} is {entry!r}; an id with a token's content was expected")
        if int(key) not in known:
            flags = {flag: bool(entry[flag]) for flag in _FLAGS if flag in entry}
            missing.append((int(key), AddedToken(entry["content"], **flags)))
    for index, token in sorted(missing, key=lambda item: item[0]):
        backend.add_special_tokens([token]) if token.special else backend.add_tokens([token])
        found = backend.token_to_id(token.content)
        if found != index:
            raise corrupt(
                listed.source, f"token {token.content!r} should be {index}, but tokenizer.json makes it {found}"
            )


def _named_tokens(config: Fields, special_map: Fields) -> dict[str, str]:
    named: dict[str, str] = {}
    for source in (special_map, config):
        for name in _NAMED:
            value = source.values.get(name)
            content = value.get("content") if isinstance(value, Mapping) else value
            if isinstance(content, str):
                named[name] = content
    return named


def _templates(folder: Path, config: Fields) -> ChatTemplates:
    sources: dict[str, str] = {}
    stated: Any = config.values.get("chat_template")
    if isinstance(stated, str):
        sources["default"] = stated
    elif isinstance(stated, list):
        for entry in stated:
            if not isinstance(entry, Mapping) or not isinstance(entry.get("template"), str):
                raise corrupt(config.source, f"chat_template lists {entry!r}; a name and a template were expected")
            if is_template_name(entry.get("name")):
                sources[entry["name"]] = entry["template"]
    elif stated is not None:
        raise corrupt(config.source, f"chat_template is a {type(stated).__name__}; a string or a list was expected")
    # Files of their own are the newer form, and win.
    for path in (*sorted((folder / "additional_chat_templates").glob("*.jinja")), folder / "chat_template.jinja"):
        if path.is_file():
            sources["default" if path.name == "chat_template.jinja" else path.stem] = _read_text(path)
    return ChatTemplates(sources)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise corrupt(path, f"cannot be read: {error}") from error
