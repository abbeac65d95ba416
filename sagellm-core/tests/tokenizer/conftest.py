"""The reference implementation's reading of the default model's tokenizer; slow to make, so made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase


@pytest.fixture(scope="session")
def theirs(smollm2: Path) -> PreTrainedTokenizerBase:
    made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    return made
