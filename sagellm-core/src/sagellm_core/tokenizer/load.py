"""Which way a model's tokenizer is read, and a chat template given in place of its own.

Knows nothing of what is in the files.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sagellm_core.loading.checkpoint import locate
from sagellm_core.loading.gguf import GGUFFile
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .chat import ChatTemplates
from .folder import tokenizer_from_folder
from .gguf import tokenizer_from_gguf
from .tokenizer import Tokenizer


def load_tokenizer(path: Path, *, chat_template: str | None = None, file: GGUFFile | None = None) -> Tokenizer:
    """The tokenizer of a local model, or of a local folder or file that has only a tokenizer.

    Args:
        path: As :func:`sagellm_core.loading.open_checkpoint` takes it; the ``tokenizer.json`` itself will do as well.
        chat_template: A template, or the path of one, in place of the checkpoint's own.
        file: The GGUF file at ``path``, where it is open already.

    Raises:
        SageLLMError: ``MODEL_NOT_FOUND``, ``INVALID_REQUEST`` or ``UNSUPPORTED``, naming the file and what is wrong.
    """
    if file is not None:
        tokenizer = tokenizer_from_gguf(file)
    elif (path / "tokenizer.json").is_file():
        tokenizer = tokenizer_from_folder(path)
    elif path.name == "tokenizer.json":
        tokenizer = tokenizer_from_folder(path.parent)
    else:
        kind, place = locate(path)
        folder = place if place.is_dir() else place.parent
        tokenizer = tokenizer_from_gguf(GGUFFile(place)) if kind == "gguf" else tokenizer_from_folder(folder)
    if chat_template is None:
        return tokenizer
    return dataclasses.replace(tokenizer, chat=ChatTemplates({"default": read_template(chat_template)}))


def read_template(given: str) -> str:
    """A template that is given as text, or as the path of a file.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` when it is a path of nothing that can be read.
    """
    if "{" in given or "\n" in given:
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"chat template {given!r} cannot be read: {error}", "chat_template"
        ) from error
