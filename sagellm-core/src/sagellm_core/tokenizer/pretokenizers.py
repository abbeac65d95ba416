"""How byte-level vocabularies cut text before merging, by the names GGUF files give (``tokenizer.ggml.pre``).

The names and patterns are llama.cpp's, which took them from each model's own ``tokenizer.json``. Knows nothing of
vocabularies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_TAIL = r"|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+" + _TAIL
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = _CONTRACTION + _WORD + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+" + _TAIL
_QWEN2 = _CONTRACTION + _WORD + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"
_SYMBOLS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+" + _TAIL
_TEKKEN = f"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*" + r"|\p{N}" + _SYMBOLS
_GPT4O = (
    f"{_START}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_START}{_UPPER}+{_LOWER}*{_CONTRACTION}?" + r"|\p{N}{1,3}" + _SYMBOLS
)


@dataclass(frozen=True)
class Cut:
    """One way to cut.

    Attributes:
        patterns: Each splits the pieces the one before left.
        ignore_merges: A piece that is a token as a whole is taken as such.
        add_bos: A beginning-of-text token is added, unless the file says otherwise.
        nfc: Text is brought to Unicode's composed form first.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False


_GPT2_CUT = Cut((_GPT2,))
_DIGITS_CUT = Cut((r"\p{N}", _GPT2))
_LLAMA3_CUT = Cut((_LLAMA3,), ignore_merges=True, add_bos=True)
_QWEN2_CUT = Cut((_QWEN2,), nfc=True)
_GPT4O_CUT = Cut((_GPT4O,))

CUTS: Mapping[str, Cut] = {
    "default": Cut((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "exaone4"), _GPT2_CUT),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS_CUT),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA3_CUT),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Cut((_LLAMA3,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2_CUT),
    "stablelm2": Cut((_QWEN2,)),
    "tekken": Cut((_TEKKEN,), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O_CUT),
}
"""Known ways, by name."""


def pre_tokenizer(cut: Cut) -> PreTokenizer:
    """The ``tokenizers`` object for a way to cut."""
    from tokenizers import Regex, pre_tokenizers

    splits: list[PreTokenizer] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cut.patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
