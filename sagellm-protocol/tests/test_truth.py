from __future__ import annotations

import gguf
import numpy as np
import pytest

from sagellm_protocol.backend import BLOCK_ELEMENTS, SCALED, WeightFormat
from sagellm_protocol.testing import truth

GGUFS = [format for format in WeightFormat if format not in SCALED]
QUANTISED = [format for format in GGUFS if BLOCK_ELEMENTS[format][0] > 1]


@pytest.mark.parametrize("format", QUANTISED, ids=lambda format: format.value)
def test_the_truth_about_a_format_is_that_of_its_makers(format: WeightFormat) -> None:
    raw = truth.random_blocks(np.random.default_rng(1), format, (5, 512))
    theirs = gguf.quants.dequantize(np.frombuffer(raw, np.uint8).reshape(5, -1), gguf.GGMLQuantizationType[format.name])
    ours = truth.dequantize(raw, format, (5, 512))
    assert np.abs(ours - theirs).max() <= 1e-6


@pytest.mark.parametrize("format", GGUFS, ids=lambda format: format.value)
def test_the_sizes_of_a_format_are_those_of_its_makers(format: WeightFormat) -> None:
    assert BLOCK_ELEMENTS[format] == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[format.name]]
