"""A tokenizer built from what a GGUF file carries: vocabulary, merges or scores, token types, chat templates.

Knows nothing of the container's layout (:mod:`sagellm_core.loading.gguf`). Two kinds are built: ``gpt2``, byte-level
BPE with merges; and ``llama``, SentencePiece's BPE whose merge order is the tokens' scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sagellm_core.loading.errors import corrupt, unsupported
from sagellm_core.loading.fields import Fields
from sagellm_core.loading.gguf import GGUFFile

from .chat import ChatTemplates, is_template_name
from .pretokenizers import CUTS, pre_tokenizer
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "\u2581"
# Finding the ways to make a token takes the square of its length.
_LONGEST_PIECE = 512
_NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",  # the key's own spelling
    "mask_token": "mask_token_id",
}
_TEMPLATE = "tokenizer.chat_template"


def tokenizer_from_gguf(file: GGUFFile) -> Tokenizer:
    """Build the tokenizer a GGUF file describes.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` when what it carries does not fit together; ``UNSUPPORTED`` for a kind or a
            pre-tokenizer that is not offered.
    """
    from tokenizers import AddedToken

    prefix = "tokenizer.ggml."
    fields = Fields(
        file.path, {key[len(prefix) :]: value for key, value in file.metadata.items() if key.startswith(prefix)}
    )
    kind = fields.text("model")
    build = _KINDS.get(kind)
    if build is None:
        raise unsupported(file.path, f"tokenizer {kind!r} is not offered in GGUF; known are {', '.join(_KINDS)}")
    tokens = _strings(fields, "tokens")
    named = _named_tokens(fields, tokens)
    backend, add_bos = build(fields, tokens, named)
    types = fields.integers("token_type")
    if types and len(types) != len(tokens):
        raise corrupt(file.path, f"token_type has {len(types)} entries for {len(tokens)} tokens")
    added = [
        AddedToken(token, normalized=False, special=kind == _CONTROL)
        for token, kind in zip(tokens, types, strict=False)
        if kind in (_CONTROL, _USER_DEFINED) and token
    ]
    backend.add_special_tokens([token for token in added if token.special])
    backend.add_tokens([token for token in added if not token.special])
    bos = named.get("bos_token") if fields.flag("add_bos_token", add_bos) else None
    eos = named.get("eos_token") if fields.flag("add_eos_token", False) else None
    _surround(backend, bos, eos)
    return Tokenizer(backend, named, _templates(file))


def _surround(backend: Backend, bos: str | None, eos: str | None) -> None:
    """Have ``backend`` put these tokens before and after a text."""
    from tokenizers import processors

    single = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
    special = [(token, backend.token_to_id(token)) for token in (bos, eos) if token]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)


def _byte_level(fields: Fields, tokens: list[str], named: Mapping[str, str]) -> tuple[Backend, bool]:
    from tokenizers import Tokenizer as Backend, decoders, models, normalizers

    name = fields.text("pre", "default")
    cut = CUTS.get(name)
    if cut is None:
        raise unsupported(fields.source, f"pre-tokenizer {name!r} is not offered; known are {', '.join(CUTS)}")
    merges: list[tuple[str, str]] = []
    for merge in _strings(fields, "merges"):
        # A space can only stand between the two: within a token it is another character. At 0 it would be no merge.
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    vocabulary = _vocabulary(fields, tokens)
    backend = Backend(_bpe(fields, lambda: models.BPE(vocabulary, merges, ignore_merges=cut.ignore_merges)))
    if cut.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizer(cut)
    backend.decoder = decoders.ByteLevel()
    return backend, cut.add_bos


def _sentencepiece(fields: Fields, tokens: list[str], named: Mapping[str, str]) -> tuple[Backend, bool]:
    from tokenizers import Tokenizer as Backend, decoders, models, normalizers

    scores = fields.values.get("scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        found = len(scores) if isinstance(scores, list) else "no"
        raise corrupt(fields.source, f"has {found} scores for {len(tokens)} tokens")
    vocabulary = _vocabulary(fields, tokens)
    longest = max(tokens, key=len)
    if len(longest) > _LONGEST_PIECE:
        raise corrupt(fields.source, f"a token has {len(longest)} characters; {_LONGEST_PIECE} are possible")
    merges = _merges_from_scores(vocabulary, scores)
    unknown = named.get("unk_token") or tokens[0]
    backend = Backend(
        _bpe(fields, lambda: models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    )
    spaced = fields.flag("add_space_prefix", True)
    steps: list[Any] = [normalizers.Replace(" ", _SPACE)]
    decoding: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if spaced:
        steps.insert(0, normalizers.Prepend(_SPACE))
        decoding.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence(decoding)
    return backend, True


_KINDS: Mapping[str, Callable[[Fields, list[str], Mapping[str, str]], tuple[Backend, bool]]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
}


def _bpe(fields: Fields, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:
        raise corrupt(fields.source, f"its vocabulary and merges do not fit together: {error}") from error


def _merges_from_scores(vocabulary: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, best score first.

    That is the order SentencePiece merges in (Kudo & Richardson 2018).
    """
    found: list[tuple[float, int, int, str, str]] = []
    for token, index in vocabulary.items():
        score = -scores[index]
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in vocabulary and right in vocabulary:
                found.append((score, vocabulary[left], vocabulary[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _vocabulary(fields: Fields, tokens: list[str]) -> dict[str, int]:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(token for index, token in enumerate(tokens) if vocabulary[token] != index)
        raise corrupt(fields.source, f"token {twice!r} is in the vocabulary twice")
    return vocabulary


def _strings(fields: Fields, key: str) -> list[str]:
    values = fields.values.get(key)
    if not isinstance(values, list) or not values or not isinstance(values[0], str):
        raise corrupt(fields.source, f"tokenizer.ggml.{key} is missing or no list of strings")
    return values


def _named_tokens(fields: Fields, tokens: list[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for name, key in _NAMED.items():
        index = fields.integer(key, None, minimum=0)
        if index is None:
            continue
        if index >= len(tokens):
            raise corrupt(fields.source, f"{key} is {index}, beyond the {len(tokens)} tokens there are")
        named[name] = tokens[index]
    return named


def _templates(file: GGUFFile) -> ChatTemplates:
    sources: dict[str, str] = {}
    for key, value in file.metadata.items():
        name = "default" if key == _TEMPLATE else key.removeprefix(_TEMPLATE + ".")
        if key.startswith(_TEMPLATE) and isinstance(value, str) and is_template_name(name):
            sources[name] = value
    return ChatTemplates(sources)
