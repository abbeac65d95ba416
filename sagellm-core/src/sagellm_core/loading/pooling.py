"""How a checkpoint's hidden states become one vector: what sentence-transformers writes beside a model.

Knows nothing of tensors, nor of which models can be run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Literal, cast

from sagellm_protocol.errors import ErrorCode, SageLLMError

from .config import ModelConfig
from .errors import corrupt, unsupported
from .fields import Fields, read_json, read_object

PoolingKind = Literal["mean", "cls", "last"]
POOLINGS: Mapping[str, str] = {
    "mean": "the mean over all tokens",
    "cls": "the first token",
    "last": "the last token",
}
_MODULES = "modules.json"
_PROMPTS = "config_sentence_transformers.json"
_SIZES = "sentence_bert_config.json"
_ONE_FLAG_EACH = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_BY_NAME = {"mean": "mean", "cls": "cls", "lasttoken": "last", "last": "last"}
_QUERY, _DOCUMENT = ("query",), ("document", "passage", "corpus")
"""Names that checkpoints give to the prompts of a search's two sides."""


@dataclass(frozen=True)
class PoolingConfig:
    """How a model's hidden states become one vector, and what texts it wants.

    Attributes:
        kind: Which hidden states count.
        max_length: Tokens of an input that the model was trained at, where that is less than it has positions for.
        prompts: What is put before texts, by name.
        default_prompt: The name of the one that is put before any text.
    """

    kind: PoolingKind
    max_length: int | None = None
    prompts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    default_prompt: str | None = None

    @property
    def plain(self) -> str:
        """What is put before a text that is neither side of a search."""
        return "" if self.default_prompt is None else self.prompts[self.default_prompt]

    @property
    def query(self) -> str:
        """What is put before a query."""
        return self._first(_QUERY)

    @property
    def document(self) -> str:
        """What is put before a document that may answer one."""
        return self._first(_DOCUMENT)

    def _first(self, names: tuple[str, ...]) -> str:
        return next((self.prompts[name] for name in names if name in self.prompts), self.plain)


@dataclass(frozen=True)
class Pooling:
    """A model's configuration as it is loaded for what it is for, and how it pools.

    Attributes:
        config: The model's numbers.
        pooling: How hidden states become a vector; ``None`` for a model that only generates.
    """

    config: ModelConfig
    pooling: PoolingConfig | None


def read_pooling(path: Path) -> PoolingConfig | None:
    """The pooling that stands beside a model; ``None`` where the folder says nothing of any.

    Args:
        path: A model's folder, or a file of weights.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for a file that is not sound; ``UNSUPPORTED`` for a step or a way of pooling
            that is not offered, by name.
    """
    folder = path if path.is_dir() else path.parent
    if path.suffix == ".gguf" or not (folder / _MODULES).is_file():
        return None
    kind = None
    for module, place in _modules(folder / _MODULES):
        if module == "Pooling":
            kind = _kind(folder / place / "config.json")
        elif module not in ("Transformer", "Normalize"):
            raise unsupported(
                folder / _MODULES, f"module {module!r} is not offered; known are Transformer, Pooling, Normalize"
            )
    if kind is None:
        return None
    sizes, prompts = _optional(folder / _SIZES), _optional(folder / _PROMPTS)
    known = _prompts(prompts)
    default = prompts.text("default_prompt_name", None)
    if default is not None and default not in known:
        raise corrupt(prompts.source, f"default_prompt_name is {default!r}; prompts are {', '.join(known) or 'none'}")
    return PoolingConfig(kind, sizes.integer("max_seq_length", None), known, default)


def chosen_pooling(found: PoolingConfig | None, asked: str | None) -> PoolingConfig | None:
    """The pooling of a model, given what its operator asks for by name in place of its own.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for an unknown name, listing those there are.
    """
    if asked is None:
        return found
    if asked not in POOLINGS:
        known = ", ".join(f"{name} ({what})" for name, what in POOLINGS.items())
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"pooling is {asked!r}; it must be one of {known}", "options.pooling"
        )
    kind = cast(PoolingKind, asked)
    if found is None:
        return PoolingConfig(kind)
    return PoolingConfig(kind, found.max_length, found.prompts, found.default_prompt)


def settle_pooling(config: ModelConfig, found: PoolingConfig | None, asked: str | None) -> Pooling:
    """What a model is for, and how it pools.

    Args:
        config: The model's numbers.
        found: What stands beside it.
        asked: What its operator asks for by name, in place of that.

    Raises:
        SageLLMError: As :func:`chosen_pooling`; ``UNSUPPORTED`` for a way that is not the model's.
    """
    pooling = chosen_pooling(found, asked)
    if config.encoder is None:
        if pooling is not None and pooling.kind == "cls":
            raise SageLLMError(
                ErrorCode.UNSUPPORTED,
                "pooling 'cls' takes the first token, which a decoder reads before all others; use last or mean",
                "options.pooling",
            )
        # A checkpoint that says how it pools was trained for its vectors, whatever it was trained from.
        return Pooling(_headless(config) if found is not None else config, pooling)
    if config.encoder.scores:
        if asked not in (None, "cls"):
            raise SageLLMError(
                ErrorCode.UNSUPPORTED,
                f"{config.architecture} scores by a head over its first token, and pools nothing; leave pooling out",
                "options.pooling",
            )
        return Pooling(config, PoolingConfig("cls", *(() if found is None else (found.max_length,))))
    return Pooling(config, pooling or PoolingConfig("mean"))


def _headless(config: ModelConfig) -> ModelConfig:
    bare = config.architecture.removesuffix("Model")
    architecture = f"{bare}ForCausalLM" if bare != config.architecture else config.architecture
    return replace(config, architecture=architecture, headless=True)


def _modules(path: Path) -> list[tuple[str, PurePosixPath]]:
    listed: Any = read_json(path)
    if not isinstance(listed, list):
        raise corrupt(path, "must hold a list of modules")
    modules = []
    for entry in listed:
        if not isinstance(entry, Mapping):
            raise corrupt(path, f"lists {entry!r}; a module was expected")
        fields = Fields(path, entry)
        place = PurePosixPath(fields.text("path", ""))
        if place.is_absolute() or ".." in place.parts:
            raise corrupt(path, f"places a module in {str(place)!r}, which is not within the model")
        modules.append((fields.text("type").rpartition(".")[2], place))
    return modules


def _kind(path: Path) -> PoolingKind:
    fields = Fields(path, read_object(path))
    named = fields.values.get("pooling_mode")
    if named is None:
        modes = [key for key, value in fields.values.items() if key.startswith("pooling_mode_") and value is True]
        kinds = [_ONE_FLAG_EACH.get(mode) for mode in modes]
    elif not isinstance(named, (str, list)):
        raise corrupt(path, f"pooling_mode is {named!r}; it must be a name or a list of names")
    else:
        modes = [str(named)] if isinstance(named, str) else [str(name) for name in named]
        kinds = [_BY_NAME.get(mode) for mode in modes]
    if len(kinds) != 1 or kinds[0] is None:
        raise unsupported(path, f"pools by {' and '.join(modes) or 'nothing'}; offered is one of {', '.join(POOLINGS)}")
    if not fields.flag("include_prompt", True):
        raise unsupported(path, "leaves a prompt's tokens out of the pool (include_prompt), which is not offered")
    return cast(PoolingKind, kinds[0])


def _optional(path: Path) -> Fields:
    return Fields(path, read_object(path) if path.is_file() else {})


def _prompts(fields: Fields) -> Mapping[str, str]:
    table = fields.table("prompts")
    if table is None:
        return MappingProxyType({})
    return MappingProxyType({name: table.text(name, "") for name in table.values})
