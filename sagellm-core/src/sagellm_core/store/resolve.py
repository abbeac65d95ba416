"""From what a user types to a path: local first and without a look at the network, then the catalogue, then the hub.

Knows nothing of what is in the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sagellm_protocol.errors import ErrorCode, SageLLMError

from .catalogue import CATALOGUE, CatalogueModel
from .hub import endpoint, unreachable
from .pull import pull, unknown_model
from .sources import Report

_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[\w./-]+\.gguf))?", re.ASCII)
_WANTED = ["*.json", "*.safetensors", "*.jinja"]
_UNWANTED = ["original/*", "onnx/*", "openvino/*", "consolidated*.safetensors"]
"""Second copies of the weights that some repositories carry."""


def resolve(
    model: str,
    *,
    revision: str | None = None,
    progress: Report | None = None,
    home: Path | None = None,
    catalogue: Mapping[str, CatalogueModel] = CATALOGUE,
) -> Path:
    """The local file or folder of a model, fetched if need be.

    Args:
        model: A path; or a catalogue name; or a hub name, ``org/name`` or ``org/name/file.gguf``.
        revision: Of a hub name: branch, tag or commit.
        progress: As :func:`pull` has it.
        home: As :func:`pull` has it.
        catalogue: As :func:`pull` has it.

    Raises:
        SageLLMError: ``MODEL_NOT_FOUND`` when it is none of these, or not to be had; the message lists the catalogue.
            As :func:`pull` for a catalogue name.
    """
    if not model.strip():
        raise SageLLMError(ErrorCode.INVALID_REQUEST, "no model is named", "model")
    path = Path(model).expanduser()
    if _exists(path):
        _refuse_revision(revision, model, "a local path")
        return path.absolute()
    if model.lower() in catalogue:
        _refuse_revision(revision, model, "pinned to one revision by the catalogue")
        return pull(model, progress=progress, home=home, catalogue=catalogue).path
    if model.startswith((".", "/", "~")) or "\\" in model:
        raise SageLLMError(ErrorCode.MODEL_NOT_FOUND, f"there is no file or folder {model!r}", "model")
    name = _HUB_NAME.fullmatch(model)
    if name is None:
        raise _refusal(model, catalogue)
    return _from_hub(model, name["repo"], name["file"], revision, catalogue)


def _refusal(model: str, catalogue: Mapping[str, CatalogueModel], why: str = "") -> SageLLMError:
    return unknown_model(
        model, catalogue, why, "; a path of a file or folder, or a hub name (org/name), will do as well"
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long a name, or a NUL in it
        return False


def _refuse_revision(revision: str | None, model: str, what: str) -> None:
    if revision is not None:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"revision {revision!r} is given, but {model!r} is {what}", "revision"
        )


def _from_hub(
    model: str, repo: str, file: str | None, revision: str | None, catalogue: Mapping[str, CatalogueModel]
) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise SageLLMError(
            ErrorCode.NOT_INSTALLED,
            f"{model!r} looks like a hub name, and fetching those needs huggingface_hub; pip install huggingface_hub",
            "model",
        ) from error
    here = _fetch(huggingface_hub, repo, file, revision, local=True)
    if here is not None:
        return here
    reason = unreachable(f"{endpoint()}/api/models/{repo}", any_answer=True)
    if reason is not None:
        raise _refusal(model, catalogue, f": no such path, and not to be had from the hub ({reason})")
    try:
        there = _fetch(huggingface_hub, repo, file, revision, local=False)
    except (OSError, ValueError) as error:
        # The hub's own errors derive from these, and say what is wrong (gated, no such revision, ...).
        raise _refusal(model, catalogue, f": the hub refuses it ({_first_line(error)})") from error
    if there is None:
        raise _refusal(
            model, catalogue, f": the repository has no whole set of safetensors; of GGUF, name one: {repo}/FILE.gguf"
        )
    return there


def _fetch(hub: Any, repo: str, file: str | None, revision: str | None, *, local: bool) -> Path | None:
    """One file or a whole folder, from the hub's cache alone or by download; ``None`` if it is not all there."""
    try:
        if file is not None:
            return Path(hub.hf_hub_download(repo, file, revision=revision, local_files_only=local))
        folder = hub.snapshot_download(
            repo, revision=revision, local_files_only=local, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
        )
    except hub.errors.LocalEntryNotFoundError:
        if local:
            return None
        raise
    return Path(folder) if _complete(Path(folder)) else None


def _complete(folder: Path) -> bool:
    # A download that was cut short leaves a snapshot with some of its files.
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    try:
        shards = json.loads(index.read_bytes())["weight_map"].values()
    except FileNotFoundError:
        return any(folder.glob("*.safetensors"))
    except (ValueError, KeyError, AttributeError):
        return False
    return all((folder / shard).is_file() for shard in set(shards))


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
