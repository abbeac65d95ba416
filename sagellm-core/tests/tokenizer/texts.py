"""Texts that tokenizers trip over."""

from __future__ import annotations

from hypothesis import strategies as st

TEXTS = [
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "I'm sure they've said we'll, you'd, he's; I'M SURE THEY'VE",
    "a  b   c    d",
    "tabs\tand\nlines\r\nand\n\n\nmore",
    "   leading and trailing   ",
    "naïve café, ÀÉÎÕÜ, e\u0301 (decomposed)",
    "日本語のテスト。中文分词。한국어",
    "Привет, мир! Καλημέρα",
    "עברית עם ניקוד שָׁלוֹם",
    "👍🏽 👩‍👩‍👧‍👦 🇩🇪 emoji",
    "def f(x):\n    return x**2  # code",
    "x=1;y=2;z=x+y",
    "$1,234.56 (50%) & more @ http://example.org/?a=b#c",
    "\u00a0non-breaking\u2003and\u200bzero-width",
    "<|im_start|>user\nhi<|im_end|>",
    "math: ½ ² ³ Ⅷ ٣",
    "12345678901234567890",
    "a1b22c333d4444",
    "\ufffd replacement and \u0000 nul",
    "🤖" * 20,
]

ALPHABET = [*map(chr, range(32, 127)), *"\n\r\t\u00a0\u2028éßñ\u0301中日本한ωД٣½²😀👍🏽\u200d"]
ANY_TEXT = st.text(st.sampled_from(ALPHABET), max_size=60) | st.text(max_size=40)
