"""The mock engine is an engine, fast or slow, roomy or cramped."""

from __future__ import annotations

from typing import Any

import pytest

from sagellm_protocol import EngineSpec
from sagellm_protocol.testing import MockEngine
from sagellm_protocol.testing.conformance.engine import EngineConformance


def mock(**fields: Any) -> MockEngine:
    return MockEngine(EngineSpec(**{"engine": "mock", "model": "mock-model", **fields}))


class TestMockEngine(EngineConformance):
    def make_engine(self) -> MockEngine:
        return mock(max_model_len=4096)


class TestCrampedMockEngine(EngineConformance):
    """Two sequences at a time, prompts in chunks, hardly any room."""

    long_tokens = 600

    def make_engine(self) -> MockEngine:
        return mock(
            max_model_len=1024,
            max_num_seqs=3,
            max_num_batched_tokens=7,
            block_size=4,
            options={"total_blocks": 256, "itl_ms": 0.01},
        )


class TestMockEngineWithoutPrefixCache(EngineConformance):
    def make_engine(self) -> MockEngine:
        return mock(prefix_caching=False, max_model_len=4096)


pytestmark = pytest.mark.timeout(60)
